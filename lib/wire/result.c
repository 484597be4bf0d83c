/* result.c - see result.h. */
#include "wire/result.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/failpoint.h"
#include "seal/seal.h"
#include "wire/json.h"
#include "wire/text.h"

#define TYPE_PREFIX  "tinworks.result."
#define TYPE_BARRIER "tinworks.barrier"

static const char *const status_names[] = {
    [RESULT_OK] = "ok", [RESULT_FAILED] = "failed", [RESULT_CANCELLED] = "cancelled"};

const char *result_status_name(enum result_status s)
{
    return status_names[s];
}

static struct result *result_new(int64_t epoch, struct err *e)
{
    struct result *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(e, ERR_RETRY, "out of memory for a result");
        return NULL;
    }
    r->epoch = epoch;
    seal_sha256_hex("", 0, r->digest);
    return r;
}

static int copy_text(char *out, size_t size, const char *what, const char *text, struct err *e)
{
    size_t length = strlen(text);
    if (!length || length >= size)
        return err_set(e, ERR_USER, "%s is \"%.200s\", expected 1 to %zu bytes", what, text,
                       size - 1);
    memcpy(out, text, length + 1);
    return 0;
}

struct result *result_create(const struct job *job, const char *model, int64_t epoch, struct err *e)
{
    struct result *r = result_new(epoch, e);
    if (!r) return NULL;
    memcpy(r->job_id, job->id, sizeof r->job_id);
    memcpy(r->tenant, job->tenant, sizeof r->tenant);
    memcpy(r->parent, job->parent, sizeof r->parent);
    r->kind = job->kind;
    r->seq = job->seq;
    if (copy_text(r->model, sizeof r->model, "model", model, e) < 0) goto fail;
    return r;
fail:
    result_free(r);
    return NULL;
}

struct result *result_create_barrier(int64_t epoch, const char *owner, const char *build,
                                     const char *numerics, struct err *e)
{
    struct result *r = result_new(epoch, e);
    if (!r) return NULL;
    r->barrier = true;
    if (copy_text(r->owner, sizeof r->owner, "owner", owner, e) < 0 ||
        copy_text(r->build, sizeof r->build, "build", build, e) < 0 ||
        copy_text(r->numerics, sizeof r->numerics, "numerics", numerics, e) < 0)
        goto fail;
    snprintf(r->job_id, sizeof r->job_id, "barrier:%" PRId64 ":%s", epoch, owner);
    return r;
fail:
    result_free(r);
    return NULL;
}

void result_free(struct result *r)
{
    if (!r) return;
    free(r->payload);
    free(r);
}

static void set_payload(struct result *r, enum result_status status, enum content content,
                        char *take, size_t size, struct usage usage)
{
    free(r->payload);
    r->status = status;
    r->content = content;
    r->payload = take;
    r->size = size;
    r->usage = usage;
    seal_sha256_hex(take ? take : "", size, r->digest);
}

void result_set_ok(struct result *r, enum content content, char *take_payload, size_t size,
                   struct usage usage)
{
    set_payload(r, RESULT_OK, content, take_payload, size, usage);
}

static int set_error(struct result *r, enum result_status status, const char *category,
                     const char *text, struct err *e)
{
    size_t size;
    /* Texts may quote what a client sent; what is not UTF-8 must not lose the answer. */
    json_t *shown = json_string(text);
    if (!shown) shown = json_string("the error's text is not UTF-8");
    char *payload =
        wire_json_write(json_pack("{s:o, s:s}", "error", shown, "category", category), &size, e);
    if (!payload) return -1;
    set_payload(r, status, CONTENT_JSON, payload, size, (struct usage){0});
    return 0;
}

bool result_gave_up(const struct result *r)
{
    if (r->status != RESULT_FAILED || !r->payload) return false;
    json_t *root = json_loadb(r->payload, r->size, 0, NULL);
    const char *category = json_string_value(json_object_get(root, "category"));
    bool server = category && !strcmp(category, "server");
    json_decref(root);
    return server;
}

int result_set_failed(struct result *r, const char *category, const char *text, struct err *e)
{
    return set_error(r, RESULT_FAILED, category, text, e);
}

int result_set_cancelled(struct result *r, const char *text, struct err *e)
{
    return set_error(r, RESULT_CANCELLED, "user", text, e);
}

