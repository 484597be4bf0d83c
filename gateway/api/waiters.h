/* waiters.h - parked polls: who waits for which future, and who wakes them.
 *
 * Three ways lead to an answer, in order of speed: the `done` stream in Redis names a settled
 * future; parked ids are asked for again every SWEEP_MS; and, when Redis does not know, Postgres
 * tells where in Kafka the result lies (the cold path, cold.h).  Redis may be empty or away: then
 * polls are held and answered from the log; what the log has deleted is answered with 410.  A poll that is not answered in its time gets "try again"; one
 * whose client has gone is dropped. */
#ifndef API_WAITERS_H
#define API_WAITERS_H

#include "api/answer.h"
#include "api/gateway.h"
#include "api/gather.h"
#include "wire/kind.h"

#define SWEEP_MS       500
#define SWEEP_IDS_MAX  1024 /* asked for in one sweep; the next one goes on from there */
#define PEERS_EVERY_MS 2000

struct waiters;

/* gather and flight are told of every future that is settled, quota knows why an account is held
 * up; all three must outlive it. */
struct waiters *waiters_create(const struct gateway_conf *conf, struct gather *gather,
                               struct quota *quota, struct flight *flight, struct err *e);
void waiters_free(struct waiters *w);

/* Takes r: it will be answered.  id was checked to be of that account, the caller's; model is the
 * base model that it waits for, "" when that is not at hand. */
void waiters_park(struct waiters *w, struct http_request *r, const char *id, enum job_kind kind,
                  struct manner manner, const char *account, const char *model);
int waiters_parked(struct waiters *w);

/* Answers everything that is parked, and from now on everything at once, with "try again". */
void waiters_drain(struct waiters *w);

#endif
