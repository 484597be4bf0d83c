/* pass.h - one packed run of sequences through the model.
 *
 * A pass holds some sequences, one after another without padding, those of one adapter side by
 * side.  Training passes keep each layer's activations for the way back; others keep one layer's.
 * Descriptors live in the engine's host arena, activations in its scratch.
 *
 * With several ranks each has a pass of its own over the same rows, with its part of heads, MLP and
 * adapters; all rows of [rows, hidden] are whole and equal on every rank.  Callers hold the first
 * rank's.
 *
 * Sums over layers (x, mid, hidden and their gradients, which all projections of a layer add to) are
 * fp32; what lies between two products is a struct act, as wide as the device keeps it.
 *
 *   pass_bytes()   what a pass of so many rows needs
 *   pass_begin()   lays it out; nothing after it can fail for want of memory
 *   pass_forward() fills pass->final, the rows ready for the unembedding
 *   head_...       logits of chosen rows, and their way back into pass->dfinal (head.h)
 *   pass_backward() from pass->dfinal to the adapters' gradients */
#ifndef ENGINE_PASS_H
#define ENGINE_PASS_H

#include "engine/inside.h"

#define PASS_SITES_AT_ONCE 3 /* projections that read the same rows: q, k and v */

/* A sequence's share of a pass: rows positions from start on. */
struct pass_seq {
    struct adapter *adapter; /* NULL: the bare model */
    const int32_t *tokens;   /* rows of them */
    int rows, start;
    float **blocks; /* its KV blocks with all layers; NULL: the pass makes its own */
    size_t blocks_apart; /* from one rank's blocks to the next one's */
};

/* Consecutive rows of one adapter. */
struct pass_group {
    struct adapter *adapter;
    int row, rows;
    int block, block_count; /* into pass->block_rows */
};

/* What the way back needs of a layer. */
struct layer_acts {
    float *x;                /* [rows, hidden] as the layer began */
    struct act q_raw, k_raw; /* [rows, heads or kv_heads, head_dim] before norm and rotation */
    struct act o;            /* attention's output [rows, heads, head_dim] */
    float *lse;              /* [rows, heads] its lse */
    float *mid;              /* [rows, hidden] after attention */
    struct act gate, up;     /* [rows, intermediate] */
    float *u[SITES_A_LAYER]; /* [rows, ldu] scale A x of each site; without a way back one for each
                                of those that are worked out at once */
};

struct pass {
    struct engine *en;    /* of this rank */
    struct pass **ranks;  /* of the first: the passes of all ranks, itself included */
    bool keep; /* for a way back */
    int rows, seq_count, group_count, block_count;
    int ldu; /* the largest rank */
    const struct pass_seq *seqs;
    struct kv_seg *segs;       /* [seq_count] */
    int32_t *tokens;           /* [rows] */
    struct pass_group *groups; /* [group_count] */
    int *block_rows;           /* [block_count + 1]: where the blocks of the datum law begin */
    int *row_block;            /* [rows] */
    struct lora_group *loras;  /* [PASS_SITES_AT_ONCE, group_count], filled anew for each site */

    struct layer_acts *acts;         /* [layers], or one */
    float *hidden;                   /* [rows, hidden] after the last layer */
    struct act final;                /* [rows, hidden] normed */
    struct act norm, q, k, v, act;   /* of the layer at work */
    float *dfinal, *dx, *dnorm, *du; /* the way back */
    struct act dq, dk, dv, dout, dgate, dup, dact;
};

/* Activation bytes of a pass with so many rows, kv_blocks of its own and the given widest rank. */
size_t pass_bytes(const struct engine *en, int rows, int kv_blocks, int ldu, bool keep);

/* seqs are borrowed.  `taken` bytes of the scratch are somebody else's (the head's); the rest must
 * be there already.  NULL: ERR_RETRY, the descriptors found no room. */
struct pass *pass_begin(struct engine *en, const struct pass_seq *seqs, int count, bool keep,
                        size_t taken, struct err *e);
/* With keep dfinal is zero afterwards. */
void pass_forward(struct pass *p);
void pass_backward(struct pass *p);

static inline struct layer_acts *pass_acts(const struct pass *p, int layer)
{
    return &p->acts[p->keep ? layer : 0];
}

/* ops->project_back on this rank, and du summed over ranks before gradients are made of it where
 * outputs are cut. */
void pass_project_back(struct engine *en, struct act dx, struct act dy, struct act x, int rows,
                       struct projection_back *back, enum cut cut);

/* The groups that carry an adapter on this site; how many. */
int pass_site_groups(const struct pass *p, int layer, enum lora_site site,
                     struct lora_group groups[]);

/* Hands out pieces of device memory; counts only while base is NULL. */
struct bump {
    char *base;
    size_t used;
};
float *bump_floats(struct bump *b, size_t count);
struct act bump_act(struct bump *b, size_t count, enum ops_dtype dtype);

#endif
