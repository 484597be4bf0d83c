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
#include "worker.h"

#define LOOK_MS     200    /* between two folders of a round */
#define FOLDERS_MAX 100000 /* of a round; the rest come in the next */

struct sweep {
    char **folders; /* below the data folder, still to be looked at */
    int count, room;
    int64_t round_ms, looked_ms;
    int removed;
};

struct sweep *sweep_create(struct err *e)
{
    struct sweep *s = calloc(1, sizeof *s);
    if (!s) err_set(e, ERR_RETRY, "out of memory for the sweeper");
    return s;
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

static bool old(const struct worker *w, const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode) &&
           time(NULL) - st.st_mtime > w->conf->sweep_age_s;
}

/* 1: a row names it (or may yet), 0: none, -1. */
static int in_rows(struct worker *w, const char *dir, struct err *e)
{
    return db_queryf(w->db, NULL, e,
                     "SELECT 1 FROM run_snapshots WHERE dir = $1 UNION ALL"
                     " SELECT 1 FROM checkpoints WHERE dir = $1 LIMIT 1",
                     dir, NULL);
}

/* -1: the database or the disk is away, and the round with it. */
static int look_at(struct worker *w, const char *folder)
{
    char path[FOLDER_PATH_MAX], dir[FOLDER_PATH_MAX], inside[FOLDER_PATH_MAX];
    struct err e = {0};
    if ((size_t)snprintf(path, sizeof path, "%s/%s", w->conf->data, folder) >= sizeof path) return 0;
    DIR *d = opendir(path);
    if (!d) return 0;
    for (struct dirent *entry; e.kind == ERR_NONE && (entry = readdir(d));) {
        if (entry->d_name[0] == '.' || loaded_seq(entry->d_name) >= 0) continue;
        if ((size_t)snprintf(dir, sizeof dir, "%s/%s", folder, entry->d_name) >= sizeof dir ||
            (size_t)snprintf(inside, sizeof inside, "%s/%s", w->conf->data, dir) >= sizeof inside)
            continue;
        if (!old(w, inside) || in_rows(w, dir, &e) != 0) continue;
        if (folder_remove(inside, &e) == 0) w->sweep->removed++;
    }
    closedir(d);
    if (!e.kind) return 0;
    log_warn("sweep.postponed", "folder=%s why=\"%s\"", folder, e.text);
    return -1;
}

void sweep_look(struct worker *w, int64_t now_ms)
{
    struct sweep *s = w->sweep;
    if (now_ms - s->looked_ms < LOOK_MS) return;
    s->looked_ms = now_ms;
    if (!s->count && now_ms - s->round_ms >= w->conf->sweep_every_ms) {
        s->round_ms = now_ms;
        find(s, w->conf->data, "snapshots", 1);
        find(s, w->conf->data, "checkpoints", 2);
    }
    if (!s->count) return;
    char *folder = s->folders[--s->count];
    if (look_at(w, folder) < 0) folders_clear(s);
    free(folder);
    if (s->count) return;
    if (s->removed) log_info("sweep.done", "removed=%d", s->removed);
    s->removed = 0;
}
