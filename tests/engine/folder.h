/* folder.h - for tests: a private folder that goes when the test ends, and files in it. */
#ifndef TESTS_ENGINE_FOLDER_H
#define TESTS_ENGINE_FOLDER_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct folder {
    char path[256];
};

static inline struct folder folder_create(void)
{
    struct folder f;
    const char *base = getenv("TMPDIR");
    snprintf(f.path, sizeof f.path, "%s/tinworks-test-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(f.path)) abort();
    return f;
}

static inline void folder_remove_path(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *entry; d && (entry = readdir(d));) {
        char child[512];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (snprintf(child, sizeof child, "%s/%s", path, entry->d_name) >= (int)sizeof child)
            abort();
        if (unlink(child) < 0) folder_remove_path(child);
    }
    if (d) closedir(d);
    rmdir(path);
}

static inline void folder_remove(struct folder *f)
{
    folder_remove_path(f->path);
}

/* The path of name in the folder; the text lives until the 8th next call. */
static inline const char *folder_at(const struct folder *f, const char *name)
{
    static char paths[8][512];
    static unsigned next;
    char *path = paths[next++ % 8];
    if (snprintf(path, sizeof paths[0], "%s/%s", f->path, name) >= (int)sizeof paths[0]) abort();
    return path;
}

static inline void folder_put(const struct folder *f, const char *name, const void *bytes,
                              size_t size)
{
    FILE *file = fopen(folder_at(f, name), "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) abort();
}

static inline void folder_put_text(const struct folder *f, const char *name, const char *text)
{
    folder_put(f, name, text, strlen(text));
}

/* The bytes of a file; the caller frees them. */
static inline char *folder_get(const char *path, size_t *size)
{
    struct stat st;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &st) < 0) abort();
    char *bytes = calloc(1, (size_t)st.st_size + 1);
    if (!bytes || fread(bytes, 1, (size_t)st.st_size, file) != (size_t)st.st_size) abort();
    fclose(file);
    *size = (size_t)st.st_size;
    return bytes;
}

/* Copies the plain files of a folder. */
static inline void folder_copy(const struct folder *f, const char *from)
{
    DIR *d = opendir(from);
    if (!d) abort();
    for (struct dirent *entry; (entry = readdir(d));) {
        char path[512];
        struct stat st;
        size_t size;
        if (snprintf(path, sizeof path, "%s/%s", from, entry->d_name) >= (int)sizeof path) abort();
        if (stat(path, &st) < 0 || !S_ISREG(st.st_mode)) continue;
        char *bytes = folder_get(path, &size);
        folder_put(f, entry->d_name, bytes, size);
        free(bytes);
    }
    closedir(d);
}

#endif
