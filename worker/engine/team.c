/* team.c - see team.h.  A round is a number: who has not done the current one begins it. */
#include "engine/team.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

struct member {
    struct team *team;
    pthread_t thread;
    int rank;
};

struct team {
    pthread_mutex_t lock;
    pthread_cond_t begun, done;
    uint64_t round;
    int busy; /* members that are not through with the round */
    bool stop;
    team_fn *fn;
    void *arg;
    int count; /* members; rank 0 is none */
    struct member *members;
};

static void *member_main(void *arg)
{
    const struct member *m = arg;
    struct team *t = m->team;
    uint64_t seen = 0;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (t->round == seen && !t->stop)
            pthread_cond_wait(&t->begun, &t->lock);
        if (t->stop) break;
        seen = t->round;
        pthread_mutex_unlock(&t->lock);
        t->fn(t->arg, m->rank); /* neither changes before all are done */
        pthread_mutex_lock(&t->lock);
        if (--t->busy == 0) pthread_cond_signal(&t->done);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

struct team *team_create(int ranks, struct err *e)
{
    struct team *t = calloc(1, sizeof *t);
    struct member *members = calloc((size_t)ranks, sizeof *members);
    if (!t || !members) {
        free(t);
        free(members);
        err_set(e, ERR_RETRY, "out of memory for %d ranks", ranks);
        return NULL;
    }
    t->members = members;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->begun, NULL);
    pthread_cond_init(&t->done, NULL);
    for (int i = 0; i < ranks - 1; i++) {
        members[i] = (struct member){.team = t, .rank = i + 1};
        if (pthread_create(&members[i].thread, NULL, member_main, &members[i]) != 0) {
            err_set(e, ERR_RETRY, "could not start the thread of rank %d", i + 1);
            team_free(t);
            return NULL;
        }
        t->count++;
    }
    return t;
}

void team_free(struct team *t)
{
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->begun);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->count; i++)
        pthread_join(t->members[i].thread, NULL);
    pthread_cond_destroy(&t->begun);
    pthread_cond_destroy(&t->done);
    pthread_mutex_destroy(&t->lock);
    free(t->members);
    free(t);
}

void team_run(struct team *t, team_fn *fn, void *arg)
{
    if (!t) {
        fn(arg, 0);
        return;
    }
    pthread_mutex_lock(&t->lock);
    t->fn = fn;
    t->arg = arg;
    t->busy = t->count;
    t->round++;
    pthread_cond_broadcast(&t->begun);
    pthread_mutex_unlock(&t->lock);
    fn(arg, 0);
    pthread_mutex_lock(&t->lock);
    while (t->busy > 0)
        pthread_cond_wait(&t->done, &t->lock);
    pthread_mutex_unlock(&t->lock);
}
