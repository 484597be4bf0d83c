/* model.h - inside the engine: the base model's weights and a LoRA adapter's tensors.
 *
 * Filled by model_file.c / adapter.c (files), read by forward.c and backward.c (arithmetic). */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "engine/engine.h"
#include "kernels/ops.h"

struct model_conf {
    int vocab, hidden, layers, heads, kv_heads, head_dim, intermediate, context_max;
    int ranks;      /* 1, or this is one rank's part of as many equal ones: vocab, heads, kv_heads and intermediate
                       are its own (model_config_part()) */
    bool tied;
    float rms_eps, rope_theta;
    bool says_bf16; /* what config.json says of the files; they decide */
    int32_t eos[8];
    int eos_count;
};

/* The projections, each of which can carry an adapter, in the order of state and files. */
enum lora_site { SITE_Q, SITE_K, SITE_V, SITE_O, SITE_GATE, SITE_UP, SITE_DOWN, SITES_A_LAYER };

/* How ranks share a matrix [out, in] (arXiv 1909.08053, section 3): by outputs, which need all inputs; or by inputs,
 * and then the ranks' products are to be summed.  Of a cut site one of A and B is cut the same way and the other is
 * whole on every rank: CUT_OUT leaves A [rank, in] whole, CUT_IN leaves B [out, rank]. */
enum cut { CUT_NONE, CUT_OUT, CUT_IN };
enum cut site_cut(enum lora_site site); /* o and down: CUT_IN; the others, and the unembedding: CUT_OUT */

/* Gains of the norms, fp32. */
struct layer_weights {
    float *input_norm, *post_norm; /* [hidden] */
    float *q_norm, *k_norm;        /* [head_dim] */
};

struct layer_packed {
    struct packed *ahead[SITES_A_LAYER]; /* y = x w^T */
    struct packed *back[SITES_A_LAYER];  /* dx = dy w */
};

/* All of it is the device's memory and the model's own: no file is needed any more.  The projections exist packed
 * only, once for each direction; of the embedding there is a table as well. */
struct model_weights {
    struct model_conf conf;       /* of this rank's part, which is what is packed; gains and table are whole */
    struct model_conf whole;
    int rank;
    enum ops_dtype dtype;         /* OPS_F32 or OPS_BF16: of the packed matrices and of the table */
    float *embed;                 /* [whole.vocab, hidden]; NULL when it is kept in bf16: */
    uint16_t *embed_bf16;
    struct layer_weights *layers; /* [conf.layers] */
    struct layer_packed *packed;  /* [conf.layers] */
    float *final_norm;            /* [hidden] */
    struct packed *unembed, *unembed_back;
    char sha256[65];              /* of the weight files' bytes, in order of name: sha256sum's for one file */
    const struct ops *ops;
    struct device *dev;
    float *gains;                 /* one block that holds all gains */
};

/* Reads config.json, generation_config.json (optional) and *.safetensors.  Every size, offset, dtype (F32,
 * BF16, F16), shape and name is checked against files and configuration before anything is sized by them.
 * weights is engine_conf's.  dev must live longer than the weights.  Of ranks parts only that of rank is kept.  NULL
 * on failure: ERR_USER for a folder that is wrong or cannot be cut, ERR_RETRY for I/O, memory, and a file that changed
 * while it was read. */
struct model_weights *model_weights_load(const char *dir, const char *weights, int rank, int ranks,
                                         const struct ops *ops, struct device *dev, struct err *e);
/* The same of dir's config.json alone: gains of 1, and matrices of random numbers, those of one size all the same
 * (model_random.c).  sha256 is zeros; "auto" is what config.json says. */
struct model_weights *model_weights_random(const char *dir, const char *weights, int rank, int ranks,
                                           const struct ops *ops, struct device *dev, struct err *e);
void model_weights_free(struct model_weights *mw); /* NULL is fine */

/* Sizes of a projection: x [rows, in], y [rows, out]. */
void site_size(const struct model_conf *mc, enum lora_site site, int *in, int *out);

/* "fp32", "bf16", or "auto" (NULL too): then automatic.  ERR_USER for anything else. */
int model_dtype_of(const char *weights, enum ops_dtype automatic, enum ops_dtype *out,
                   struct err *e) WARN_UNUSED;

/* Of a model of mc's shape, or of a part of one, kept as dtype: its parameters, and the bytes of gains and table. */
void model_weights_size(const struct model_conf *mc, enum ops_dtype dtype, size_t *parameters,
                        size_t *bytes);

/* ------------------------------------------------------------------ LoRA */

struct lora_tensor {
    int in, out;                  /* of the projection, or of this rank's part */
    enum cut cut;
    float *a, *b;                 /* A [rank, in], B [out, rank]; NULL: no adapter on this projection */
    float *grad_a, *grad_b;       /* same shapes; NULL when not trainable */
    float *m_a, *m_b, *v_a, *v_b; /* AdamW moments; NULL when not trainable */
};

/* The four parts of an adapter's state. */
enum part { PART_WEIGHTS, PART_GRADIENT, PART_M, PART_V, PARTS };

/* On one rank; with several each has one, and callers know the first, which alone has step and has_gradient.  Each
 * replica has such a set, equal to the others' whenever the engine is not at work; callers know the first's. */