static int barrier_headers(const struct result *r, struct header *out)
{
    int n = 0;
    out[n++] = (struct header){"tw_owner", r->owner};
    out[n++] = (struct header){"tw_build", r->build};
    out[n++] = (struct header){"tw_numerics", r->numerics};
    return n;
}

static int outcome_headers(const struct result *r, struct result_scratch *s, struct header *out)
{
    int n = 0;
    snprintf(s->seq, sizeof s->seq, "%" PRId64, r->seq);
    snprintf(s->prefill, sizeof s->prefill, "%" PRId64, r->usage.prefill);
    snprintf(s->sample, sizeof s->sample, "%" PRId64, r->usage.sample);
    snprintf(s->train, sizeof s->train, "%" PRId64, r->usage.train);
    out[n++] = (struct header){"content-type", content_type_name(r->content)};
    out[n++] = (struct header){"tw_tenant", r->tenant};
    out[n++] = (struct header){"tw_run", r->parent};
    out[n++] = (struct header){"tw_seq", s->seq};
    out[n++] = (struct header){"tw_status", result_status_name(r->status)};
    out[n++] = (struct header){"tw_model", r->model};
    out[n++] = (struct header){"tw_prefill", s->prefill};
    out[n++] = (struct header){"tw_sample", s->sample};
    out[n++] = (struct header){"tw_train", s->train};
    out[n++] = (struct header){"tw_digest", r->digest};
    return n;
}

int result_headers(const struct result *r, struct result_scratch *scratch,
                   struct header out[WIRE_HEADERS_MAX])
{
    int n = 0;
    snprintf(scratch->epoch, sizeof scratch->epoch, "%" PRId64, r->epoch);
    if (r->barrier)
        strcpy(scratch->type, TYPE_BARRIER);
    else
        snprintf(scratch->type, sizeof scratch->type, TYPE_PREFIX "%s", job_kind_name(r->kind));
    out[n++] = (struct header){"ce_specversion", "1.0"};
    out[n++] = (struct header){"ce_id", r->job_id};
    out[n++] = (struct header){"ce_type", scratch->type};
    out[n++] = (struct header){"ce_source", "worker"};
    out[n++] = (struct header){"tw_epoch", scratch->epoch};
    n += r->barrier ? barrier_headers(r, out + n) : outcome_headers(r, scratch, out + n);
    assert(n <= WIRE_HEADERS_MAX);
    return n;
}

static int decode_type(struct result *r, const char *type, struct err *e)
{
    size_t prefix = strlen(TYPE_PREFIX);
    r->barrier = !strcmp(type, TYPE_BARRIER);
    if (r->barrier) return 0;
    r->kind = strncmp(type, TYPE_PREFIX, prefix) ? JOB_KIND_UNKNOWN : job_kind_of(type + prefix);
    if (r->kind != JOB_KIND_UNKNOWN) return 0;
    return err_set(e, ERR_USER, "header ce_type is \"%.100s\", expected %s or %s<kind of job>",
                   type, TYPE_BARRIER, TYPE_PREFIX);
}

static int decode_barrier(struct result *r, const struct header *h, int n, size_t size,
                          struct err *e)
{
    if (size) return err_set(e, ERR_USER, "a barrier with a value of %zu bytes", size);
    if (header_text(h, n, "tw_owner", r->owner, sizeof r->owner, e) < 0 ||
        header_text(h, n, "tw_build", r->build, sizeof r->build, e) < 0 ||
        header_text(h, n, "tw_numerics", r->numerics, sizeof r->numerics, e) < 0)
        return -1;
    return 0;
}

static int decode_status(struct result *r, const struct header *h, int n, struct err *e)
{
    const char *status = header_find(h, n, "tw_status", e);
    const char *content = status ? header_find(h, n, "content-type", e) : NULL;
    if (!content) return -1;
    int s = RESULT_OK;
    while (s <= RESULT_CANCELLED && strcmp(status, status_names[s]))
        s++;
    if (s > RESULT_CANCELLED)
        return err_set(e, ERR_USER,
                       "header tw_status is \"%.40s\", expected ok, failed or cancelled", status);
    r->status = (enum result_status)s;
    if (!strcmp(content, content_type_name(CONTENT_JSON)))
        r->content = CONTENT_JSON;
    else if (!strcmp(content, content_type_name(CONTENT_PROTOBUF)) && r->status == RESULT_OK)
        r->content = CONTENT_PROTOBUF;
    else
        return err_set(e, ERR_USER, "header content-type is \"%.100s\", expected %s%s", content,
                       content_type_name(CONTENT_JSON),
                       r->status == RESULT_OK ? " or application/x-protobuf" : "");
    return 0;
}

