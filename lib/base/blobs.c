/* blobs.c - see blobs.h.  Every step is an openat() of one name that may not be a link. */
#include "base/blobs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH_MAX 8
#define PATH_MAX_ 1024
#define COPYING   ".copying"

static int open_beneath(int at, const char *name)
{
    return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int empty_folder(int fd, int depth);

static int remove_entry(int at, const char *name, int depth)
{
    if (unlinkat(at, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return -1;
    int fd = open_beneath(at, name);
    if (fd < 0 || empty_folder(fd, depth + 1) < 0) return -1;
    return unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : -1;
}

/* Takes fd. */
static int empty_folder(int fd, int depth)
{
    int rc = depth > DEPTH_MAX ? -1 : 0;
    DIR *folder = fdopendir(fd);
    if (!folder) {
        close(fd);
        return -1;
    }
    for (struct dirent *entry; rc == 0 && (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        rc = remove_entry(dirfd(folder), entry->d_name, depth);
    }
    int saved = errno;
    closedir(folder);
    errno = saved;
    return rc;
}

/* ---------------------------------------------------------------- walking down */

/* The next name of a path that strsep() takes apart; NULL when it is none of ours. */
static const char *next_name(char **rest)
{
    const char *name = strsep(rest, "/");
    return *name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 ? name : NULL;
}

static int bad_folder(const char *dir, struct err *e)
{
    return err_set(e, ERR_BUG, "\"%.80s\" is no folder of ours", dir);
}

static int open_root(const char *root, struct err *e)
{
    int at = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at < 0) err_set(e, ERR_RETRY, "could not open \"%s\": %s", root, strerror(errno));
    return at;
}

/* One step down; takes at.  With make the folder is made when it is missing. */
static int step_down(int at, const char *name, bool make)
{
    if (make && mkdirat(at, name, 0750) < 0 && errno != EEXIST) {
        int why = errno;
        close(at);
        errno = why;
        return -1;
    }
    int below = open_beneath(at, name);
    int why = errno;
    close(at);
    errno = why;
    return below;
}

/* Opens root/dir; with make it is made.  -1: errno is ENOENT when there is no such folder and e is
 * left alone then; otherwise e says what happened and errno is another. */
static int open_folder(const char *root, const char *dir, bool make, struct err *e)
{
    char path[PATH_MAX_], *rest = path;
    if (!*dir || strlen(dir) >= sizeof path) {
        bad_folder(dir, e);
        errno = EINVAL;
        return -1;
    }
    strcpy(path, dir);
    int at = open_root(root, e);
    if (at < 0) {
        errno = EIO;
        return -1;
    }
    while (rest) {
        const char *name = next_name(&rest);
        if (!name) {
            close(at);
            bad_folder(dir, e);
            errno = EINVAL;
            return -1;
        }
        at = step_down(at, name, make);
        if (at >= 0) continue;
        if (errno == ENOENT) return -1;
        err_set(e, ERR_RETRY, "could not open \"%s\" of \"%s\": %s", name, dir, strerror(errno));
        errno = EIO;
        return -1;
    }
    return at;
}

/* ---------------------------------------------------------------- the three deeds */

int blobs_remove(const char *root, const char *dir, struct err *e)
{
    char parent[PATH_MAX_];
    size_t length = strlen(dir);
    if (!length || length >= sizeof parent) return bad_folder(dir, e);
    memcpy(parent, dir, length + 1);
    char *slash = strrchr(parent, '/'), *last = slash ? slash + 1 : parent;
    if (!*last || !strcmp(last, ".") || !strcmp(last, "..")) return bad_folder(dir, e);
    if (slash) *slash = '\0';
    int at = slash ? open_folder(root, parent, false, e) : open_root(root, e);
    if (at < 0) return slash && errno == ENOENT ? 0 : -1;
    int rc = remove_entry(at, last, 0);
    int why = errno;
    close(at);
    if (rc == 0) return 0;
    return err_set(e, ERR_RETRY, "could not remove \"%s\": %s", dir, strerror(why));
}

int blobs_open(const char *root, const char *dir, const char *name, int64_t *size, struct err *e)
{
    struct stat st;
    char copy[PATH_MAX_], *rest = copy;
    snprintf(copy, sizeof copy, "%s", name);
    if (strchr(name, '/') || !next_name(&rest))
        return err_set(e, ERR_USER, "\"%.80s\" is no file's name", name);
    int at = open_folder(root, dir, false, e);
    if (at < 0)
        return errno == ENOENT ? err_set(e, ERR_USER, "\"%s\" is not there", dir) : -1;
    int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int why = errno;
    close(at);
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        *size = st.st_size;
        return fd;
    }
    if (fd < 0 && why != ENOENT && why != ELOOP)
        return err_set(e, ERR_RETRY, "could not open \"%s\": %s", name, strerror(why));
    if (fd >= 0) close(fd);
    return err_set(e, ERR_USER, "\"%.80s\" is not there", name);
}

static int copy_bytes(int in, int out)
{
    ssize_t n;
    while ((n = copy_file_range(in, NULL, out, NULL, (size_t)1 << 30, 0)) != 0)
        if (n < 0 && errno != EINTR) return -1;
    return fsync(out);
}

/* Under another name until it is whole. */
static int copy_file(int from, int to, const char *name)
{
    int rc = -1, in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int out = in < 0 ? -1 : openat(to, COPYING, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out >= 0 && copy_bytes(in, out) == 0) rc = renameat(to, COPYING, to, name);
    int why = errno;
    if (out >= 0) close(out);
    if (in >= 0) close(in);
    errno = why;
    return rc;
}

/* A file system has so many links of a file (ext4: 65,000), none to another volume, and perhaps none
 * to what another user owns. */
static int link_file(int from, int to, const char *name)
{
    if (linkat(from, name, to, name, 0) == 0 || errno == EEXIST) return 0;
    bool no_links = errno == EMLINK || errno == EXDEV || errno == EPERM;
    return no_links ? copy_file(from, to, name) : -1;
}

/* Takes both folders. */
static int link_files(int from, int to)
{
    int rc = 0;
    struct stat st;
    DIR *folder = fdopendir(from);
    if (!folder) {
        close(from);
        close(to);
        return -1;
    }
    for (struct dirent *entry; rc == 0 && (entry = readdir(folder));) {
        if (fstatat(from, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            rc = -1;
        else if (S_ISREG(st.st_mode) && link_file(from, to, entry->d_name) < 0)
            rc = -1;
    }
    int why = errno;
    closedir(folder);
    close(to);
    errno = why;
    return rc;
}

int blobs_link(const char *root, const char *from, const char *to, struct err *e)
{
    int source = open_folder(root, from, false, e);
    if (source < 0)
        return errno == ENOENT ? err_set(e, ERR_USER, "\"%s\" is not there", from) : -1;
    int target = open_folder(root, to, true, e);
    if (target < 0) {
        close(source);
        return errno == ENOENT ? err_set(e, ERR_RETRY, "could not make \"%s\"", to) : -1;
    }
    if (link_files(source, target) == 0) return 0;
    return err_set(e, ERR_RETRY, "could not link \"%s\" to \"%s\": %s", from, to, strerror(errno));
}
