/* memory.c - the peak resident size of the training step, in processes of their own. */
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "cases.h"
#include "figures.h"

static const struct train_shape step = {.adapters = 1, .batch = 16, .seq = 256, .repeat = 2};

static int child_trains(const struct bench *b)
{
    struct err e = {0};
    struct took took;
    struct work *w = work_open(b->model_dir, b->threads, "fp32", &e);
    int rc = w ? work_train(w, &step, &took, &e) : -1;
    work_close(w);
    return rc;
}

static int ours_mib(const struct bench *b, double *mib, struct err *e)
{
    struct rusage use;
    int status;
    pid_t pid = fork();
    if (pid == 0) _exit(child_trains(b) < 0 ? 1 : 0);
    if (pid < 0 || wait4(pid, &status, 0, &use) != pid || !WIFEXITED(status) ||
        WEXITSTATUS(status) != 0)
        return err_set(e, ERR_RETRY, "the process whose memory is measured failed");
    *mib = (double)use.ru_maxrss / 1024;
    return 0;
}

static int peers_mib(const struct bench *b, double *peak, double *loaded, struct err *e)
{
    struct took took;
    struct peer *p = peer_open(b->python, b->script, b->model_dir, b->threads, e);
    int rc = p ? peer_train(p, &step, &took, e) : -1;
    if (rc == 0) rc = peer_rss_mib(p, peak, loaded, e);
    peer_close(p);
    return rc;
}

int memory_case(struct bench *b, struct err *e)
{
    double ours = 0, peers = 0, loaded = 0;
    if (ours_mib(b, &ours, e) < 0) return -1;
    figure_print("engine", "memory_train_16x256", "peak", ours, "MiB");
    if (!b->python) return 0;
    if (peers_mib(b, &peers, &loaded, e) < 0) return -1;
    figure_print("engine", "memory_train_16x256", "peer_peak", peers, "MiB");
    figure_print("engine", "memory_train_16x256", "peer_loaded", loaded, "MiB");
    figure_print("engine", "memory_train_16x256", "over_peer", ours / peers, "x");
    return 0;
}
