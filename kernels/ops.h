/* ops.h - all arithmetic of the engine goes through this table.
 *
 * ops_cpu() is the definition; ops_cuda() is its fast twin and must agree with it.  Each op stands
 * beside its _back.  An op never fails by itself: what goes wrong on a device is kept and comes
 * out of the next sync(), as ERR_LOST.  Only what allocates can fail at once.
 *
 * Memory.  `float *` is memory of the device (from alloc), as is what a struct act points at; on the
 * CPU that is ordinary memory, so tests may pass their own arrays.  Ids and descriptors (int32_t
 * arrays, struct kv_seg, struct lora_group) are ordinary host memory, read before the call returns.
 * Arrays are row-major without gaps unless a leading dimension (ld...) is named.
 *
 * Row law.  Every sum below has one order that does not depend on how many rows take part or how
 * many threads work: a product of matrices is one chain of fused multiply-adds over k = 0, 1, ...;
 * the sum of a row is made in 16 lanes that are then added as a tree.  Those orders are the CPU's:
 * a GPU keeps the law with its own, and agrees within tolerances.
 * "add" means y += sum, where the sum was finished first.
 *
 * bf16.  A product with weights kept in bf16 first rounds x to bf16 as well: to the nearest, ties
 * to even, subnormals to zero of their sign.  k goes in pairs (0, 1), (2, 3), ..., an odd last one
 * with zeros beside it, and sum, zero at first, takes a pair's second product before its first:
 *   sum = flush(fma(x[k + 1], w[k + 1], sum));  sum = flush(fma(x[k], w[k], sum))
 * in fp32, where flush() makes a result below 2^-126 a zero of its sign.  That is what the
 * instruction VDPBF16PS does (Intel SDM vol. 2, its "Operation"; MXCSR plays no part), and every
 * instruction set gives these bits.  Two things may differ: which NaN comes out of a NaN, and a
 * result that lies within 2^-150 below 2^-126, which plain C rounds up before it looks.  An x that is
 * bf16 already is taken as it is; whether a device that writes such keeps subnormals is its own affair. */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define OPS_KV_BLOCK     64  /* positions in a block of keys and values; also of the datum law */
#define OPS_HEAD_DIM_MAX 256 /* widest attention head */
#define OPS_RANK_MAX     128 /* widest LoRA */
#define OPS_VOCAB_MAX    (1 << 20)

/* pass_rows and logits_bytes (below) of a GPU, for who plans without one. */
#define OPS_CUDA_PASS_ROWS    4096
#define OPS_CUDA_LOGITS_BYTES ((size_t)320 << 20)

enum ops_dtype { OPS_F32, OPS_BF16, OPS_F16 };

/* A matrix in host memory, row-major without gaps, perhaps unaligned (a mapped file). */
struct ops_matrix {
    const void *data;
    enum ops_dtype dtype;
    int rows, cols;
};

/* An array of activations, or of their gradients, in memory of the device: fp32, or the narrower type
 * that act_dtype() names for what lies between products.  Sums are made in fp32 and rounded once, when
 * they are written; "add" to a narrow array reads it, adds and rounds again. */
struct act {
    void *p;
    enum ops_dtype dtype; /* OPS_F32, or what act_dtype() says */
};

static inline struct act act_f32(const float *p)
{
    struct act a;
    a.p = (void *)p;
    a.dtype = OPS_F32;
    return a;
}

static inline size_t ops_size(enum ops_dtype dtype)
{
    return dtype == OPS_F32 ? sizeof(float) : sizeof(uint16_t);
}

struct device; /* a CPU's threads, or a GPU */
struct packed; /* a weight matrix prepared once for gemm */

struct attn_shape {
    int heads, kv_heads, head_dim; /* heads is a multiple of kv_heads; query head h reads KV head
                                      h / (heads / kv_heads) */
};

/* Consecutive rows of a pack that are one sequence's positions start .. start + rows - 1.  Its
 * keys and values live in blocks of OPS_KV_BLOCK positions; blocks[b] holds positions 64 b to
 * 64 b + 63 and may be shared by sequences that begin alike. */
struct kv_seg {
    int row, rows, start;
    float *const *blocks; /* of this layer; NULL where no attention is involved (rope) */
    size_t layer_offset;  /* floats from a block's beginning to this layer's part */
};

/* Consecutive rows of a pack that share one adapter's A [rank, in] and B [out, rank]. */
struct lora_group {
    int row, rows;
    int rank; /* 1 .. OPS_RANK_MAX */
    float scale;
    const float *a, *b;
    float *grad_a, *grad_b; /* only for project_back */
    const int *blocks;      /* only for project_back: first row of each block of the datum law, in
                               order, then row + rows */
    int block_count;
};

