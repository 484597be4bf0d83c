/* parked.h - the table of parked polls: who waits for which future, and until when.
 *
 * Who takes a poll out of the table owns it and answers it; so each is answered once, however many
 * ways lead to it.  As large as the server has connections.  Safe from any thread; the clock is the
 * caller's. */
#ifndef API_PARKED_H
#define API_PARKED_H

#include "api/answer.h"
#include "api/owner.h"

struct parked {
    struct parked *next; /* in its bucket, or in a list of those taken out */
    struct http_request *r;
    struct manner manner;
    enum job_kind kind;
    char id[ID_SIZE], account[TENANT_SIZE], model[MODEL_NAME_SIZE];
    int64_t deadline_ms; /* when it is to be told "try again" */
    int64_t cold_ms;     /* when the cold path is to be asked */
};

struct parked_table;

struct parked_table *parked_create(struct err *e);
void parked_free(struct parked_table *t); /* NULL is fine; it is empty by then */

void parked_add(struct parked_table *t, struct parked *take);
int parked_count(struct parked_table *t);
bool parked_has(struct parked_table *t, const char *id);

/* All polls of one id, as a list; the caller's. */
struct parked *parked_take(struct parked_table *t, const char *id);
/* The same of all polls, or of those whose deadline is over; with look_at_peers also of those whose
 * client has gone. */
struct parked *parked_take_overdue(struct parked_table *t, int64_t now_ms, bool all,
                                   bool look_at_peers);

/* The ids of up to max polls; the next call goes on behind them.  Returns how many. */
int parked_some(struct parked_table *t, char (*ids)[ID_SIZE], int max);

/* Up to max ids whose cold_ms has come, {id,id,...} as a Postgres array: list has room for
 * max * (ID_SIZE + 1) + 2.  They are due again at again_ms; the next call goes on behind them, so
 * that with more than max due at once all get their turn.  Returns how many. */
int parked_due_for_cold(struct parked_table *t, int64_t now_ms, int64_t again_ms, int max,
                        char *list);
/* The polls of that id are due at once. */
void parked_hurry(struct parked_table *t, const char *id, int64_t now_ms);

#endif
