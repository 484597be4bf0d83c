/* submit.h - from an admitted call to a job on its run's or sampler's log.
 *
 * Ids are derived from who, what and which number, so a retry makes the same job again; the worker
 * drops copies and nothing about a request is stored here.  Each function takes the call over: the
 * client is answered after the ack. */
#ifndef API_SUBMIT_H
#define API_SUBMIT_H

#include "api/owner.h"
#include "wire/job.h"

struct submission {
    enum job_kind kind;
    int64_t seq;
    int64_t tokens; /* an estimate */
    enum content content;
    const char *payload; /* borrowed */
    size_t size;
    bool wait; /* a sample only: answer with its result, not with its request id */
};

enum http_verdict submit_train(struct call *c, const char *run, const struct run_facts *facts,
                               const struct submission *s);

/* The number seq was sent and will not come again, so it is used up on the log and its future
 * fails. */
enum http_verdict submit_reject(struct call *c, const char *run, const struct run_facts *facts,
                                int64_t seq, const char *why);

/* The answer carries one sequence id a sample. */
enum http_verdict submit_sample(struct call *c, const char *sampler,
                                const struct sampler_facts *facts, const struct submission *s,
                                int num_samples);

/* The wish that the job `id`, number seq of that sampler, need not be done. */
enum http_verdict submit_cancel(struct call *c, const char *sampler,
                                const struct sampler_facts *facts, int64_t seq, const char *id);

#endif