/* A projection y [rows, out] of x [rows, in]: frozen weights, and what adapters add to it. */
struct projection {
    const struct packed *w; /* [out, in]; NULL: adapters only */
    int in, out;
    struct act y;
    bool add; /* to y instead of overwriting it; always so where w is NULL */
    float *u; /* [rows, ldu]; ldu >= the largest rank.  NULL without groups */
    int ldu;
    const struct lora_group *groups;
    int count;
};

/* Its way back, or half of it, for who has to do something about du in between. */
enum back_part {
    BACK_WHOLE,
    BACK_DX,    /* dx and du; gradients are left alone */
    BACK_GRADS, /* gradients from du as it stands; w and dx are not looked at */
};

struct projection_back {
    const struct packed *w; /* [in, out], transposed; NULL: adapters only */
    int in, out;            /* as in the projection */
    bool add;               /* to dx instead of overwriting it; always so where w is NULL */
    const float *u;         /* [rows, ldu] */
    float *du;
    int ldu;
    const struct lora_group *groups;
    int count;
    enum back_part part;
};

/* One choice of a token from a row of logits; see pick(). */
struct pick {
    int row;
    float temperature; /* finite; 0: the likeliest id */
    int top_k;         /* below 1: off */
    float top_p;       /* 1 and above: off */
    double uniform;    /* in [0, 1) */
};

/* One AdamW step (arXiv 1711.05101, algorithm 2) with everything scalar worked out in double:
 *   w *= decay;  m += (g' - m) one_minus_beta1;  v = v beta2 + g' g' one_minus_beta2
 *   w -= step_size m / (sqrt(v) / bias2_sqrt + eps)         where g' = g grad_scale */
struct adamw_step {
    float grad_scale, decay, one_minus_beta1, beta2, one_minus_beta2;
    float step_size, bias2_sqrt, eps;
};

/* A trained tensor: weights, gradient and moments of `count` numbers. */
struct adam_tensor {
    float *w, *grad, *m, *v;
    size_t count;
    bool paged; /* m and v are memory from alloc_paged */
};

/* How recorded sequences were done, counted since open(). */
struct ops_recorded {
    int64_t plain;    /* call by call, because they were new or differed */
    int64_t captured; /* times that one was made ready to be sent as a whole */
    int64_t replayed; /* sent as a whole */
    int kept;         /* sequences that are known now */
};

struct ops {
    const char *name;

    /* ---- the device ---- */
    struct device *(*open)(int index, int threads, struct err *e);
    void (*close)(struct device *d); /* NULL is fine */
    /* Device, its instruction set, the weights' format (OPS_F32 or OPS_BF16) and compiler: what may
     * change bits, and nothing else.  Lives as long as d. */
    const char *(*numerics)(const struct device *d, enum ops_dtype weights);

    /* How activations between products are best kept with weights kept so: OPS_F32 on the CPU, which
     * takes no other; on a GPU the weights' own. */
    enum ops_dtype (*act_dtype)(enum ops_dtype weights);
    /* Rows of a pass that are enough to keep the device busy, and bytes of a chunk of logits that are. */
    int pass_rows;
    size_t logits_bytes;

    /* 64-byte aligned and zero; NULL with ERR_RETRY when there is no room. */
    void *(*alloc)(struct device *d, size_t bytes, struct err *e);
    void (*release)(struct device *d, void *p);
    /* Memory beside the device's own, for moments, which a step of the optimizer brings to the
     * device piece by piece: of a GPU it is pinned memory of the host.  Aligned, zero and refused as
     * alloc's.  adamw (with adam_tensor's `paged`), upload and download take it, no other op. */
    void *(*alloc_paged)(struct device *d, size_t bytes, struct err *e);
    void (*release_paged)(struct device *d, void *p); /* NULL is fine */
    /* The device's own memory, as all processes together leave it; 0 and 0 where alloc takes the
     * host's. */
    int (*memory)(struct device *d, size_t *free_bytes, size_t *total_bytes, struct err *e);
    void (*upload)(struct device *d, void *to, const void *from_host, size_t bytes);
    void (*download)(struct device *d, void *to_host, const void *from, size_t bytes);
    void (*copy)(struct device *d, void *to, const void *from, size_t bytes);
    void (*zero)(struct device *d, void *p, size_t bytes);
    /* Waits until all that was asked is done; -1 with ERR_LOST when any of it failed. */
    int (*sync)(struct device *d, struct err *e);

    /* ---- the same sequence again ---- */
    /* What stands between these two will probably be asked for again, as the passes of decoding are:
     * the same ops with the same pointers and shapes, only other contents of what lies in host
     * memory (ids, segments, groups).  A GPU then sends all of it at once, as a CUDA graph.  What is
     * asked for is compared with what was asked for before, under the same key, so results and
     * their bits do not depend on any of this; a key that is right is only faster.  A sequence that
     * differs is done op by op and is what is kept under the key from then on; only some of the
     * keys that were used last are kept.
     *
     * For ops that compute, copy and zero.  What moves memory to or from the host, allocates,
     * releases or waits has its effect as well, but ends the recording.  Begin and end
     * come in pairs and do not nest.  The CPU has nothing to do here. */
    void (*record_begin)(struct device *d, uint64_t key);
    void (*record_end)(struct device *d);
    struct ops_recorded (*recorded)(const struct device *d);

