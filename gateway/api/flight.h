/* flight.h - the jobs that this gateway let in and that are not decided yet, and how many tokens
 * each account has in them.
 *
 * Whoever has as many as he may is told to come back, but never in a way that stops his own work.
 * A run's jobs are executed by number, and a client may send later numbers first and the first one
 * only when those are acknowledged; so as long as a number below one that was let in is missing
 * here, or it is not known whether one is, every call of that run is let in.  And whoever has
 * nothing in flight is always let in, so that one job larger than the limit can run.
 *
 * Every end of a job releases its tokens: most are told of at once; of the others Postgres is asked,
 * which knows each outcome and, for a record that nobody could read and that has none (it is in the
 * dlq), how far its shard's log is done with.
 *
 * It counts this gateway's jobs and forgets them when the process ends: a limit is a fence
 * against floods, not a bill.  Bounded: beyond FLIGHT_JOBS_MAX jobs are let in uncounted.  Safe
 * from any thread; the clock is the caller's. */
#ifndef API_FLIGHT_H
#define API_FLIGHT_H

#include <stdbool.h>
#include <stdint.h>
#include "api/owner.h"
#include "wire/job.h"

#define FLIGHT_JOBS_MAX 65536
#define FLIGHT_RUNS_MAX 16384 /* whose numbers are remembered */
#define FLIGHT_CHECK_MS 15000 /* in flight for so long, a job is asked for in Postgres, and again */
#define FLIGHT_CHECK_MAX 256

struct flight;

struct flight *flight_create(struct err *e);
void flight_free(struct flight *f); /* NULL is fine */

/* How many tokens an account may have in flight, 0: no limit, and how many it has at other gateways.
 * Those count for samples only: a training call may be what a job over there waits for, and which
 * numbers of a run came there is not known here. */
struct flight_room {
    int64_t max, elsewhere;
};

/* Lets the job in, of that base model, and counts its tokens, or says no.  A job that is in flight
 * already is the same one. */
bool flight_admit(struct flight *f, const struct job *job, const char *model,
                  struct flight_room room, int64_t now_ms);
/* It lies in its log, there. */
void flight_published(struct flight *f, const char *job_id, int64_t offset);

/* Was that number of that run let in here, or decided?  false: not, or not known. */
bool flight_knows(struct flight *f, const char *run, int64_t seq);

/* It is decided.  Ids that are not in flight here are fine. */
void flight_settled(struct flight *f, const char *job_id);
/* It could not be published, and the client will repeat it; or it was passed over. */
void flight_dropped(struct flight *f, const char *job_id);

/* Up to FLIGHT_CHECK_MAX jobs that are due to be asked for, as JSON in a malloc'ed text,
 * [{"id", "model", "stream", "partition", "at"}], at: its offset, null when that is not known; NULL:
 * none.  They are due again after another FLIGHT_CHECK_MS. */
char *flight_due(struct flight *f, int64_t now_ms);

int64_t flight_tokens(struct flight *f, const char *account); /* that it has in flight */
int flight_jobs(struct flight *f);                            /* with tokens, of all accounts */

/* Up to max accounts that have tokens in flight, and how many; the next call goes on behind them.
 * Returns how many accounts. */
struct flight_holding {
    char account[TENANT_SIZE];
    int64_t tokens;
};
int flight_holdings(struct flight *f, struct flight_holding *out, int max);

#endif