static int decode_usage(struct result *r, const struct header *h, int n, struct err *e)
{
    if (header_count_of(h, n, "tw_prefill", &r->usage.prefill, e) < 0 ||
        header_count_of(h, n, "tw_sample", &r->usage.sample, e) < 0 ||
        header_count_of(h, n, "tw_train", &r->usage.train, e) < 0)
        return -1;
    if (r->usage.prefill > USAGE_TOKENS_MAX || r->usage.sample > USAGE_TOKENS_MAX ||
        r->usage.train > USAGE_TOKENS_MAX)
        return err_set(e, ERR_USER, "a result bills more than %d tokens of one kind",
                       USAGE_TOKENS_MAX);
    bool any = r->usage.prefill || r->usage.sample || r->usage.train;
    if (r->status != RESULT_OK && any)
        return err_set(e, ERR_USER, "a %s result bills tokens, expected 0",
                       result_status_name(r->status));
    return 0;
}

/* Does it fit the log that it lies in? */
static int check_place(const struct result *r, const char *model, enum stream stream, struct err *e)
{
    if (strcmp(r->model, model))
        return err_set(e, ERR_USER, "header tw_model is \"%s\", expected \"%s\"", r->model, model);
    if (job_kind_is_train(r->kind) == (stream == STREAM_TRAIN) && r->kind != JOB_EXPIRE &&
        r->kind != JOB_CANCEL)
        return 0;
    return err_set(e, ERR_USER, "a result of kind %s does not belong to the %s stream",
                   job_kind_name(r->kind), stream_name(stream));
}

static int decode_outcome(struct result *r, const struct header *h, int n, const void *value,
                          size_t size, struct err *e)
{
    char actual[SEAL_SHA256_HEX_SIZE];
    if (header_id(h, n, "tw_tenant", r->tenant, sizeof r->tenant, e) < 0 ||
        header_id(h, n, "tw_run", r->parent, sizeof r->parent, e) < 0 ||
        header_count_of(h, n, "tw_seq", &r->seq, e) < 0 ||
        header_text(h, n, "tw_model", r->model, sizeof r->model, e) < 0 ||
        decode_status(r, h, n, e) < 0 || decode_usage(r, h, n, e) < 0 ||
        header_text(h, n, "tw_digest", r->digest, sizeof r->digest, e) < 0)
        return -1;
    seal_sha256_hex(value, size, actual);
    if (strcmp(r->digest, actual))
        return err_set(e, ERR_USER, "header tw_digest is \"%s\", expected %s", r->digest, actual);
    r->payload = bytes_copy(value, size, e);
    if (!r->payload) return -1;
    r->size = size;
    return 0;
}

struct result *result_decode(const struct header *headers, int header_count, const void *value,
                             size_t size, const char *model, enum stream stream, struct err *e)
{
    if (size > JOB_PAYLOAD_MAX) {
        err_set(e, ERR_USER, "payload of %zu bytes, expected at most %u", size, JOB_PAYLOAD_MAX);
        return NULL;
    }
    struct result *r = result_new(0, e);
    if (!r) return NULL;
    char version[8];
    const char *type = header_find(headers, header_count, "ce_type", e);
    if (!type || decode_type(r, type, e) < 0) goto fail;
    if (header_text(headers, header_count, "ce_specversion", version, sizeof version, e) < 0)
        goto fail;
    if (strcmp(version, "1.0")) {
        err_set(e, ERR_LOST, "header ce_specversion is \"%s\", expected 1.0", version);
        goto fail;
    }
    if (header_id(headers, header_count, "ce_id", r->job_id, sizeof r->job_id, e) < 0 ||
        header_count_of(headers, header_count, "tw_epoch", &r->epoch, e) < 0)
        goto fail;
    int bad = r->barrier ? decode_barrier(r, headers, header_count, size, e)
                         : decode_outcome(r, headers, header_count, value, size, e);
    if (bad < 0 || (!r->barrier && check_place(r, model, stream, e) < 0)) goto fail;
    return r;
fail:
    result_free(r);
    return NULL;
}

bool reading_accepts(struct reading *rd, const struct result *r)
{
    if (r->epoch < rd->max_epoch && !mutation("reading_rule")) {
        rd->fenced++;
        return false;
    }
    rd->max_epoch = r->epoch;
    return true;
}