    /* ---- products with frozen weights ---- */
    /* Prepares w [out, in] (copied) for y = x w^T, or with transpose for y = x w, which is the
     * former's way back: dx = dy w.  keep: OPS_F32 or OPS_BF16, to which w is widened or rounded
     * (as x is, see above) whatever it was. */
    struct packed *(*pack)(struct device *d, const struct ops_matrix *w, enum ops_dtype keep,
                           bool transpose, struct err *e);
    /* w of the same matrix m for the other way, with the bits of pack().  Where the device keeps one
     * layout for both, as a GPU does, it shares w's memory; so w must be freed after it. */
    struct packed *(*pack_other_way)(struct device *d, const struct packed *w,
                                     const struct ops_matrix *m, struct err *e);
    void (*packed_free)(struct device *d, struct packed *w); /* NULL is fine */
    /* What pack() asks alloc() for. */
    size_t (*packed_bytes)(int out, int in, enum ops_dtype keep, bool transpose);
    /* y [rows, out] (+)= x [rows, in] w^T, or [rows, in] (+)= x [rows, out] w when transposed */
    void (*gemm)(struct device *d, struct act y, struct act x, int rows, const struct packed *w,
                 bool add);

    /* ---- projections with LoRA (arXiv 2106.09685, eq. 3) ---- */
    /* For each of count projections of the same x [rows, in]: y (+)= x w^T;
     * u [rows, ldu] = scale x A^T;  y += u B^T, each group with its own A, B, rank.  Rows outside
     * all groups get no more than the frozen product.  No two may share a y or a u. */
    void (*project)(struct device *d, struct act x, int rows, const struct projection *p, int count);
    /* dx [rows, in] (+)= dy w;  du = scale dy B;  dx += du A (dx.p NULL: not wanted);
     * grad_a += sum over blocks of du^T x;  grad_b += sum over blocks of dy^T u, a block's rows
     * being one chain from zero.  u is what project() left.  Groups with the same gradients must
     * not share a call.  BACK_DX and then BACK_GRADS give the bits of BACK_WHOLE. */
    void (*project_back)(struct device *d, struct act dx, struct act dy, struct act x, int rows,
                         const struct projection_back *p);

    /* ---- rows ---- */
    /* y [rows, width] = table [ids[i], width].  The table may be bf16 on every device; y has its type,
     * or is fp32 and gets it widened exactly. */
    void (*gather)(struct device *d, struct act y, struct act table, const int32_t *ids, int rows,
                   int width);
    /* y [index[i], width] = x [i, width]; no index twice.  gather's way back,
     * in fp32. */
    void (*scatter)(struct device *d, float *y, const float *x, const int32_t *index, int rows,
                    int width);
    /* y = x / sqrt(mean(x^2) + eps) * gain[width] (arXiv 1910.07467) */
    void (*rms_norm)(struct device *d, struct act y, struct act x, const float *gain, int rows,
                     int width, float eps);
    /* dx (+)= the way back; gain is frozen and gets no gradient.  All three of one type; dx may be dy. */
    void (*rms_norm_back)(struct device *d, struct act dx, struct act dy, struct act x,
                          const float *gain, int rows, int width, float eps, bool add);
    /* Rotary position (arXiv 2104.09864) in place on x [rows, heads, head_dim], half-split: element
     * i turns with element i + head_dim / 2 by the angle whose cosine and sine stand at
     * [position, i] of the tables [context, head_dim / 2]. */
    void (*rope)(struct device *d, struct act x, const float *cosine, const float *sine,
                 const struct kv_seg *segs, int seg_count, int heads, int head_dim);
    void (*rope_back)(struct device *d, struct act dx, const float *cosine, const float *sine,
                      const struct kv_seg *segs, int seg_count, int heads, int head_dim);
    /* y = gate / (1 + exp(-gate)) * up (arXiv 2002.05202).  All of one type, here and on the way back. */
    void (*swiglu)(struct device *d, struct act y, struct act gate, struct act up, size_t count);
    void (*swiglu_back)(struct device *d, struct act dgate, struct act dup, struct act dy,
                        struct act gate, struct act up, size_t count);

