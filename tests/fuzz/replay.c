/* replay.c - a main() for a fuzz target without a fuzzer: each file named, and each file of a folder
 * named, is given to the target once.  So everything that fuzzing kept is a test of every build. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "fuzz/target.h"

#define FILE_MAX ((size_t)32 << 20)

static int replayed;

static int replay_file(const char *path)
{
    uint8_t *bytes = NULL;
    struct stat st;
    FILE *f = fopen(path, "rb");
    if (!f || fstat(fileno(f), &st) < 0 || (size_t)st.st_size > FILE_MAX ||
        !(bytes = malloc((size_t)st.st_size + 1)) ||
        fread(bytes, 1, (size_t)st.st_size, f) != (size_t)st.st_size) {
        fprintf(stderr, "cannot read \"%s\"\n", path);
        if (f) fclose(f);
        free(bytes);
        return -1;
    }
    fclose(f);
    /* No byte behind the last one: a target that reads on is caught. */
    uint8_t *exact = malloc(st.st_size ? (size_t)st.st_size : 1);
    if (exact) {
        memcpy(exact, bytes, (size_t)st.st_size);
        LLVMFuzzerTestOneInput(exact, (size_t)st.st_size);
        replayed++;
    }
    free(exact);
    free(bytes);
    return exact ? 0 : -1;
}

static int replay_folder(const char *path, DIR *d)
{
    int rc = 0;
    char file[4096];
    for (struct dirent *entry; rc == 0 && (entry = readdir(d));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        rc = replay_file(file);
    }
    return rc;
}

int main(int argc, char **argv)
{
    int rc = 0;
    for (int i = 1; i < argc && rc == 0; i++) {
        DIR *d = opendir(argv[i]);
        rc = d ? replay_folder(argv[i], d) : replay_file(argv[i]);
        if (d) closedir(d);
    }
    printf("%d inputs replayed\n", replayed);
    return rc == 0 && replayed > 0 ? 0 : 1;
}
