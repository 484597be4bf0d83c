/* train.h - what checking and running a training pass share. */
#ifndef ENGINE_TRAIN_H
#define ENGINE_TRAIN_H

#include "engine/inside.h"

/* Scratch bytes of a training pass: head and activations. */
size_t train_bytes(const struct engine *en, int rows, int kv_blocks, int ldu, bool keep);

static inline int train_blocks(int rows)
{
    return (rows + OPS_KV_BLOCK - 1) / OPS_KV_BLOCK;
}

#endif
