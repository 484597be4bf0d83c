/* cold.h - results that Redis does not have: Postgres knows where in Kafka each lies.
 *
 * Many at a time: one query for all ids, one pass over each partition.  What was read is put back
 * into Redis, so that the next poll finds it there.  One thread at a time. */
#ifndef API_COLD_H
#define API_COLD_H

#include <stdbool.h>
#include "api/conf.h"
#include "base/err.h"
#include "store/store.h"

#define COLD_IDS_MAX  256  /* looked up at once */
#define COLD_FIRST_MS 1000 /* so long a poll waits before Redis is not believed alone */
#define COLD_EVERY_MS 5000 /* and again, while it waits */

struct cold;

struct cold *cold_create(const struct gateway_conf *conf, struct err *e);
void cold_free(struct cold *c); /* NULL is fine */

struct cold_asker {
    bool (*wanted)(void *arg, const char *id); /* does somebody still wait? */
    /* f is lent; NULL: the result was decided, and the log has deleted it since */
    void (*found)(void *arg, const char *id, const struct future *f);
    void *arg;
};

/* ids: up to COLD_IDS_MAX as a Postgres array, {id,id}.  Returns how many were found or are gone;
 * -1: Postgres or Kafka is away, those before were told. */
int cold_look_up(struct cold *c, const char *ids, const struct cold_asker *asker,
                 struct err *e) WARN_UNUSED;

#endif
