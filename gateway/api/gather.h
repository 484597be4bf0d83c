/* gather.h - polls of a whole sampling session (retrieve_futures): which of its samples are done.
 *
 * All results of a sampler lie in one partition of its results topic, so the cursor that a client
 * keeps is an offset there: it outlives this gateway, Redis and the client.  What Redis does not
 * know any more comes from Postgres, as far as billing has read; a cursor never passes an offset
 * below which something may be missing. */
#ifndef API_GATHER_H
#define API_GATHER_H

#include "api/owner.h"

#define COMPLETIONS_MAX 1000 /* in one answer */

struct gather;

struct gather *gather_create(const struct gateway_conf *conf, struct err *e);
void gather_free(struct gather *g); /* NULL is fine; what is parked is answered */

struct gathering {
    char sampler[ID_SIZE], topic[TOPIC_SIZE];
    int partition;
    int64_t clone;  /* only samples whose number divided by CLONE_SEQS is this */
    int64_t cursor; /* the next offset that is new to the client */
};
#define CLONE_SEQS 1000000000

/* Takes r: answered when something is new, or after wait_ms with nothing. */
void gather_park(struct gather *g, struct http_request *r, const struct gathering *what,
                 int64_t wait_ms);
/* The future of that id was settled; cheap when nobody waits. */
void gather_note(struct gather *g, const char *id);
/* Answers everything that is parked, and from now on everything at once. */
void gather_drain(struct gather *g);

#endif
