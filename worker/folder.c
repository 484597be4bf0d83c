/* folder.c - see folder.h. */
#include "folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define OPEN_FILES 16

int folder_make(const char *path, struct err *e)
{
    char part[FOLDER_PATH_MAX];
    if ((size_t)snprintf(part, sizeof part, "%s", path) >= sizeof part)
        return err_set(e, ERR_BUG, "folder \"%.100s...\" has too long a name", path);
    for (char *at = part + 1;; at++) {
        if (*at && *at != '/') continue;
        char end = *at;
        *at = '\0';
        if (mkdir(part, 0750) < 0 && errno != EEXIST)
            return err_set(e, ERR_RETRY, "could not make folder \"%s\": %s", part, strerror(errno));
        *at = end;
        if (!end) return 0;
    }
}

int folder_make_parent(const char *path, struct err *e)
{
    char parent[FOLDER_PATH_MAX];
    if ((size_t)snprintf(parent, sizeof parent, "%s", path) >= sizeof parent)
        return err_set(e, ERR_BUG, "folder \"%.100s...\" has too long a name", path);
    char *slash = strrchr(parent, '/');
    if (!slash || slash == parent) return 0;
    *slash = '\0';
    return folder_make(parent, e);
}

int folder_touch(const char *path, struct err *e)
{
    if (utimensat(AT_FDCWD, path, NULL, 0) == 0) return 0;
    return err_set(e, ERR_RETRY, "could not touch folder \"%s\": %s", path, strerror(errno));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    return remove(path);
}

int folder_remove(const char *path, struct err *e)
{
    if (nftw(path, remove_one, OPEN_FILES, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT) return 0;
    return err_set(e, ERR_RETRY, "could not remove folder \"%s\": %s", path, strerror(errno));
}

int folder_keep_only(const char *path, bool (*keep)(const void *arg, const char *name),
                     const void *arg, struct err *e)
{
    DIR *dir = opendir(path);
    if (!dir)
        return err_set(e, ERR_RETRY, "could not read folder \"%s\": %s", path, strerror(errno));
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
        char inside[FOLDER_PATH_MAX];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (keep(arg, entry->d_name)) continue;
        if ((size_t)snprintf(inside, sizeof inside, "%s/%s", path, entry->d_name) < sizeof inside)
            rc = folder_remove(inside, e);
    }
    closedir(dir);
    return rc;
}

void folder_name(char *out, size_t size, const char *id)
{
    snprintf(out, size, "%s", id);
    for (; *out; out++)
        if (*out == ':') *out = '_';
}
