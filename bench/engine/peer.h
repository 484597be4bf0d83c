/* peer.h - PyTorch and PEFT doing the same work in a child process that stays.
 *
 * The child runs peer_torch.py: one line asks, one line of numbers answers.  It waits in a read
 * between, so the two sides take turns on the machine. */
#ifndef BENCH_ENGINE_PEER_H
#define BENCH_ENGINE_PEER_H

#include "work.h"

struct peer;

/* python: an interpreter that has torch, transformers and peft.  NULL on failure. */
struct peer *peer_open(const char *python, const char *script, const char *model_dir, int threads,
                       struct err *e);
void peer_close(struct peer *p); /* NULL is fine; ends the child */

int peer_train(struct peer *p, const struct train_shape *s, struct took *out,
               struct err *e) WARN_UNUSED;
int peer_generate(struct peer *p, const struct generate_shape *s, struct took *out,
                  struct err *e) WARN_UNUSED;
/* GFLOP/s of torch.mm on n x n matrices, fp32. */
int peer_gemm_peak(struct peer *p, int n, double *gflop_per_s, struct err *e) WARN_UNUSED;
/* The child's largest resident size so far, and what it was when the model was loaded. */
int peer_rss_mib(struct peer *p, double *peak, double *loaded, struct err *e) WARN_UNUSED;

#endif
