/* fake_clock.c - a wall clock that a test moves: preloaded into one process, it adds the seconds in the file $FAKE_CLOCK to what the
 * kernel says.  Only the wall clock; durations are measured with the monotonic one, which no operator can set. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define READ_EVERY_NS 20000000L

static long shift_s(void)
{
    static __thread long shift;
    static __thread struct timespec next;
    struct timespec now;
    const char *path = getenv("FAKE_CLOCK");
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    if (!path || now.tv_sec < next.tv_sec || (now.tv_sec == next.tv_sec && now.tv_nsec < next.tv_nsec)) return shift;
    next = now;
    next.tv_nsec += READ_EVERY_NS;
    FILE *f = fopen(path, "re");
    if (!f) return shift;
    if (fscanf(f, "%ld", &shift) != 1) shift = 0;
    fclose(f);
    return shift;
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
    int rc = (int)syscall(SYS_clock_gettime, clock, out);
    if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) out->tv_sec += shift_s();
    return rc;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *out = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