    /* ---- attention: all arrays of rows of one type but lse, which is fp32 ---- */
    /* Floats that one block needs for one layer; the layout inside is the device's own. */
    size_t (*kv_floats)(const struct attn_shape *shape);
    /* Puts k and v [rows, kv_heads, head_dim] into the segments' blocks. */
    void (*kv_write)(struct device *d, struct act k, struct act v, const struct kv_seg *segs,
                     int seg_count, const struct attn_shape *shape);
    /* o [rows, heads, head_dim] = softmax(q k^T / sqrt(head_dim)) v over the keys at positions up
     * to the row's own; lse [rows, heads] the logarithm of the softmax's denominator.  Keys are
     * taken block by block from position 0 with a running maximum (arXiv 2205.14135), in the same
     * way for a row alone and for a row of a long segment. */
    void (*attention)(struct device *d, struct act o, float *lse, struct act q,
                      const struct kv_seg *segs, int seg_count, const struct attn_shape *shape);
    /* For segments with start 0.  dq like q; dk, dv [rows, kv_heads, head_dim]; all overwritten. */
    void (*attention_back)(struct device *d, struct act dq, struct act dk, struct act dv,
                           struct act dout, struct act o, const float *lse, struct act q,
                           const struct kv_seg *segs, int seg_count,
                           const struct attn_shape *shape);

    /* ---- the head ---- */
    /* Row i asks for the ids at first[i] .. first[i + 1] - 1; with first NULL for ids[i] alone.  An
     * id of -1 is one of a vocabulary that goes on elsewhere: its logprob is 0, its onehot nowhere.
     *
     * lse[i] = log sum exp(logits [i, vocab]);  logprob[c] = logits[i, ids[c]] - lse[i] */
    void (*logprob)(struct device *d, float *logprob, float *lse, const float *logits,
                    const int *first, const int32_t *ids, int rows, int vocab);
    /* In place: logits[i, j] = sum over c of row i of g[c] (onehot(ids[c])[j] - exp(logits[i, j] -
     * lse[i])), which is dL / dlogits when g[c] = dL / dlogprob[c].  The g are summed in double
     * before the exponential is scaled, and added at their ids, both in the order of c; an id may
     * stand in a row more than once. */
    void (*logprob_back)(struct device *d, float *logits, const float *lse, const float *g,
                         const int *first, const int32_t *ids, int rows, int vocab);

    /* ids[c] (on the host) = the token that picks[c] chooses from its row of logits [.., vocab],
     * for c = 0 .. count - 1 and 1 <= vocab <= OPS_VOCAB_MAX.  It waits for the result; on a device
     * that has failed that is 0.
     *
     * The order of a row's ids: larger logits first, equal ones by ascending id; -0 equals 0, NaN
     * comes last.  The first is the likeliest.  It is chosen at temperature 0 (or below, or so
     * small that 1 / temperature is infinite), and where its logit is not finite.  Else id i has
     * the mass
     *   exp((logits[i] - logits[likeliest]) / temperature)        in fp32; 0 for NaN
     * and there stay, in this turn: with top_k the first top_k ids of the order; with top_p of
     * these the shortest beginning of the order (one id at least) that has top_p of their mass
     * (arXiv 1904.09751, section 3.1).  Chosen is the first of them, by ascending id, at which the
     * masses so far exceed uniform times the mass of all of them: the inverse of the distribution.
     *
     * The uniform number is all that is random, and the caller's: no device makes any.  So a choice
     * is a function of the row, temperature, top_k, top_p and the number, wherever the pick stands
     * and whatever stands beside it.  Masses, their sums and their rounding are the device's own.
     * Two classes of numerics choose differently only where a sum lies within rounding (about 1e-6
     * of the whole) of uniform times the mass, or of top_p of it; never at temperature 0, and what
     * top_k leaves is always the same.
     *
     * Picks of one row that differ in their numbers alone cost little more than one of them when
     * they stand side by side. */
    void (*pick)(struct device *d, int32_t *ids, const float *logits, const struct pick *picks,
                 int count, int vocab);

    /* ---- the optimizer ---- */
    /* Sum of squares of the gradients in double, in an order that depends on the tensors' counts
     * only: each is summed by itself, then they are added in turn.  It waits for the result. */
    double (*sum_squares)(struct device *d, const struct adam_tensor *tensors, int count);
    /* One step of all tensors; their gradients are zero afterwards.  No bit depends on which of
     * them are paged. */
    void (*adamw)(struct device *d, const struct adamw_step *step,
                  const struct adam_tensor *tensors, int count);
};

/* The best table for this machine.  Where two instruction sets give the same bits, a
 * short trial at the first call tells which is faster: another process may choose the other. */
const struct ops *ops_cpu(void);
/* "avx512bf16", "avx512", "avx2" or "plain"; NULL when this machine or build lacks it.  For tests.
 */
const struct ops *ops_cpu_isa(const char *isa);

/* NULL with ERR_USER when this build has no CUDA, or this machine no such GPU. */
const struct ops *ops_cuda(int index, struct err *e);

#endif
