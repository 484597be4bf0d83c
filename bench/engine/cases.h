/* cases.h - what the bench measures, and how it is put in pairs. */
#ifndef BENCH_ENGINE_CASES_H
#define BENCH_ENGINE_CASES_H

#include "peer.h"
#include "work.h"

struct bench {
    const char *model_dir, *python, *script;
    int threads, reps;
    struct work *work, *work_bf16; /* weights in fp32; in bf16, made when first needed */
    struct peer *peer; /* NULL: nobody to compare with */
    double flop_peak;  /* GFLOP/s of a plain product, the largest seen in this run */
};

/* Runs the case of that name, or all when NULL. */
int cases_run(struct bench *b, const char *only, struct err *e) WARN_UNUSED;
/* "train, request, ...": for messages. */
const char *cases_names(void);
bool cases_known(const char *name);

/* memory.c: peak resident size of a process that opens the model and takes training steps.  Must
 * run before this process has threads of its own. */
int memory_case(struct bench *b, struct err *e) WARN_UNUSED;

#endif
