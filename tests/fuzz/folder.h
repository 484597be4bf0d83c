/* folder.h - for targets whose decoder reads a file of a model's folder: a private folder in memory, one
 * a process, with one file that is written anew for every input. */
#ifndef FUZZ_FOLDER_H
#define FUZZ_FOLDER_H

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder_dir[64], folder_file[128];

static void folder_remove(void)
{
    unlink(folder_file);
    rmdir(folder_dir);
}

/* The folder's name. */
static const char *folder_with(const char *name, const void *bytes, size_t size)
{
    if (!folder_dir[0]) {
        snprintf(folder_dir, sizeof folder_dir, "%s/tinworks-fuzz-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        assert(mkdtemp(folder_dir));
        snprintf(folder_file, sizeof folder_file, "%s/%s", folder_dir, name);
        atexit(folder_remove);
    }
    int fd = open(folder_file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
    close(fd);
    return folder_dir;
}

#endif
