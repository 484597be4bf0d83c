/* main.c - tinworks-worker: jobs and batch plans in, one result a job out; owns one device and one
 * engine.
 *
 * Exit 0: drained.  1: it could not start, and the last line says why.  75 (EX_TEMPFAIL): the world
 * or a lost shard made it leave; a fresh process goes on from the log. */
#include <stdlib.h>
#include <sysexits.h>
#include "base/log.h"
#include "base/stop.h"
#include "worker.h"

int main(int argc, char **argv)
{
    struct worker_conf conf = {0};
    struct worker w = {0};
    struct err e = {0};
    int exit_code = EXIT_FAILURE;

    stop_on_signals(); /* finish the batch in hand, then leave */
    if (worker_conf_read(&conf, argc, argv, &e) < 0) goto out;
    if (worker_open(&w, &conf, &e) < 0) goto out;

    exit_code = EX_TEMPFAIL;
    while (!stop_requested())
        if (worker_turn(&w, &e) < 0) goto out;
    if (worker_drain(&w, &e) < 0) goto out;
    exit_code = EXIT_SUCCESS;
out:
    log_err("worker.end", &e); /* says nothing when all went well */
    /* Closes what was opened, in reverse; a successor may begin at once. */
    worker_close(&w, exit_code == EXIT_SUCCESS ? LEASE_DRAINED : LEASE_RELEASED);
    if (exit_code == EXIT_SUCCESS) log_info("worker.stopped", "slot=%lld", (long long)conf.slot);
    return exit_code;
}
