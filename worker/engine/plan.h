/* plan.h - how much memory a base model and its tenants take, worked out before any of it is taken.
 *
 * From config.json alone: no weights are read, so a model can be planned for that is not there yet.
 * The sizes come from the functions that allocate (model_weights_size, packed_bytes, adapter_bytes,
 * pass_bytes, head_bytes, kv_block_bytes), so they are what the CPU device really asks for; each
 * allocation may be rounded up by 64 bytes.
 *
 * For a GPU some things are other: a matrix stays row-major, and one copy serves both directions; keys
 * and values are kept in bf16, as are activations where weights are; passes and chunks of logits are
 * larger. */
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
    int ranks, replicas;      /* as engine_conf's: 0 is 1.  All sizes are then of one rank of one replica */
    bool gpu;
};

struct memory_plan {
    size_t parameters; /* of the base model, how many: of all ranks */
    int ranks, replicas;

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

/* What the engine holds on all ranks and replicas with so many tenants: base, adapters, scratch and KV. */
size_t memory_plan_total(const struct memory_plan *p, int adapters);

/* ------------------------------------------------------------------ what a GPU has room for */

#define DEVICE_RESERVED ((size_t)2000000000) /* bytes for the context, libraries and odd ends */

struct device_plan_conf {
    struct memory_plan_conf memory; /* for a GPU; scratch and KV are worked out here */
    size_t device_bytes;            /* of each rank */
    size_t host_bytes;              /* for what is paged out, of all ranks and replicas */
    int scratch_percent, kv_percent; /* of what the base leaves; tenants get the rest */
};

struct device_plan {
    bool fits;                 /* base, the least pass and some of the rest; else all below is 0 */
    struct memory_plan memory; /* of a rank; scratch and KV as they were shared out, if it fits */
    size_t left;               /* bytes of a rank that the base leaves */
    size_t pass_tokens;        /* tokens of one training pass: a micro-batch */
    size_t kv_tokens;
    size_t tenants;            /* bytes of a rank that tenants get, and how many that is: */
    size_t tenants_resident;   /* with gradient and moments on the device */
    size_t tenants_paged;      /* with the moments on the host, if the host has room for them */
    size_t tenants_on_host;    /* wholly on the host */
};

/* ERR_USER as memory_plan_make(), and for shares that leave nothing. */
int device_plan_make(const struct device_plan_conf *conf, struct device_plan *out,
                     struct err *e) WARN_UNUSED;

#endif
