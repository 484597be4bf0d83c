/* files.h - inside the engine: whole files and JSON from them, bounded before they are read. */
#ifndef ENGINE_FILES_H
#define ENGINE_FILES_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

#define FILE_CONFIG_MAX     ((size_t)1 << 20) /* config.json and its kin */
#define FILE_JSON_DEPTH_MAX 32

/* "dir/name" into out (size bytes); -1 with ERR_USER when it does not fit. */
int file_path(char *out, size_t size, const char *dir, const char *name, struct err *e) WARN_UNUSED;

bool file_exists(const char *path);

/* The whole of a regular file; the caller frees it.  NULL: ERR_USER when it is absent, no regular
 * file or larger than size_max, ERR_RETRY for I/O and memory. */
void *file_read(const char *path, size_t size_max, size_t *size, struct err *e);

/* Writes name.tmp beside path, syncs it and renames it to path. */
int file_write(const char *path, const void *bytes, size_t size, struct err *e) WARN_UNUSED;

/* Makes renames in dir, or dir's own entry, last. */
int file_sync_dir(const char *dir, struct err *e) WARN_UNUSED;

/* JSON object from bytes: depth bounded, duplicate keys and trailing text refused.  what names it
 * in the error (ERR_USER).  NULL on failure. */
json_t *file_json(const char *bytes, size_t size, int depth_max, const char *what, struct err *e);

/* file_read() and file_json() in one. */
json_t *file_json_read(const char *path, size_t size_max, struct err *e);

#endif
