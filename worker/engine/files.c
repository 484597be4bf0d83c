/* files.c - see files.h. */
#include "engine/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE 4096

int file_path(char *out, size_t size, const char *dir, const char *name, struct err *e)
{
    int n = snprintf(out, size, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= size)
        return err_set(e, ERR_USER, "path \"%.80s...\" is longer than %zu bytes", dir, size - 1);
    return 0;
}

bool file_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

static int open_regular(const char *path, size_t size_max, size_t *size, struct err *e)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (fd < 0)
        return err_set(e, errno == ENOENT || errno == ENOTDIR ? ERR_USER : ERR_RETRY,
                       "could not open \"%s\": %s", path, strerror(errno));
    if (fstat(fd, &st) < 0) {
        err_set(e, ERR_RETRY, "could not stat \"%s\": %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        err_set(e, ERR_USER, "\"%s\" is not a regular file", path);
        goto fail;
    }
    if ((uint64_t)st.st_size > size_max) {
        err_set(e, ERR_USER, "\"%s\" has %lld bytes, expected at most %zu", path,
                (long long)st.st_size, size_max);
        goto fail;
    }
    *size = (size_t)st.st_size;
    return fd;
fail:
    close(fd);
    return -1;
}

void *file_read(const char *path, size_t size_max, size_t *size, struct err *e)
{
    size_t want = 0, got = 0;
    int fd = open_regular(path, size_max, &want, e);
    if (fd < 0) return NULL;
    char *bytes = malloc(want + 1);
    if (!bytes) {
        err_set(e, ERR_RETRY, "out of memory for %zu bytes of \"%s\"", want, path);
        goto fail;
    }
    while (got < want) {
        ssize_t n = read(fd, bytes + got, want - got);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            err_set(e, ERR_RETRY, "could not read \"%s\": %s", path,
                    n < 0 ? strerror(errno) : "it ended early");
            goto fail;
        }
        got += (size_t)n;
    }
    close(fd);
    bytes[want] = '\0';
    *size = want;
    return bytes;
fail:
    free(bytes);
    close(fd);
    return NULL;
}

static int write_all(int fd, const char *bytes, size_t size)
{
    while (size) {
        ssize_t n = write(fd, bytes, size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

int file_write(const char *path, const void *bytes, size_t size, struct err *e)
{
    char tmp[PATH_SIZE];
    if (snprintf(tmp, sizeof tmp, "%s.tmp", path) >= (int)sizeof tmp)
        return err_set(e, ERR_USER, "path \"%.80s...\" is too long", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return err_set(e, ERR_RETRY, "could not create \"%s\": %s", tmp, strerror(errno));
    int rc = write_all(fd, bytes, size) < 0 || fsync(fd) < 0 ? -1 : 0;
    if (rc < 0) err_set(e, ERR_RETRY, "could not write \"%s\": %s", tmp, strerror(errno));
    close(fd);
    if (rc == 0 && rename(tmp, path) < 0)
        rc = err_set(e, ERR_RETRY, "could not rename \"%s\": %s", tmp, strerror(errno));
    if (rc < 0) unlink(tmp);
    return rc;
}

int file_sync_dir(const char *dir, struct err *e)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_set(e, ERR_RETRY, "could not open \"%s\": %s", dir, strerror(errno));
    int rc = fsync(fd);
    if (rc < 0) err_set(e, ERR_RETRY, "could not sync \"%s\": %s", dir, strerror(errno));
    close(fd);
    return rc;
}

/* The parser recurses, so the depth is looked at before it runs. */
static bool too_deep(const char *bytes, size_t size, int depth_max)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = bytes[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > depth_max) return true;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return false;
}

json_t *file_json(const char *bytes, size_t size, int depth_max, const char *what, struct err *e)
{
    json_error_t at;
    if (too_deep(bytes, size, depth_max)) {
        err_set(e, ERR_USER, "%s is nested deeper than %d", what, depth_max);
        return NULL;
    }
    json_t *root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &at);
    if (!root) {
        err_set(e, ERR_USER, "%s is not JSON (byte %d: %s)", what, at.position, at.text);
        return NULL;
    }
    if (!json_is_object(root)) {
        err_set(e, ERR_USER, "%s is not a JSON object", what);
        json_decref(root);
        return NULL;
    }
    return root;
}

json_t *file_json_read(const char *path, size_t size_max, struct err *e)
{
    size_t size;
    char *bytes = file_read(path, size_max, &size, e);
    if (!bytes) return NULL;
    json_t *root = file_json(bytes, size, FILE_JSON_DEPTH_MAX, path, e);
    free(bytes);
    return root;
}
