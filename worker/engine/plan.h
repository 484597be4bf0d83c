/* plan.h - how much memory a base model and its tenants take, worked out before any of it is taken.
 *
 * From config.json alone: no weights are read, so a model can be planned for that is not there yet.
 * The sizes come from the functions that allocate (model_weights_size, packed_bytes, adapter_bytes,
 * pass_bytes, head_bytes, kv_block_bytes), so they are what the CPU device really asks for; each
 * allocation may be rounded up by 64 bytes. */
#ifndef ENGINE_PLAN_H
#define ENGINE_PLAN_H

#include <stddef.h>
#include "engine/engine.h"

struct memory_plan_conf {
    const char *model_dir;    /* only its config.json is read */
    const char *weights;      /* as engine_conf's; auto is what config.json says of the files */
    struct lora_conf lora;    /* what a tenant trains */
    size_t scratch_bytes_max; /* as engine_conf's; 0: the same defaults */
    size_t kv_bytes_max;
};

struct memory_plan {
    size_t parameters; /* of the base model, how many */

    /* the base model, in bytes */
    bool bf16;      /* kept in bf16 */
    size_t weights; /* gains, and the embedding as a table */
    size_t packed;  /* the matrices, prepared for products both ways */
    size_t rope;    /* tables of rotary angles */

    /* one tenant */
    size_t adapter, gradient, optimizer;

    /* a pass: of these, as many as scratch holds */
    size_t token_training; /* activations of one token that are kept for the way back */
    size_t token_forward;  /* and of one that goes forward only */
    size_t logits_chunk;   /* once a pass: logits of logits_rows rows, and what goes with them */
    int logits_rows;
    int longest_training; /* tokens of the longest sequence that scratch can train; 0: none */
    size_t scratch; /* what a pass may take: scratch_bytes_max, or the most it can need if less */

    /* sampling */
    size_t kv_token; /* keys and values of one token */
    size_t kv_block; /* of ENGINE_BLOCK_TOKENS, the unit in which they are given out */
    size_t kv;       /* kv_bytes_max */
};

/* ERR_USER for a folder or a configuration that engine_open() would refuse too. */
int memory_plan_make(const struct memory_plan_conf *conf, struct memory_plan *out,
                     struct err *e) WARN_UNUSED;

/* What the engine holds with so many tenants: base, adapters, scratch and KV. */
size_t memory_plan_total(const struct memory_plan *p, int adapters);

#endif
