/* folder.h - folders of the blob store: made with their parents, removed with what is in them. */
#ifndef WORKER_FOLDER_H
#define WORKER_FOLDER_H

#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

#define FOLDER_PATH_MAX 1024

/* Fine when it is there already. */
int folder_make(const char *path, struct err *e) WARN_UNUSED;
int folder_make_parent(const char *path, struct err *e) WARN_UNUSED;
/* It is still wanted, though no row names it yet (sweep.h).  ERR_RETRY: it is not there. */
int folder_touch(const char *path, struct err *e) WARN_UNUSED;
/* Fine when there is none. */
int folder_remove(const char *path, struct err *e) WARN_UNUSED;

/* Removes every entry of path of which keep(arg, its name) is false. */
int folder_keep_only(const char *path, bool (*keep)(const void *arg, const char *name), const void *arg,
                     struct err *e) WARN_UNUSED;

/* An id as a folder's name: ':' becomes '_'.  Ids have no '/' (wire/text.h). */
void folder_name(char *out, size_t size, const char *id);

#endif
