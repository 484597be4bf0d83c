/* touched.c - see touched.h.  A small table by hash: one place a run, and who comes second to a
 * place waits for the next round. */
#include "api/touched.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLACES 1024

struct touched {
    pthread_mutex_t lock;
    int count;
    char runs[PLACES][ID_SIZE]; /* "" when free */
};

struct touched *touched_create(struct err *e)
{
    struct touched *t = calloc(1, sizeof *t);
    if (t)
        pthread_mutex_init(&t->lock, NULL);
    else
        err_set(e, ERR_RETRY, "out of memory");
    return t;
}

void touched_free(struct touched *t)
{
    if (!t) return;
    pthread_mutex_destroy(&t->lock);
    free(t);
}

void touched_add(struct touched *t, const char *run)
{
    unsigned h = 2166136261u;
    for (const char *s = run; *s; s++)
        h = (h ^ (unsigned char)*s) * 16777619u;
    char *place = t->runs[h % PLACES];
    pthread_mutex_lock(&t->lock);
    if (!*place) {
        snprintf(place, ID_SIZE, "%s", run);
        t->count++;
    }
    pthread_mutex_unlock(&t->lock);
}

/* {id,id,...}; ids hold no character that would need quotes in a Postgres array. */
static char *take_list(struct touched *t)
{
    char *list = NULL;
    pthread_mutex_lock(&t->lock);
    if (t->count) list = malloc((size_t)t->count * (ID_SIZE + 1) + 2);
    if (list) {
        char *end = list;
        for (int i = 0; i < PLACES; i++) {
            if (!*t->runs[i]) continue;
            end += sprintf(end, "%c%s", end == list ? '{' : ',', t->runs[i]);
            t->runs[i][0] = '\0';
        }
        memcpy(end, "}", 2);
        t->count = 0;
    }
    pthread_mutex_unlock(&t->lock);
    return list;
}

int touched_flush(struct touched *t, struct db *db, struct err *e)
{
    char *list = take_list(t);
    if (!list) return 0;
    int n = db_queryf(db, NULL, e,
                      "UPDATE runs SET last_request_at = now() WHERE id = ANY ($1::text[])", list,
                      NULL);
    free(list);
    return n < 0 ? -1 : 0;
}
