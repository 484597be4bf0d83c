/* loaded.c - see loaded.h. */
#include "loaded.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/blobs.h"
#include "folder.h"
#include "worker.h"

#define SHA_SIZE    64
#define PREFIX_SIZE 64

/* What the names of the load's folders of that epoch begin with. */
static void prefix_of(const struct task *t, int64_t epoch, char out[PREFIX_SIZE])
{
    snprintf(out, PREFIX_SIZE, "%" PRId64 "-%" PRId64 "-load-", t->job->seq, epoch);
}

static void home_of(const struct task *t, char *out, size_t size)
{
    char run[ID_SIZE];
    folder_name(run, sizeof run, t->run->id);
    snprintf(out, size, "snapshots/%s", run);
}

static bool is_other(const void *prefix, const char *name)
{
    return strncmp(name, prefix, strlen(prefix)) != 0;
}

int loaded_keep(struct worker *w, const struct task *t, const char *dir, const char *sha256,
                char *path, size_t size, struct err *e)
{
    char home[FOLDER_PATH_MAX / 2], whole[FOLDER_PATH_MAX], to[FOLDER_PATH_MAX], prefix[PREFIX_SIZE];
    home_of(t, home, sizeof home);
    prefix_of(t, t->shard->epoch, prefix);
    snprintf(whole, sizeof whole, "%s/%s", w->conf->data, home);
    snprintf(to, sizeof to, "%s/%s%s", home, prefix, sha256);
    /* An attempt of ours that was put off may have read another version. */
    if (folder_make(whole, e) < 0 || folder_keep_only(whole, is_other, prefix, e) < 0) return -1;
    snprintf(path, size, "%s/%s", w->conf->data, to);
    return blobs_link(w->conf->data, dir, to, e);
}

int loaded_find(struct worker *w, const struct task *t, char *path, size_t size, char sha256[65],
                struct err *e)
{
    char home[FOLDER_PATH_MAX / 2], whole[FOLDER_PATH_MAX], prefix[PREFIX_SIZE];
    home_of(t, home, sizeof home);
    prefix_of(t, t->known->epoch, prefix);
    snprintf(whole, sizeof whole, "%s/%s", w->conf->data, home);
    DIR *folder = opendir(whole);
    if (!folder && errno == ENOENT) return 0;
    if (!folder)
        return err_set(e, ERR_RETRY, "could not read folder \"%s\": %s", whole, strerror(errno));
    int found = 0;
    for (struct dirent *entry; !found && (entry = readdir(folder));) {
        const char *sha = entry->d_name + strlen(prefix);
        if (is_other(prefix, entry->d_name) || strlen(sha) != SHA_SIZE) continue;
        memcpy(sha256, sha, SHA_SIZE + 1);
        snprintf(path, size, "%s/%s", whole, entry->d_name);
        found = 1;
    }
    closedir(folder);
    return found;
}

int64_t loaded_seq(const char *name)
{
    int64_t seq, epoch;
    int end = 0;
    if (sscanf(name, "%" SCNd64 "-%" SCNd64 "-load-%n", &seq, &epoch, &end) != 2 || !end) return -1;
    return seq;
}
