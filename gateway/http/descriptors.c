/* descriptors.c - see descriptors.h. */
#include "http/descriptors.h"

#include <stdbool.h>
#include <sys/resource.h>

#include "base/log.h"

#define SPARE 256 /* for all that is no client's connection: services, files that are sent */
#define LEAST 16

/* First above the hard limit, which only root may, then up to it. */
static void raise_limit(struct rlimit *lim, rlim_t want)
{
    struct rlimit higher = {.rlim_cur = want, .rlim_max = want};
    if (lim->rlim_max != RLIM_INFINITY && lim->rlim_max < want) {
        if (setrlimit(RLIMIT_NOFILE, &higher) == 0) *lim = higher;
        want = lim->rlim_max;
    }
    higher = (struct rlimit){.rlim_cur = want, .rlim_max = lim->rlim_max};
    if (lim->rlim_cur < want && setrlimit(RLIMIT_NOFILE, &higher) == 0) *lim = higher;
}

int descriptors_raise(int connections_wanted)
{
    struct rlimit lim;
    rlim_t want = (rlim_t)connections_wanted + SPARE;
    if (getrlimit(RLIMIT_NOFILE, &lim) < 0 || lim.rlim_cur >= want) return connections_wanted;
    raise_limit(&lim, want);
    if (lim.rlim_cur >= want) return connections_wanted;
    int fit = lim.rlim_cur > SPARE + LEAST ? (int)(lim.rlim_cur - SPARE) : LEAST;
    log_warn("http.descriptors",
             "open_files_limit=%llu connections=%d connections_max=%d text=\"this process may not "
             "open as many files as connections_max needs: raise its hard limit (ulimit -Hn, "
             "LimitNOFILE) to %llu, or lower connections_max\"",
             (unsigned long long)lim.rlim_cur, fit, connections_wanted, (unsigned long long)want);
    return fit;
}
