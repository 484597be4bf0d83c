/* weights.c - save_weights, save_weights_for_sampler and save_weights_external; numbered like every
 * training call. */
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "api/endpoints.h"
#include "api/limits.h"
#include "api/room.h"
#include "api/submit.h"
#include "api/trained.h"
#include "wire/json.h"
#include "wire/payload.h"

static enum http_verdict submit_save(struct call *c, const struct trained *t, enum job_kind kind,
                                     const struct save_request *save)
{
    struct err e = {0};
    struct submission s = {.kind = kind, .seq = t->seq, .content = CONTENT_JSON};
    char *payload = save_request_encode(save, &s.size, &e);
    if (!payload) return call_fail(c, &e);
    s.payload = payload;
    enum http_verdict v = submit_train(c, t->run, &t->facts, &s);
    free(payload);
    return v;
}

static int read_metadata(const json_t *body, struct save_request *save, struct err *e)
{
    json_t *metadata = json_object_get(body, "user_metadata");
    if (!metadata || json_is_null(metadata)) return 0;
    if (!json_is_object(metadata))
        return err_set(e, ERR_USER, "user_metadata is %s, expected an object",
                       wire_json_type(metadata));
    save->metadata = json_dumps(metadata, JSON_COMPACT);
    if (!save->metadata) return err_set(e, ERR_RETRY, "out of memory");
    if (strlen(save->metadata) > METADATA_MAX)
        return err_set(e, ERR_USER, "user_metadata has %zu bytes, expected at most %d",
                       strlen(save->metadata), METADATA_MAX);
    return 0;
}

/* What is common to a named checkpoint of either kind. */
static int read_named(const json_t *body, const struct trained *t, const char *kind,
                      struct save_request *save, struct err *e)
{
    struct checkpoint_ref ref = {.seq = t->seq};
    json_int_t ttl = 0;
    if (wire_json_text(body, "", "path", true, save->name, sizeof save->name, e) < 0) return -1;
    if (checkpoint_name_check(save->name, e) < 0) return -1;
    if (wire_json_int(body, "", "ttl_seconds", false, TTL_MIN_S, TTL_MAX_S, &ttl, e) < 0) return -1;
    save->overwrite = t->facts.arrival; /* hpcai has no word for it, and its recipes save again */
    if (wire_json_bool(body, "", "overwrite", false, &save->overwrite, e) < 0) return -1;
    save->ttl_seconds = ttl;
    snprintf(ref.run, sizeof ref.run, "%s", t->run);
    snprintf(ref.kind, sizeof ref.kind, "%s", kind);
    snprintf(ref.name, sizeof ref.name, "%s", save->name);
    enum uri_scheme scheme = t->facts.arrival ? URI_HPCAI : URI_TINKER;
    if (checkpoint_uri_make(save->path, sizeof save->path, scheme, &ref, e) < 0) return -1;
    return read_metadata(body, save, e);
}

/* "inflight" asks for a sampler whose weights later saves replace while it works.  A snapshot is
 * what is made of both: never wrong, at most older. */
static int check_kind(const json_t *body, struct err *e)
{
    char kind[16] = "snapshot";
    if (wire_json_text(body, "", "kind", false, kind, sizeof kind, e) < 0) return -1;
    if (!strcmp(kind, "snapshot") || !strcmp(kind, "inflight")) return 0;
    return err_set(e, ERR_USER, "kind is \"%s\", expected snapshot or inflight", kind);
}

/* A save without a name makes one sampler; its id follows from the run's session and the client's
 * count. */
static int read_unnamed(const json_t *body, const struct trained *t, struct save_request *save,
                        struct err *e)
{
    char session[ID_SIZE];
    json_int_t number = -1;
    if (wire_json_int(body, "", "sampling_session_seq_id", true, 0, INT64_MAX, &number, e) < 0)
        return -1;
    snprintf(session, sizeof session, "%s", t->run);
    char *end = strstr(session, ":train:");
    if (!end) return err_set(e, ERR_BUG, "run \"%s\" has no session in its id", t->run);
    *end = '\0';
    return sampler_id_make(save->sampler, session, number, e);
}

static enum http_verdict finish_save(struct call *c, const struct trained *t, enum job_kind kind,
                                     struct save_request *save, int rc, struct err *e)
{
    enum http_verdict v;
    enum step step = rc == 0 ? room_for_save(c, t, e) : STEP_ON;
    if (step != STEP_ON)
        v = step_verdict(step);
    else if (!e->kind)
        v = submit_save(c, t, kind, save);
    else if (e->kind == ERR_USER)
        v = submit_reject(c, t->run, &t->facts, t->seq, e->text);
    else
        v = call_fail(c, e);
    save_request_clear(save);
    return v;
}

enum http_verdict api_save_weights(struct call *c)
{
    struct save_request save = {0};
    struct trained t;
    struct err e = {0};
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    enum step step = trained_begin(c, body, &t);
    int rc = step == STEP_ON ? read_named(body, &t, "training", &save, &e) : 0;
    json_decref(body);
    if (step != STEP_ON) return step_verdict(step);
    return finish_save(c, &t, JOB_SAVE, &save, rc, &e);
}

enum http_verdict api_save_sampler(struct call *c)
{
    struct save_request save = {0};
    struct trained t;
    struct err e = {0};
    int rc = 0;
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    enum step step = trained_begin(c, body, &t);
    if (step == STEP_ON) {
        const json_t *path = json_object_get(body, "path");
        bool named = path && !json_is_null(path);
        rc = check_kind(body, &e);
        if (rc == 0)
            rc = named ? read_named(body, &t, "sampler", &save, &e)
                       : read_unnamed(body, &t, &save, &e);
    }
    json_decref(body);
    if (step != STEP_ON) return step_verdict(step);
    return finish_save(c, &t, JOB_SAVE_SAMPLER, &save, rc, &e);
}

/* There is no encryption here, and a client that asked for it must not get plain files instead. */
static int check_recipients(const json_t *body, struct err *e)
{
    const json_t *recipients = json_object_get(body, "age_encryption_recipients");
    if (!recipients || json_is_null(recipients) ||
        (json_is_array(recipients) && !json_array_size(recipients)))
        return 0;
    return err_set(e, ERR_USER,
                   "age_encryption_recipients is given, but files are not encrypted here: leave it "
                   "out and fetch them over a connection that you trust");
}

/* The adapter as files to download: a sampler's checkpoint that no sampler is made of. */
enum http_verdict api_save_external(struct call *c)
{
    struct save_request save = {.external = true};
    struct trained t;
    struct err e = {0};
    int rc = 0;
    json_t *body = call_body(c);
    if (!body) return HTTP_TAKEN;
    enum step step = trained_begin(c, body, &t);
    if (step == STEP_ON) rc = check_recipients(body, &e);
    if (step == STEP_ON && rc == 0) rc = read_named(body, &t, "external", &save, &e);
    json_decref(body);
    if (step != STEP_ON) return step_verdict(step);
    return finish_save(c, &t, JOB_SAVE_SAMPLER, &save, rc, &e);
}
