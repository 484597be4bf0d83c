/* stop.c - see stop.h. */
#include "base/stop.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static atomic_bool stopping;

static void on_signal(int sig)
{
    if (atomic_exchange(&stopping, true)) _exit(128 + sig);
}

void stop_on_signals(void)
{
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = on_signal; /* no SA_RESTART: waits return early */
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    sa.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &sa, NULL);
    sigaction(SIGXFSZ, &sa, NULL); /* a file that may not grow is an error of its write */
}

bool stop_requested(void)
{
    return atomic_load(&stopping);
}

void stop_request(void)
{
    atomic_store(&stopping, true);
}
