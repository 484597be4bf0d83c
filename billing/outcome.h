/* outcome.h - a result record as billing keeps it: who, what, how many tokens, where it lies. */
#ifndef BILLING_OUTCOME_H
#define BILLING_OUTCOME_H

#include <stdint.h>
#include "base/buf.h"
#include "base/err.h"
#include "bus/bus.h"
#include "price.h"
#include "wire/result.h"

struct outcome {
    char job_id[ID_SIZE];
    char account[TENANT_SIZE];
    char parent[ID_SIZE];
    char digest[65];
    enum job_kind kind;
    int64_t seq;
    enum result_status status;
    int64_t tokens[USAGE_KINDS];
    int part; /* index of its partition with whoever read it */
    int64_t offset;
    int64_t decided_ms; /* the record's append time */
};

enum outcome_read {
    OUTCOME_READ,    /* *out is filled                                   */
    OUTCOME_BARRIER, /* a take-over; rd knows its epoch                  */
    OUTCOME_FENCED,  /* from an epoch that had ended: nobody may hear it */
    OUTCOME_BAD,     /* no result record; e says why: for the dlq        */
};

/* Reads one record of <model>'s results of that stream under the reading rule.  Whether the job has
 * an outcome already is for the database to say. */
enum outcome_read outcome_read(const struct bus_message *m, const char *model, enum stream stream,
                               struct reading *rd, struct outcome *out, struct err *e);

/* "job_id, account_id, ..." and one line of COPY's text format for it, without the final line feed.
 * Ids, models and topics cannot hold what COPY would have escaped (wire checks them). */
#define OUTCOME_COLUMNS                                                                            \
    "job_id, account_id, model, parent_id, kind, seq, status, prefill_tokens, sample_tokens, "     \
    "train_tokens, digest, topic, partition, log_offset, decided_at"
/* The same as a table's columns. */
#define OUTCOME_TABLE                                                                              \
    "job_id text, account_id text, model text, parent_id text, kind text, seq bigint, "            \
    "status text, prefill_tokens bigint, sample_tokens bigint, train_tokens bigint, digest text, " \
    "topic text, partition integer, log_offset bigint, decided_at timestamptz"
int outcome_line(const struct outcome *o, const char *model, const char *topic, int partition,
                 struct buf *out, struct err *e) WARN_UNUSED;

#endif