struct adapter {
    const struct ops *ops;
    struct device *dev;           /* the rank's, which must outlive it; all memory below is this device's */
    struct lora_conf conf;
    float scale;                  /* alpha / rank */
    int layers;
    int rank_count;
    struct adapter *ranks[ENGINE_RANKS_MAX]; /* of the first: [rank_count], itself included */
    int replica_count;
    struct adapter *replicas[ENGINE_RANKS_MAX]; /* of the first rank of the first: [replica_count] first ranks */
    struct lora_tensor *sites;    /* [layers * SITES_A_LAYER], then one for the unembedding */
    int site_count;               /* layers * SITES_A_LAYER + 1 */
    int64_t step;
    uint64_t serial;              /* names these very weights for the replica's prefix cache; 0: nobody asked yet.
                                     Whoever changes an A or B sets it to 0 on every replica's first rank */
    bool trainable, has_gradient;
    float *memory;                /* one block of weights (A, B of site 0, of site 1 ...), then, when trainable, of
                                     gradients in the same order; every tensor begins at 64 bytes, and the padding
                                     between them stays zero */
    float *moments;               /* another of m, then v, in that order too; NULL when not trainable */
    bool paged;                   /* the moments are from alloc_paged: adam_tensor's `paged` */
    size_t part_count;            /* floats of one of the four parts */
    char base_model[128];         /* for adapter_config.json: the name of the model's folder */
};

static inline struct lora_tensor *adapter_site(const struct adapter *ad, int layer, enum lora_site s)
{
    return &ad->sites[layer * SITES_A_LAYER + s];
}

static inline struct lora_tensor *adapter_unembed(const struct adapter *ad)
{
    return &ad->sites[ad->layers * SITES_A_LAYER];
}

/* Name of a site as PEFT spells it: "model.layers.3.self_attn.q_proj", "lm_head"; size >= 64. */
void lora_site_name(const struct adapter *ad, int index, char *out, size_t size);

/* ERR_USER for a rank out of range, or an adapter on nothing. */
int lora_conf_check(const struct lora_conf *conf, struct err *e) WARN_UNUSED;

/* Allocates the tensors for conf on all ranks and replicas of the engine, all zero, and names the base model.  Used by create and
 * load. */
struct adapter *adapter_alloc(struct engine *en, const struct lora_conf *conf, bool trainable, struct err *e);

/* A's (b 0) or B's (b 1) tensor of a site as all ranks have it together: rows and columns. */
void adapter_tensor_size(const struct adapter *ad, int site, int b, int64_t *rows, int64_t *cols);
/* Its numbers at .. at + count - 1 between host and devices.  What is whole on every rank is read from the first and
 * written to all, and so are replicas.  A device that fails meanwhile gives zeros: adapter_sync() tells, as ops->sync() does. */
void adapter_tensor_get(const struct adapter *ad, int site, enum part part, int b, size_t at, float *to, size_t count);
void adapter_tensor_put(struct adapter *ad, int site, enum part part, int b, size_t at, const float *from,
                        size_t count);
int adapter_sync(const struct adapter *ad, struct err *e) WARN_UNUSED;

/* The gradient on this rank, all tensors in one: part_count floats of the device. */
float *adapter_gradient(const struct adapter *ad);

/* A tensor goes piece by piece through a room of the host's, which the caller frees; NULL: ERR_RETRY. */
#define ADAPTER_PIECE 16384 /* numbers */
float *adapter_room(struct err *e);
static inline size_t adapter_piece(size_t count, size_t at)
{
    return count - at < ADAPTER_PIECE ? count - at : ADAPTER_PIECE;
}

/* The engine's view that files need: one rank's part.  Defined by engine.c. */
const struct model_conf *engine_model_conf(const struct engine *en);

/* ------------------------------------------------------------------ tokenizer (decode only) */

/* tokenizer.json of a byte-level BPE: id -> bytes.  NULL with kind ERR_NONE when the file is absent. */
struct vocab;
struct vocab *vocab_load(const char *dir, struct err *e);
void vocab_free(struct vocab *v);
const char *vocab_bytes(const struct vocab *v, int32_t id, size_t *size); /* NULL: no such id */

/* ------------------------------------------------------------------ choosing a token */

/* Philox4x32-10 (Salmon et al., SC 2011): four words for (key, counter). */
void philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* x[i] uniform in [-bound, bound), a function of (seed, name, first + i) alone; first is a multiple of 4.  The
 * same bits on every machine: random weights of adapters and of made models. */
void philox_fill(float *x, size_t count, uint64_t first, float bound, uint64_t seed, const char *name);

/* The uniform number in [0, 1) for token `position` of sample `index` under `seed`; and for draw `index` at
 * `position` of the prompt, which has numbers of its own.  What is random in a choice is this number: the rest is
 * ops->pick's, on whatever device. */
double sample_uniform(uint64_t seed, uint32_t index, uint32_t position);
double alt_uniform(uint64_t seed, uint32_t index, uint32_t position);

/* The k largest logits' ids in descending order, equal ones by ascending id; -1 behind the vocabulary's end. */
void sample_top(const float *logits, int vocab, int k, int32_t *ids);

/* Does the text of the sampled tokens now end a stop string?  tail: the last bytes of the sample's text. */
bool stop_string_hit(const char *text, size_t size, size_t fresh, const char *const *stops, int count);

#endif
