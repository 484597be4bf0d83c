/* main.c - tinworks-gateway: the clients' HTTP in, jobs out, futures back. */
#include <stdlib.h>
#include <unistd.h>

#include "api/gateway.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"

#define TICK_MS 50

int main(int argc, char **argv)
{
    static struct gateway g;
    struct gateway_conf conf = {0};
    struct err e = {0};

    if (gateway_conf_read(&conf, argc, argv, &e) < 0) goto out;
    stop_on_signals();
    if (gateway_open(&g, &conf, &e) < 0) goto out;

    log_info("gateway.ready", "listen=%s:%d", conf.listen, http_server_port(g.http));
    while (!stop_requested()) {
        gateway_tick(&g);
        clock_sleep_ms(TICK_MS);
    }
    if (gateway_drain(&g, &e) < 0) {
        log_err("gateway.end", &e);
        _exit(EXIT_FAILURE);
    }
    log_info("gateway.stopped", "requests=%lld submits=%lld", (long long)g.counts.requests,
             (long long)g.counts.submits);
out:
    log_err("gateway.end", &e);
    gateway_close(&g);
    return e.kind ? EXIT_FAILURE : EXIT_SUCCESS;
}
