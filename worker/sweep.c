/* sweep.c - see sweep.h. */
#include "sweep.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include "base/clock.h"
#include "base/log.h"
#include "folder.h"
#include "loaded.h"
#include "map.h"
#include "worker.h"

#define LOOK_MS     200    /* between two folders of a round */
#define FOLDERS_MAX 100000 /* of a round; the rest come in the next */

/* A folder that no row names, so far. */
struct nameless {
    char *dir;
    struct timespec changed; /* compared, never counted with */
    int64_t since_ms;        /* our clock */
    int64_t round;           /* that saw it last */
};

struct sweep {
    char **folders; /* below the data folder, still to be looked at */
    int count, room;
    int64_t round_ms, looked_ms, round;
    int removed;
    struct map *nameless; /* owned */
};

struct sweep *sweep_create(struct err *e)
{
    struct sweep *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "out of memory for the sweeper");
        return NULL;
    }
    s->nameless = map_create(e);
    if (s->nameless) return s;
    free(s);
    return NULL;
}

static void nameless_free(struct sweep *s, struct nameless *it)
{
    if (!it) return;
    map_take(s->nameless, it->dir);
    free(it->dir);
    free(it);
}

/* Forgets those that this round did not see any more. */
static void nameless_trim(struct sweep *s, int64_t round)
{
    size_t at = 0;
    for (struct nameless *it; (it = map_next(s->nameless, &at));)
        if (it->round < round) nameless_free(s, it);
}

static void folders_clear(struct sweep *s)
{
    while (s->count)
        free(s->folders[--s->count]);
}

void sweep_free(struct sweep *s)
{
    if (!s) return;
    folders_clear(s);
    free(s->folders);
    nameless_trim(s, INT64_MAX);
    map_free(s->nameless);
    free(s);
}

/* ---------------------------------------------------------------- a round */

static bool folders_add(struct sweep *s, const char *path)
{
    if (s->count == FOLDERS_MAX) return false;
    if (s->count == s->room) {
        int room = s->room ? 2 * s->room : 64;
        char **grown = realloc(s->folders, (size_t)room * sizeof *grown);
        if (!grown) return false;
        s->folders = grown;
        s->room = room;
    }
    s->folders[s->count] = strdup(path);
    return s->folders[s->count] && ++s->count;
}

/* Adds every folder `depth` levels below root. */
static void find(struct sweep *s, const char *data, const char *root, int depth)
{
    char path[FOLDER_PATH_MAX], below[FOLDER_PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", data, root) >= sizeof path) return;
    DIR *dir = opendir(path);
    if (!dir) return; /* nothing was ever written there */
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        if ((size_t)snprintf(below, sizeof below, "%s/%s", root, entry->d_name) >= sizeof below)
            continue;
        if (depth > 1)
            find(s, data, below, depth - 1);
        else if (!folders_add(s, below))
            break;
    }
    closedir(dir);
}

/* 1: a row names it (or may yet), 0: none, -1. */
static int in_rows(struct worker *w, const char *dir, struct err *e)
{
    return db_queryf(w->db, NULL, e,
                     "SELECT 1 FROM run_snapshots WHERE dir = $1 UNION ALL"
                     " SELECT 1 FROM checkpoints WHERE dir = $1 LIMIT 1",
                     dir, NULL);
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

/* Has it been without a row, and untouched, for as long as an attempt may take? */
static bool long_nameless(struct worker *w, const char *dir, const struct stat *st)
{
    struct sweep *s = w->sweep;
    struct err ignored = {0};
    int64_t now_ms = clock_mono_ms();
    struct nameless *it = map_get(s->nameless, dir);
    if (it) {
        it->round = s->round;
        if (same_time(&it->changed, &st->st_mtim))
            return now_ms - it->since_ms > w->conf->sweep_age_s * 1000;
        it->changed = st->st_mtim;
        it->since_ms = now_ms;
        return false;
    }
    it = calloc(1, sizeof *it);
    if (it) it->dir = strdup(dir);
    if (it && it->dir && map_put(s->nameless, dir, it, &ignored) == 0) {
        it->changed = st->st_mtim;
        it->since_ms = now_ms;
        it->round = s->round;
        return false;
    }
    if (it) free(it->dir); /* short of memory: another round will do */
    free(it);
    return false;
}

/* -1: the database or the disk is away, and the round with it. */
static int consider(struct worker *w, const char *dir, const char *path, struct err *e)
{
    struct stat st;
    if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)) return 0;
    bool due = long_nameless(w, dir, &st);
    int named = in_rows(w, dir, e);
    if (named < 0) return -1;
    if (!named && !due) return 0;
    nameless_free(w->sweep, map_get(w->sweep->nameless, dir));
    if (named) return 0;
    if (folder_remove(path, e) < 0) return -1;
    w->sweep->removed++;
    return 0;
}

static int look_at(struct worker *w, const char *folder)
{
    char path[FOLDER_PATH_MAX], dir[FOLDER_PATH_MAX], inside[FOLDER_PATH_MAX];
    struct err e = {0};
    if ((size_t)snprintf(path, sizeof path, "%s/%s", w->conf->data, folder) >= sizeof path) return 0;
    DIR *d = opendir(path);
    if (!d) return 0;
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(d));) {
        if (entry->d_name[0] == '.' || loaded_seq(entry->d_name) >= 0) continue;
        if ((size_t)snprintf(dir, sizeof dir, "%s/%s", folder, entry->d_name) >= sizeof dir ||
            (size_t)snprintf(inside, sizeof inside, "%s/%s", w->conf->data, dir) >= sizeof inside)
            continue;
        rc = consider(w, dir, inside, &e);
    }
    closedir(d);
    if (rc < 0) log_warn("sweep.postponed", "folder=%s why=\"%s\"", folder, e.text);
    return rc;
}

void sweep_look(struct worker *w, int64_t now_ms)
{
    struct sweep *s = w->sweep;
    if (now_ms - s->looked_ms < LOOK_MS) return;
    s->looked_ms = now_ms;
    if (!s->count && now_ms - s->round_ms >= w->conf->sweep_every_ms) {
        s->round_ms = now_ms;
        s->round++;
        find(s, w->conf->data, "snapshots", 1);
        find(s, w->conf->data, "checkpoints", 2);
    }
    if (!s->count) return;
    char *folder = s->folders[--s->count];
    bool whole = look_at(w, folder) == 0;
    free(folder);
    if (!whole) folders_clear(s);
    if (s->count) return;
    if (whole) nameless_trim(s, s->round);
    if (s->removed) log_info("sweep.done", "removed=%d", s->removed);
    s->removed = 0;
}
