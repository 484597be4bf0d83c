/* outcome.c - see outcome.h. */
#include "outcome.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "money.h"

static_assert(USAGE_TOKENS_MAX == JOB_TOKENS_MAX, "what is a record can be charged");

static void fill(struct outcome *out, const struct bus_message *m, const struct result *r)
{
    memset(out, 0, sizeof *out);
    memcpy(out->job_id, r->job_id, sizeof out->job_id);
    memcpy(out->account, r->tenant, sizeof out->account);
    memcpy(out->parent, r->parent, sizeof out->parent);
    memcpy(out->digest, r->digest, sizeof out->digest);
    out->kind = r->kind;
    out->seq = r->seq;
    out->status = r->status;
    out->tokens[USAGE_PREFILL] = r->usage.prefill;
    out->tokens[USAGE_SAMPLE] = r->usage.sample;
    out->tokens[USAGE_TRAIN] = r->usage.train;
    out->offset = m->offset;
    out->decided_ms = m->append_ms;
}

enum outcome_read outcome_read(const struct bus_message *m, const char *model, enum stream stream,
                               struct reading *rd, struct outcome *out, struct err *e)
{
    struct result *r = result_decode(m->headers, m->header_count, m->value, m->size, model,
                                     stream, e);
    if (!r) return OUTCOME_BAD;
    enum outcome_read got = OUTCOME_READ;
    if (!reading_accepts(rd, r))
        got = OUTCOME_FENCED;
    else if (r->barrier)
        got = OUTCOME_BARRIER;
    else
        fill(out, m, r);
    result_free(r);
    return got;
}

int outcome_line(const struct outcome *o, const char *model, const char *topic, int partition,
                 struct buf *out, struct err *e)
{
    char when[32];
    return buf_printf(out, e,
                      "%s\t%s\t%s\t%s\t%s\t%" PRId64 "\t%s\t%" PRId64 "\t%" PRId64 "\t%" PRId64
                      "\t%s\t%s\t%d\t%" PRId64 "\t%s",
                      o->job_id, o->account, model, o->parent, job_kind_name(o->kind), o->seq,
                      result_status_name(o->status), o->tokens[USAGE_PREFILL],
                      o->tokens[USAGE_SAMPLE], o->tokens[USAGE_TRAIN], o->digest, topic, partition,
                      o->offset, clock_rfc3339(o->decided_ms, when));
}
