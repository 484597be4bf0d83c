/* job.c - see job.h. */
#include "wire/job.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "seal/seal.h"
#include "wire/text.h"

#define TYPE_PREFIX "tinworks.job."

const char *content_type_name(enum content c)
{
    return c == CONTENT_PROTOBUF ? "application/x-protobuf" : "application/json";
}

static int check_payload_size(size_t size, struct err *e)
{
    if (size <= JOB_PAYLOAD_MAX) return 0;
    return err_set(e, ERR_USER, "payload of %zu bytes, expected at most %u", size, JOB_PAYLOAD_MAX);
}

static int copy_id(char *out, size_t size, const char *what, const char *id, struct err *e)
{
    if (!text_is_id(id, size))
        return err_set(e, ERR_USER, "%s \"%.200s\" is not an id of at most %zu characters", what,
                       id, size - 1);
    memcpy(out, id, strlen(id) + 1);
    return 0;
}

struct job *job_create(const char *id, enum job_kind kind, const char *tenant, const char *parent,
                       int64_t seq, enum content content, const void *payload, size_t size,
                       struct err *e)
{
    struct job *job = NULL;
    if (check_payload_size(size, e) < 0) return NULL;
    if (seq < 0 || (unsigned)kind >= JOB_KIND_COUNT) {
        err_set(e, ERR_USER, "no job has kind %d and number %" PRId64, (int)kind, seq);
        return NULL;
    }
    job = calloc(1, sizeof *job);
    if (!job) {
        err_set(e, ERR_RETRY, "out of memory for a job");
        return NULL;
    }
    job->kind = kind;
    job->seq = seq;
    job->content = content;
    job->size = size;
    job->partition = -1;
    job->offset = -1;
    strcpy(job->source, "gateway");
    if (copy_id(job->id, sizeof job->id, "job id", id, e) < 0) goto fail;
    if (copy_id(job->tenant, sizeof job->tenant, "tenant", tenant, e) < 0) goto fail;
    if (copy_id(job->parent, sizeof job->parent, "run or sampler", parent, e) < 0) goto fail;
    job->payload = bytes_copy(payload, size, e);
    if (!job->payload) goto fail;
    return job;
fail:
    job_free(job);
    return NULL;
}

void job_free(struct job *job)
{
    if (!job) return;
    free(job->payload);
    free(job);
}

int job_headers(const struct job *job, struct job_scratch *scratch,
                struct header out[WIRE_HEADERS_MAX])
{
    int n = 0;
    snprintf(scratch->seq, sizeof scratch->seq, "%" PRId64, job->seq);
    snprintf(scratch->tokens, sizeof scratch->tokens, "%" PRId64, job->tokens);
    snprintf(scratch->type, sizeof scratch->type, TYPE_PREFIX "%s", job_kind_name(job->kind));
    seal_sha256_hex(job->payload, job->size, scratch->digest);
    out[n++] = (struct header){"ce_specversion", "1.0"};
    out[n++] = (struct header){"ce_id", job->id};
    out[n++] = (struct header){"ce_type", scratch->type};
    out[n++] = (struct header){"ce_source", job->source};
    out[n++] = (struct header){"content-type", content_type_name(job->content)};
    out[n++] = (struct header){"tw_tenant", job->tenant};
    out[n++] = (struct header){"tw_run", job->parent};
    out[n++] = (struct header){"tw_seq", scratch->seq};
    out[n++] = (struct header){"tw_tokens", scratch->tokens};
    out[n++] = (struct header){"tw_digest", scratch->digest};
    assert(n <= WIRE_HEADERS_MAX);
    return n;
}

/* ce_type and content-type, and whether they belong together and here. */
static int decode_kind(struct job *job, const struct header *headers, int count, enum stream stream,
                       struct err *e)
{
    size_t prefix = strlen(TYPE_PREFIX);
    const char *type = header_find(headers, count, "ce_type", e);
    if (!type) return -1;
    job->kind = strncmp(type, TYPE_PREFIX, prefix) ? JOB_KIND_UNKNOWN : job_kind_of(type + prefix);
    if (job->kind == JOB_UNLOAD) job->kind = JOB_KIND_UNKNOWN; /* never on a log */
    if (job->kind == JOB_KIND_UNKNOWN)
        return err_set(e, ERR_USER, "header ce_type is \"%.100s\", expected %s<kind of job>", type,
                       TYPE_PREFIX);
    if (job_kind_is_train(job->kind) != (stream == STREAM_TRAIN))
        return err_set(e, ERR_USER,
                       "header ce_type is \"%.100s\", which does not belong on a %s "
                       "topic",
                       type, stream_name(stream));
    const char *content = header_find(headers, count, "content-type", e);
    if (!content) return -1;
    bool tensors = job->kind == JOB_FORWARD || job->kind == JOB_FORWARD_BACKWARD;
    if (!strcmp(content, content_type_name(CONTENT_JSON)))
        job->content = CONTENT_JSON;
    else if (tensors && !strcmp(content, content_type_name(CONTENT_PROTOBUF)))
        job->content = CONTENT_PROTOBUF;
    else
        return err_set(e, ERR_USER, "header content-type is \"%.100s\", expected %s%s", content,
                       content_type_name(CONTENT_JSON),
                       tensors ? " or application/x-protobuf" : "");
    return 0;
}

static int decode_envelope(struct job *job, const struct header *headers, int count,
                           enum stream stream, struct err *e)
{
    const char *version = header_find(headers, count, "ce_specversion", e);
    if (!version) return -1;
    if (strcmp(version, "1.0"))
        return err_set(e, ERR_LOST, "header ce_specversion is \"%.40s\", expected 1.0", version);
    if (header_id(headers, count, "ce_id", job->id, sizeof job->id, e) < 0) return -1;
    if (decode_kind(job, headers, count, stream, e) < 0) return -1;
    if (header_text(headers, count, "ce_source", job->source, sizeof job->source, e) < 0 ||
        header_id(headers, count, "tw_tenant", job->tenant, sizeof job->tenant, e) < 0 ||
        header_id(headers, count, "tw_run", job->parent, sizeof job->parent, e) < 0 ||
        header_count_of(headers, count, "tw_seq", &job->seq, e) < 0 ||
        header_count_of(headers, count, "tw_tokens", &job->tokens, e) < 0)
        return -1;
    return 0;
}

struct job *job_decode(const struct header *headers, int header_count, const void *value,
                       size_t size, enum stream stream, struct err *e)
{
    char actual[SEAL_SHA256_HEX_SIZE];
    if (check_payload_size(size, e) < 0) return NULL;
    struct job *job = calloc(1, sizeof *job);
    if (!job) {
        err_set(e, ERR_RETRY, "out of memory for a job");
        return NULL;
    }
    job->partition = -1;
    job->offset = -1;
    if (decode_envelope(job, headers, header_count, stream, e) < 0) goto fail;
    const char *digest = header_find(headers, header_count, "tw_digest", e);
    if (!digest) goto fail;
    seal_sha256_hex(value, size, actual);
    if (strcmp(digest, actual)) {
        err_set(e, ERR_USER, "header tw_digest is \"%.80s\", expected %s", digest, actual);
        goto fail;
    }
    job->size = size;
    job->payload = bytes_copy(value, size, e);
    if (!job->payload) goto fail;
    return job;
fail:
    job_free(job);
    return NULL;
}
