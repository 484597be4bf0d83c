/* result.h - one record of <model>.train.results or <model>.sample.results: the commit point of a job.
 *
 * It carries status, payload and usage together, so nothing else has to agree with it.
 *   ce_specversion 1.0 · ce_id job id · ce_type tinworks.result.<kind> · ce_source worker
 *   tw_tenant · tw_run · tw_seq · tw_epoch · tw_status ok|failed|cancelled · tw_model
 *   tw_prefill · tw_sample · tw_train (tokens; all 0 unless ok) · tw_digest · content-type
 * A barrier (ce_type tinworks.barrier) carries tw_epoch, tw_owner, tw_build, tw_numerics and an empty value.
 *
 * The reading rule, for everyone who reads a results partition: keep the highest epoch seen; skip records of
 * a lower epoch; of the rest the first record of a job id is official, later ones are skipped. */
#ifndef WIRE_RESULT_H
#define WIRE_RESULT_H

#include <stdbool.h>
#include "wire/job.h"

enum result_status { RESULT_OK, RESULT_FAILED, RESULT_CANCELLED };
const char *result_status_name(enum result_status s); /* "ok", "failed", "cancelled" */

#define USAGE_TOKENS_MAX 2147483647 /* of one kind in one job */
struct usage {
    int64_t prefill, sample, train; /* tokens */
};

struct result {
    bool barrier;
    int64_t epoch;
    char job_id[ID_SIZE];
    enum job_kind kind;
    char tenant[TENANT_SIZE];
    char parent[ID_SIZE];
    char model[128];
    int64_t seq;
    enum result_status status;
    struct usage usage;
    enum content content;
    char *payload; /* owned; failed: JSON {"error": text, "category": "user"|"server"} */
    size_t size;
    char digest[65];
    char owner[64], build[64], numerics[128]; /* barrier only */
};

struct result *result_create(const struct job *job, const char *model, int64_t epoch, struct err *e);
struct result *result_create_barrier(int64_t epoch, const char *owner, const char *build, const char *numerics,
                                     struct err *e);
void result_free(struct result *r);

/* Takes the payload (malloc'ed) and sets status ok, usage and digest. */
void result_set_ok(struct result *r, enum content content, char *take_payload, size_t size, struct usage usage);
/* Sets status failed, usage 0 and a JSON payload with text and category ("user", "server"). */
int result_set_failed(struct result *r, const char *category, const char *text, struct err *e) WARN_UNUSED;
/* Is r a failure of category "server": given up, not wrong? */
bool result_gave_up(const struct result *r);
/* The same with status cancelled and category "user". */
int result_set_cancelled(struct result *r, const char *text, struct err *e) WARN_UNUSED;

struct result_scratch {
    char seq[24], epoch[24], prefill[24], sample[24], train[24], type[64];
};
int result_headers(const struct result *r, struct result_scratch *scratch, struct header out[WIRE_HEADERS_MAX]);

/* Every reader decodes with this, so that all agree on what is a record: what is not is ERR_USER, and skipped by all
 * before the reading rule sees it.  model and stream are those of the log that it lies in; a result of another is no
 * record there.  ERR_LOST: of a newer version, which must not be skipped: the reader stops and is to be updated. */
struct result *result_decode(const struct header *headers, int header_count, const void *value, size_t size,
                             const char *model, enum stream stream, struct err *e);

/* The reading rule as a value: one per results partition.  Deduplication by job id is the caller's. */
struct reading {
    int64_t max_epoch;
    int64_t fenced; /* records skipped so far */
};
/* true: the record counts (a barrier counts and raises max_epoch). */
bool reading_accepts(struct reading *rd, const struct result *r);

#endif
