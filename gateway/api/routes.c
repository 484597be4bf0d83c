/* routes.c - what is served where, and what every call goes through before its endpoint. */
#include <inttypes.h>

#include "api/accounts.h"
#include "api/endpoints.h"
#include "api/waiters.h"
#include "base/clock.h"
#include "wire/scope.h"

#define BODY_MAX        (1u << 20)
#define BODY_PASS_MAX   (12u << 20) /* hpcai puts 500,000 numbers into one JSON text */
#define BODY_SAMPLE_MAX (10u << 20)

struct spec {
    endpoint *run;
    unsigned scopes;     /* of which a key must have one; 0: any key will do */
    size_t unpacked_max; /* its body may come as zstd */
    bool open;           /* needs no key */
    bool db;             /* always needs Postgres */
    bool costs;          /* needs credit */
    bool quiet;          /* asks for no work and adds nothing: a disabled account may */
    bool uncounted; /* the SDKs make it by themselves: not one of the account's requests a minute */
};

/* Counted once, on the event thread: a call that comes back with a connection was counted there,
 * by what was known of its key last, so that the limit holds while Postgres is away.  (Those whose
 * key was not known at all are not counted: a few, until it is.) */
static enum step check_rate(struct call *c)
{
    int64_t now_ms = clock_mono_ms(), limit = c->limits.requests_per_minute;
    int wait_s = c->db || !*c->account ? 0 : quota_request(c->g->quota, c->account, limit, now_ms);
    if (!wait_s) return STEP_ON;
    quota_note(c->g->quota, c->account, QUOTA_REQUESTS, limit, now_ms);
    atomic_fetch_add(&c->g->counts.limited, 1);
    http_answer_retry(c->r, 429, wait_s,
                      "this account sends more than its %" PRId64
                      " requests a minute, try again in %d s; waiting costs nothing",
                      limit, wait_s);
    return STEP_ANSWERED;
}

/* Who calls, and may he? */
static enum step admit(struct call *c, const struct spec *spec)
{
    enum step step = accounts_check_key(c->g->accounts, c);
    if (step == STEP_ON) step = accounts_check_rights(c, spec->scopes, spec->quiet);
    if (step != STEP_ANSWERED && !spec->uncounted && check_rate(c) != STEP_ON) return STEP_ANSWERED;
    if (step == STEP_ON && spec->costs) step = accounts_check_credit(c->g->accounts, c);
    return step;
}

static enum http_verdict serve(void *ctx, void *worker, struct http_request *r, const void *tag)
{
    const struct spec *spec = tag;
    struct gateway *g = ctx;
    struct call c = {.g = g, .db = worker, .r = r};
    enum step step = STEP_ON;
    char why[HTTP_WHY_SIZE];

    if (!worker) atomic_fetch_add(&g->counts.requests, 1);
    if (!spec->open) step = admit(&c, spec);
    if (step == STEP_ON && spec->db && !c.db) step = STEP_WORKER;
    if (step != STEP_ON) return step_verdict(step);
    int status = http_unpack(r, spec->unpacked_max, why);
    if (!status) return spec->run(&c);
    http_answer_error(r, status, "%s", why);
    return HTTP_TAKEN;
}

#define OPEN      .open = true
#define DB        .db = true
#define COSTS     .costs = true
#define QUIET     .quiet = true
#define PASS      .unpacked_max = BODY_PASS_MAX
#define UNCOUNTED .uncounted = true
/* What each scope is for: wire/scope.h. */
#define ANY                 0
#define TRAIN               SCOPE_TRAIN
#define SAMPLE              SCOPE_SAMPLE
#define READ                SCOPE_READ
#define FINANCE             SCOPE_FINANCE
#define SPEC(f, scope, ...) (&(const struct spec){.run = (f), .scopes = (scope), __VA_ARGS__})
#define GET(path, spec)                                                                            \
    {                                                                                              \
        "GET", "/api/v1/" path, BODY_MAX, serve, spec                                              \
    }
#define PUT(path, spec)                                                                            \
    {                                                                                              \
        "PUT", "/api/v1/" path, BODY_MAX, serve, spec                                              \
    }
#define DELETE(path, spec)                                                                         \
    {                                                                                              \
        "DELETE", "/api/v1/" path, BODY_MAX, serve, spec                                           \
    }
#define POST(path, spec)                                                                           \
    {                                                                                              \
        "POST", "/api/v1/" path, BODY_MAX, serve, spec                                             \
    }
#define POST_OF(path, max, s)                                                                      \
    {                                                                                              \
        "POST", "/api/v1/" path, max, serve, s                                                     \
    }

