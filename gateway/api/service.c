/* service.c - what the service is and how its clients shall behave. */
#include <stdlib.h>

#include "api/endpoints.h"

/* A chunk of at most this many estimated bytes makes a job that always fits one record. */
#define CHUNK_BYTES_MAX        2000000
#define SAMPLES_CONCURRENT_MAX 512
#define DYNAMIC_REFRESH_S      300

enum http_verdict api_healthz(struct call *c)
{
    return call_answer(c, 200, json_pack("{s:s}", "status", "ok"));
}

/* create_model_via_load_weights is read by older clients only: it spares them a round of calls. */
enum http_verdict api_client_config(struct call *c)
{
    const struct gateway_conf *conf = &c->g->conf;
    return call_answer(c, 200,
                       json_pack("{s:b, s:b, s:b, s:i, s:i, s:b, s:b, s:b, s:b}",
                                 "pjwt_auth_enabled", (int)conf->tokens, "parallel_fwdbwd_chunks",
                                 1, "proto_compress_fwdbwd", (int)conf->zstd,
                                 "fwdbwd_max_chunk_bytes_count", CHUNK_BYTES_MAX,
                                 "sample_max_concurrent_requests", SAMPLES_CONCURRENT_MAX,
                                 "sample_use_retrieve_futures", (int)conf->session_polls,
                                 "sample_join_sampling_session", 1, "custom_loss_server_side", 0,
                                 "create_model_via_load_weights", 1));
}

enum http_verdict api_dynamic_config(struct call *c)
{
    return call_answer(c, 200,
                       json_pack("{s:i, s:b}", "refresh_interval_sec", DYNAMIC_REFRESH_S,
                                 "sample_cancel_enabled", 1));
}

enum http_verdict api_capabilities(struct call *c)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    int n = db_queryf(
        c->db, &rows, &e,
        "SELECT json_build_object('supported_models', coalesce(json_agg(json_build_object("
        "'model_name', name, 'max_context_length', context_max, 'trainable', true, 'sampleable', "
        "true)"
        " ORDER BY name), '[]'))::text FROM models",
        NULL);
    enum http_verdict v = n < 0 ? call_fail(c, &e) : call_answer_text(c, db_text(rows, 0, 0));
    db_result_free(rows);
    return v;
}

/* Counted and dropped: what a client says about itself is not ours to keep. */
enum http_verdict api_telemetry(struct call *c)
{
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    atomic_fetch_add(&c->g->counts.telemetry_events,
                     (long long)json_array_size(json_object_get(body, "events")));
    json_decref(body);
    return call_answer(c, 200, json_pack("{s:s}", "status", "accepted"));
}
