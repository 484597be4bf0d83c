/* mapping.c - see mapping.h.
 *
 * The handler finds the mapping of an address in a table of slots.  Slots are written under a lock
 * and only while their mapping is not read, so the handler, which reads them without one, meets
 * either whole entries or ones that cannot be its own. */
#include "engine/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE 4096

struct mapping {
    int fd, slot; /* slot -1: not mapped */
    size_t size, done;
    struct timespec changed; /* when it was opened */
    uint8_t *bytes;
    char path[PATH_SIZE];
};

static struct {
    _Atomic uintptr_t from, to; /* from 0: free */
    atomic_bool lost;
} slots[MAPPINGS_MAX];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int mapped; /* slots in use */
static struct sigaction before;

/* ------------------------------------------------------------------ pages that are gone */

static int slot_of(uintptr_t address)
{
    for (int i = 0; i < MAPPINGS_MAX; i++) {
        uintptr_t from = atomic_load(&slots[i].from); /* of another thread's half-written slot it is 0 */
        if (from && address >= from && address < atomic_load(&slots[i].to)) return i;
    }
    return -1;
}

/* A page of zeros where there is none.  Not ours: the signal comes again, to whoever had it. */
static void on_bus_error(int signal, siginfo_t *info, void *context)
{
    int keep = errno, slot = slot_of((uintptr_t)info->si_addr);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    void *at = (void *)((uintptr_t)info->si_addr / page * page);
    int zeros = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (slot >= 0 && mmap(at, page, PROT_READ, zeros, -1, 0) == at)
        atomic_store(&slots[slot].lost, true);
    else
        sigaction(signal, &before, NULL);
    errno = keep;
}

static int watch(struct mapping *m, struct err *e)
{
    int slot = 0;
    pthread_mutex_lock(&lock);
    while (slot < MAPPINGS_MAX && atomic_load(&slots[slot].from))
        slot++;
    if (slot < MAPPINGS_MAX) {
        struct sigaction act = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
        if (mapped++ == 0) sigaction(SIGBUS, &act, &before);
        atomic_store(&slots[slot].lost, false);
        atomic_store(&slots[slot].to, (uintptr_t)m->bytes + m->size);
        atomic_store(&slots[slot].from, (uintptr_t)m->bytes);
        m->slot = slot;
    }
    pthread_mutex_unlock(&lock);
    if (m->slot < 0) return err_set(e, ERR_RETRY, "more than %d files are mapped", MAPPINGS_MAX);
    return 0;
}

static void unwatch(struct mapping *m)
{
    if (m->slot < 0) return;
    pthread_mutex_lock(&lock);
    atomic_store(&slots[m->slot].from, 0);
    atomic_store(&slots[m->slot].to, 0);
    if (--mapped == 0) sigaction(SIGBUS, &before, NULL);
    pthread_mutex_unlock(&lock);
    m->slot = -1;
}

/* ------------------------------------------------------------------ files */

struct mapping *mapping_open(const char *path, struct err *e)
{
    struct stat st;
    struct mapping *m = calloc(1, sizeof *m);
    if (!m) {
        err_set(e, ERR_RETRY, "out of memory");
        return NULL;
    }
    m->slot = -1;
    m->fd = -1;
    if (strlen(path) >= sizeof m->path) {
        err_set(e, ERR_USER, "path \"%.80s...\" is too long", path);
        goto fail;
    }
    strcpy(m->path, path);
    m->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (m->fd < 0) {
        err_set(e, errno == ENOENT || errno == ENOTDIR ? ERR_USER : ERR_RETRY,
                "could not open \"%s\": %s", path, strerror(errno));
        goto fail;
    }
    if (fstat(m->fd, &st) < 0) {
        err_set(e, ERR_RETRY, "could not stat \"%s\": %s", path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        err_set(e, ERR_USER, "\"%s\" is not a regular file", path);
        goto fail;
    }
    m->size = (size_t)st.st_size;
    m->changed = st.st_mtim;
    return m;
fail:
    mapping_close(m);
    return NULL;
}

void mapping_close(struct mapping *m)
{
    if (!m) return;
    unwatch(m);
    if (m->bytes) munmap(m->bytes, m->size);
    if (m->fd >= 0) close(m->fd);
    free(m);
}

size_t mapping_size(const struct mapping *m)
{
    return m->size;
}

int mapping_read(struct mapping *m, void *to, size_t from, size_t size, struct err *e)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = pread(m->fd, (char *)to + got, size - got, (off_t)(from + got));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return err_set(e, ERR_RETRY, "could not read \"%s\": %s", m->path,
                           n < 0 ? strerror(errno) : "it ended early");
        got += (size_t)n;
    }
    return 0;
}

const uint8_t *mapping_bytes(struct mapping *m, struct err *e)
{
    if (m->bytes) return m->bytes;
    void *map = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, m->fd, 0);
    if (map == MAP_FAILED) {
        err_set(e, ERR_RETRY, "could not map \"%s\": %s", m->path, strerror(errno));
        return NULL;
    }
    m->bytes = map;
    madvise(map, m->size, MADV_SEQUENTIAL);
    return watch(m, e) < 0 ? NULL : m->bytes;
}

void mapping_done(struct mapping *m, size_t end)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), to = end / page * page;
    if (!m->bytes || to <= m->done) return;
    madvise(m->bytes + m->done, to - m->done, MADV_DONTNEED);
    m->done = to;
}

int mapping_check(const struct mapping *m, struct err *e)
{
    struct stat st;
    if (m->slot >= 0 && atomic_load(&slots[m->slot].lost))
        return err_set(e, ERR_RETRY, "\"%s\" lost bytes while it was read", m->path);
    if (fstat(m->fd, &st) < 0)
        return err_set(e, ERR_RETRY, "could not stat \"%s\": %s", m->path, strerror(errno));
    if ((size_t)st.st_size != m->size || st.st_mtim.tv_sec != m->changed.tv_sec ||
        st.st_mtim.tv_nsec != m->changed.tv_nsec)
        return err_set(e, ERR_RETRY, "\"%s\" changed while it was read", m->path);
    return 0;
}
