/* main.c - tinworks-bench-engine: the engine's speed and memory, beside PyTorch and PEFT if asked.
 *
 *   tinworks-bench-engine --model DIR [--json] [--peer PYTHON] [--case NAME] [--threads N]
 *                         [--reps N] */
#include <stdlib.h>
#include "base/conf.h"
#include "base/log.h"
#include "cases.h"
#include "figures.h"
#include "series.h"

static int read_settings(struct bench *b, const char **only, bool *json, int argc, char **argv,
                         struct err *e)
{
    int64_t threads, reps;
    int rest;
    const struct conf_item items[] = {
        {"model", CONF_STR, &b->model_dir, NULL, 0, 0, "Hugging Face folder of a Qwen3"},
        {"peer", CONF_STR, &b->python, "", 0, 0,
         "an interpreter with torch, transformers and peft: compare with those"},
        {"peer_script", CONF_STR, &b->script, PEER_SCRIPT, 0, 0, "what it runs"},
        {"case", CONF_STR, only, "", 0, 0, "only this one; empty: all"},
        {"threads", CONF_INT, &threads, "2", 1, 256, "of each side"},
        {"reps", CONF_INT, &reps, "5", 1, SERIES_MAX, "repetitions, after one unmeasured"},
        {"json", CONF_BOOL, json, "false", 0, 0, "one JSON object a line instead of a table"},
        {0}};
    if (conf_read_flags(items, "the engine's speed and memory", argc, argv, &rest, e) < 0)
        return -1;
    if (rest < argc) return err_set(e, ERR_USER, "unexpected word \"%s\", see --help", argv[rest]);
    b->threads = (int)threads;
    b->reps = (int)reps;
    if (!*b->python) b->python = NULL;
    if (!**only) *only = NULL;
    if (*only && !cases_known(*only))
        return err_set(e, ERR_USER, "case is \"%s\", expected one of %s", *only, cases_names());
    return 0;
}

int main(int argc, char **argv)
{
    struct err e = {0};
    struct bench b = {0};
    const char *only;
    bool json;
    if (read_settings(&b, &only, &json, argc, argv, &e) == 0) {
        figures_begin(json);
        (void)(cases_run(&b, only, &e) == 0);
    }
    log_err("bench.end", &e);
    return e.kind ? EXIT_FAILURE : EXIT_SUCCESS;
}
