/* job.h - one record of <model>.train.jobs or <model>.sample.jobs.
 *
 * The envelope travels as record headers (CloudEvents binary mode), the value is the payload:
 *   ce_specversion 1.0 · ce_id job id · ce_type tinworks.job.<kind> · ce_source publisher
 *   content-type application/x-protobuf | application/json
 *   tw_tenant · tw_run (run or sampler id; also the record key) · tw_seq · tw_tokens (an estimate for
 *   planning) · tw_digest (SHA-256 of the value, hex)
 * docs/protocol.md is the full contract, payloads included (payload.h decodes them). */
#ifndef WIRE_JOB_H
#define WIRE_JOB_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "base/header.h"
#include "wire/ids.h"

#define WIRE_HEADERS_MAX  20
#define JOB_PAYLOAD_MAX   (16u << 20)

enum content { CONTENT_JSON, CONTENT_PROTOBUF };
const char *content_type_name(enum content c); /* "application/json", "application/x-protobuf" */

struct job {
    char id[ID_SIZE];
    enum job_kind kind;
    char tenant[TENANT_SIZE];
    char parent[ID_SIZE]; /* run or sampler id */
    int64_t seq;
    int64_t tokens;
    char source[64];
    enum content content;
    char *payload; /* owned; size bytes and a NUL */
    size_t size;
    /* where it lies; filled by who read it from the log, -1 before */
    int partition;
    int64_t offset;
};

/* Copies everything.  source is "gateway" and tokens 0 until the caller says otherwise.  NULL on failure. */
struct job *job_create(const char *id, enum job_kind kind, const char *tenant, const char *parent, int64_t seq,
                       enum content content, const void *payload, size_t size, struct err *e);
void job_free(struct job *job); /* NULL is fine */

/* The envelope as headers.  They point into job and into scratch, which must live as long as they do.
 * Returns the count. */
struct job_scratch {
    char seq[24], tokens[24], digest[65], type[64];
};
int job_headers(const struct job *job, struct job_scratch *scratch, struct header out[WIRE_HEADERS_MAX]);

/* Decodes one record.  The publisher is trusted to be authorized but not to be right: a missing header, an
 * unknown kind, a bad number, a digest that does not fit, a kind on the wrong stream are ERR_USER and name the
 * header, the value and what was expected (such a record goes to the dlq).  ERR_LOST: of a newer version, which must
 * not be skipped: the reader stops and is to be updated. */
struct job *job_decode(const struct header *headers, int header_count, const void *value, size_t size,
                       enum stream stream, struct err *e);

#endif
