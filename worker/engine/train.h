/* train.h - one replica's share of training: what checking and running a pass have in common, and
 * the passes of what is dealt to it. */
#ifndef ENGINE_TRAIN_H
#define ENGINE_TRAIN_H

#include "engine/inside.h"

/* Scratch bytes of a training pass: head and activations. */
size_t train_bytes(const struct engine *en, int rows, int kv_blocks, int ldu, bool keep);

static inline int train_blocks(int rows)
{
    return (rows + OPS_KV_BLOCK - 1) / OPS_KV_BLOCK;
}

/* Lives in the replica's host arena. */
struct train_work;

/* Of at most so many datums.  NULL: ERR_RETRY. */
struct train_work *train_begin(struct engine *en, int datums, struct err *e);
/* Turns ascend; within one, datums of an adapter stand together, in the order of their gradients'
 * sum.  Passes do not span turns. */
void train_add(struct train_work *w, struct train_item *item, struct datum *d, int turn);
/* Finds all memory: ERR_RETRY, and nothing has changed. */
int train_ready(struct train_work *w, struct err *e) WARN_UNUSED;
/* Runs all passes of a turn, from the first turn on: fills the datums' out_logprobs and adds to the
 * gradients of the replica's adapters.  -1: ERR_LOST. */
int train_run(struct train_work *w, int turn, struct err *e) WARN_UNUSED;

#endif