/* The busiest first: the list is read from the top. */
const struct http_route api_routes[] = {
    POST("retrieve_future", SPEC(api_retrieve_future, TRAIN | SAMPLE, QUIET, UNCOUNTED)),
    POST_OF("asample", BODY_SAMPLE_MAX, SPEC(api_asample, SAMPLE, COSTS)),
    POST_OF("forward_backward", BODY_PASS_MAX, SPEC(api_forward_backward, TRAIN, COSTS, PASS)),
    POST_OF("forward", BODY_PASS_MAX, SPEC(api_forward, TRAIN, COSTS, PASS)),
    POST("optim_step", SPEC(api_optim_step, TRAIN)),
    POST("session_heartbeat", SPEC(api_heartbeat, TRAIN | SAMPLE, DB, QUIET, UNCOUNTED)),
    POST("telemetry", SPEC(api_telemetry, ANY, QUIET, UNCOUNTED)),
    POST("cancel_future", SPEC(api_cancel_future, SAMPLE, QUIET, UNCOUNTED)),

    POST("retrieve_futures", SPEC(api_retrieve_futures, TRAIN | SAMPLE, QUIET, UNCOUNTED)),
    POST_OF("sample", BODY_SAMPLE_MAX, SPEC(api_sample, SAMPLE, COSTS)),

    POST("client/config", SPEC(api_client_config, ANY, QUIET, UNCOUNTED)),
    POST("client/dynamic_config", SPEC(api_dynamic_config, ANY, QUIET, UNCOUNTED)),
    GET("get_server_capabilities", SPEC(api_capabilities, ANY, DB, QUIET)),
    GET("healthz", SPEC(api_healthz, ANY, OPEN)),
    POST("auth/token", SPEC(api_token, ANY, DB, QUIET)),
    GET("auth/apikey/me", SPEC(api_show_key, ANY, DB, QUIET)),
    DELETE("auth/apikey/me", SPEC(api_delete_key, ANY, DB, QUIET)),

    POST("create_session", SPEC(api_create_session, TRAIN | SAMPLE, DB)),
    GET("sessions", SPEC(api_list_sessions, READ, DB, QUIET)),
    POST("sessions/search", SPEC(api_search_sessions, READ, DB, QUIET)),
    GET("sessions/*", SPEC(api_get_session, READ, DB, QUIET)),
    POST("sessions/*/finish", SPEC(api_finish_session, TRAIN | SAMPLE, DB, QUIET, UNCOUNTED)),
    PUT("sessions/*/project", SPEC(api_set_project, TRAIN | SAMPLE, DB)),
    GET("sessions/*/trace_export", SPEC(api_trace_export, READ, DB, QUIET)),

    POST("create_model", SPEC(api_create_model, TRAIN, DB, COSTS)),
    POST("get_info", SPEC(api_get_info, TRAIN | SAMPLE | READ, DB, QUIET)),
    POST("load_weights", SPEC(api_load_weights, TRAIN, DB)),
    POST("unload_model", SPEC(api_unload_model, TRAIN, DB, QUIET)),
    POST("weights_info", SPEC(api_weights_info, TRAIN | SAMPLE | READ, DB, QUIET)),
    POST("copy_weights", SPEC(api_copy_weights, TRAIN, DB)),
    POST("save_weights", SPEC(api_save_weights, TRAIN)),
    POST("save_weights_for_sampler", SPEC(api_save_sampler, TRAIN)),
    POST("save_weights_external", SPEC(api_save_external, TRAIN)),

    POST("create_sampling_session", SPEC(api_create_sampler, SAMPLE, DB)),
    POST("join_sampling_session", SPEC(api_join_sampler, SAMPLE, DB)),
    GET("samplers/*", SPEC(api_get_sampler, SAMPLE | READ, DB, QUIET)),

    GET("training_runs", SPEC(api_list_runs, READ, DB, QUIET)),
    GET("training_runs/*", SPEC(api_get_run, TRAIN | READ, DB, QUIET)),
    GET("training_runs/*/checkpoints", SPEC(api_run_checkpoints, READ, DB, QUIET)),
    GET("models/*/checkpoints",
        SPEC(api_run_checkpoints, READ, DB, QUIET)), /* hpcai's older word */
    GET("checkpoints", SPEC(api_list_checkpoints, READ, DB, QUIET)),
    /* a checkpoint's id is two segments, in hpcai's plain paths one */
    DELETE("training_runs/*/checkpoints/*/*", SPEC(api_delete_checkpoint, TRAIN, DB, QUIET)),
    DELETE("training_runs/*/checkpoints/*", SPEC(api_delete_checkpoint, TRAIN, DB, QUIET)),
    POST("training_runs/*/checkpoints/*/*/publish", SPEC(api_publish, TRAIN, DB)),
    DELETE("training_runs/*/checkpoints/*/*/publish", SPEC(api_unpublish, TRAIN, DB, QUIET)),
    PUT("training_runs/*/checkpoints/*/*/ttl", SPEC(api_set_ttl, TRAIN, DB)),
    GET("training_runs/*/checkpoints/*/*/external_weights_urls",
        SPEC(api_weights_urls, READ, DB, QUIET)),
    GET("training_runs/*/checkpoints/*/*/archive", SPEC(api_archive, READ, DB, QUIET)),
    GET("training_runs/*/checkpoints/*/archive", SPEC(api_archive, READ, DB, QUIET)),
    GET("files/*/*/*/*", SPEC(api_file, ANY, OPEN)),

    GET("billing/usage/events", SPEC(api_usage_events, FINANCE, DB, QUIET)),
    GET("billing/usage/checkpoints/current", SPEC(api_storage, FINANCE, DB, QUIET)),
    GET("audit", SPEC(api_audit, READ, DB, QUIET)),
};
const int api_route_count = sizeof api_routes / sizeof *api_routes;
