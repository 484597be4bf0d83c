/* work.h - the engine's side of the bench: the same pieces of work that peer_torch.py does.
 *
 * One model, as many adapters as a case needs (rank 32 on attention and MLP), random tokens.  A
 * step is forward and backward over every position with cross-entropy, then one AdamW step of each
 * adapter; the two are timed apart, because to a client they are two requests. */
#ifndef BENCH_ENGINE_WORK_H
#define BENCH_ENGINE_WORK_H

#include "base/err.h"
#include "engine/engine.h"

#define WORK_RANK         32
#define WORK_ADAPTERS_MAX 64
#define WORK_BATCH_MAX    64

/* `adapters` items of `batch` sequences of `seq` tokens, all in one call; the whole `repeat` times,
 * each time with its optimizer steps. */
struct train_shape {
    int adapters, batch, seq, repeat;
};

/* `batch` requests of one sample each. */
struct generate_shape {
    int batch, prompt, fresh;
};

struct span {
    double wall_s, cpu_s; /* cpu: of all threads */
};

struct took {
    struct span pass, optim; /* forward and backward, or generating; optimizer steps */
};

struct work;

/* weights: how the base is kept, "fp32" or "bf16".  NULL on failure. */
struct work *work_open(const char *model_dir, int threads, const char *weights, struct err *e);
void work_close(struct work *w); /* NULL is fine */
struct engine *work_engine(struct work *w);

int work_train(struct work *w, const struct train_shape *s, struct took *out,
               struct err *e) WARN_UNUSED;
int work_generate(struct work *w, const struct generate_shape *s, struct took *out,
                  struct err *e) WARN_UNUSED;

/* Floating point operations of matrix products that a trained token of a sequence of seq costs:
 * frozen weights 2 forward and 2 backward a parameter, LoRA 2 and 4, causal attention 2 T d and
 * 4 T d a layer. */
double work_flop_per_token(const struct work *w, int seq);
/* GFLOP/s of this engine's own product of n x n matrices. */
int work_gemm_peak(struct work *w, int n, double *gflop_per_s, struct err *e) WARN_UNUSED;

#endif
