/* peer.c - see peer.h. */
#include "peer.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINE_SIZE 256

struct peer {
    pid_t pid;
    FILE *to, *from;
};

static void run_child(int in, int out, const char *python, const char *script,
                      const char *model_dir, int threads)
{
    char count[16];
    snprintf(count, sizeof count, "%d", threads);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    execlp(python, python, script, model_dir, count, (char *)NULL);
    fprintf(stderr, "could not run %s: %s\n", python, strerror(errno));
    _exit(127);
}

/* Asks and reads `count` numbers. */
static int ask(struct peer *p, const char *what, double *numbers, int count, struct err *e)
{
    char line[LINE_SIZE];
    if (fprintf(p->to, "%s\n", what) < 0 || fflush(p->to) != 0 ||
        !fgets(line, sizeof line, p->from))
        return err_set(e, ERR_RETRY, "the peer ended while it was asked for \"%s\"", what);
    char *at = line;
    for (int i = 0; i < count; i++) {
        char *end;
        numbers[i] = strtod(at, &end);
        if (end == at)
            return err_set(e, ERR_RETRY, "the peer answered \"%s\" with \"%s\"", what, line);
        at = end;
    }
    return 0;
}

struct peer *peer_open(const char *python, const char *script, const char *model_dir, int threads,
                       struct err *e)
{
    int down[2], up[2];
    struct peer *p = calloc(1, sizeof *p);
    if (!p || pipe(down) < 0) {
        err_set(e, ERR_RETRY, "could not start the peer: %s", strerror(errno));
        free(p);
        return NULL;
    }
    if (pipe(up) < 0) {
        err_set(e, ERR_RETRY, "could not start the peer: %s", strerror(errno));
        close(down[0]), close(down[1]);
        free(p);
        return NULL;
    }
    signal(SIGPIPE, SIG_IGN);
    p->pid = fork();
    if (p->pid == 0) {
        close(down[1]), close(up[0]);
        run_child(down[0], up[1], python, script, model_dir, threads);
    }
    close(down[0]), close(up[1]);
    p->to = fdopen(down[1], "w");
    p->from = fdopen(up[0], "r");
    double ready;
    if (p->pid < 0 || !p->to || !p->from || ask(p, "ready", &ready, 1, e) < 0) {
        err_set(e, ERR_RETRY, "the peer did not start: \"%s\" needs torch, transformers and peft",
                python);
        peer_close(p);
        return NULL;
    }
    return p;
}

void peer_close(struct peer *p)
{
    if (!p) return;
    if (p->to) fclose(p->to);
    if (p->from) fclose(p->from);
    if (p->pid > 0) waitpid(p->pid, NULL, 0);
    free(p);
}

/* ------------------------------------------------------------------ questions */

static int ask_took(struct peer *p, const char *what, struct took *out, struct err *e)
{
    double n[4];
    if (ask(p, what, n, 4, e) < 0) return -1;
    *out = (struct took){.pass = {n[0], n[1]}, .optim = {n[2], n[3]}};
    return 0;
}

int peer_train(struct peer *p, const struct train_shape *s, struct took *out, struct err *e)
{
    char line[LINE_SIZE];
    snprintf(line, sizeof line, "train %d %d %d %d", s->adapters, s->batch, s->seq, s->repeat);
    return ask_took(p, line, out, e);
}

int peer_generate(struct peer *p, const struct generate_shape *s, struct took *out, struct err *e)
{
    char line[LINE_SIZE];
    snprintf(line, sizeof line, "generate %d %d %d", s->batch, s->prompt, s->fresh);
    return ask_took(p, line, out, e);
}

int peer_gemm_peak(struct peer *p, int n, double *gflop_per_s, struct err *e)
{
    char line[LINE_SIZE];
    snprintf(line, sizeof line, "gemm %d", n);
    return ask(p, line, gflop_per_s, 1, e);
}

int peer_rss_mib(struct peer *p, double *peak, double *loaded, struct err *e)
{
    double n[2];
    if (ask(p, "rss", n, 2, e) < 0) return -1;
    *peak = n[0];
    *loaded = n[1];
    return 0;
}
