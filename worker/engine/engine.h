/* engine.h - one base model, many LoRA adapters: train, sample, save, load.
 *
 * The engine knows no Kafka, Redis or Postgres.  One thread drives it; inside it
 * may use its own threads.  Everything a caller can get wrong comes back as
 * ERR_USER before anything is changed; ERR_LOST means that the process must leave.
 *
 * Its laws (tests hold it to them with `==`):
 *  - row law: the bits of an output row depend on that row's inputs only, never on
 *    which other rows, tenants, chunks or threads share the pass;
 *  - datum law: gradients of an adapter are summed in the order of its calls, then
 *    datums, then fixed blocks of 64 tokens, in fp32, whatever else is in the batch
 *    (with replicas: calls, then items, then replicas, then datums and blocks; deal.c);
 *  - one path: training forward, prefill and decode compute a position with the same
 *    arithmetic, so a sampled token's logprob equals the one of a later forward.
 *
 * Model: Qwen3 dense (Qwen3 technical report, arXiv 2505.09388): pre-norm RMSNorm, GQA with
 * per-head q/k RMSNorm before RoPE (half-split rotation), SwiGLU, optional tied unembedding.
 * LoRA (arXiv 2106.09685, eq. 3): y = W x + (alpha / r) B A x, alpha = 32. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

#define ENGINE_BLOCK_TOKENS 64  /* the datum law's block */
#define ENGINE_RANK_MAX     128 /* of LoRA */
#define ENGINE_RANKS_MAX    8   /* of tensor parallelism; times replicas: devices of an engine */
#define ENGINE_TOPK_MAX     20
#define ENGINE_TARGETS_MAX  256 /* targets of one position */
#define ENGINE_ALT_MAX      64 /* draws a prompt position */
#define ENGINE_NO_LOGPROB   (-99999.0f)
#define ENGINE_LORA_ALPHA   32.0f

/* ------------------------------------------------------------------ base model */

struct engine;

struct engine_conf {
    const char *model_dir;      /* Hugging Face folder: config.json, *.safetensors, tokenizer.json */
    const char *device;         /* "cpu"; "cuda:N", refused by a build without it */
    int threads;                /* >= 1, of each rank of each replica */
    int ranks;                  /* tensor parallelism (arXiv 1909.08053): so many devices share every layer; 0 and 1: one.
                                   On "cpu" each is a set of threads, on "cuda:N" a GPU from the Nth on.  It must divide
                                   the model's heads, key heads, intermediate size and vocabulary (ERR_USER) */
    int replicas;               /* data parallelism: so many times the whole base model and every adapter, each on ranks of
                                   its own, for larger batches and more requests; 0 and 1: one.  ranks x replicas devices
                                   follow each other, at most ENGINE_RANKS_MAX (ERR_USER) */
    size_t scratch_bytes_max;   /* activations of one pass, on each rank of each replica; 0: 4 GiB */
    size_t kv_bytes_max;        /* all KV caches of running samples, on each rank of each replica; 0: 1 GiB */
    const char *weights;        /* how the base is kept: "fp32"; "bf16", half the bytes, its products in bf16
                                   with fp32 sums (kernels/ops.h); "auto" or NULL: bf16 when all matrices of the
                                   files are, otherwise fp32, so that nothing is rounded */
    bool paged_moments;         /* AdamW's moments lie in the host's pinned memory, and a step brings them to the GPU
                                   piece by piece: the same bits, more adapters, slower steps.  No matter on "cpu" */
};

struct engine_info {
    const char *model_dir;      /* as opened */
    const char *arch;           /* "qwen3" */
    int vocab, hidden, layers, heads, kv_heads, head_dim, intermediate;
    int context_max;            /* max_position_embeddings */
    bool tied;
    const int32_t *eos;         /* stop tokens of config.json and generation_config.json */
    int eos_count;
    const char *weights;        /* "fp32" or "bf16" */
    int ranks, replicas;        /* 1 .. ENGINE_RANKS_MAX, and so their product */
    const char *numerics;       /* numerics class: device, instruction set, build, ranks and replicas that decide bits */
    char weights_sha256[65];    /* of the weight files, in order of name */
};

/* NULL on failure: ERR_USER for a folder that is wrong (the text says what), ERR_RETRY for I/O
 * and memory.  Everything is copied: the folder's files may change or go once it is open; one that changes
 * or shrinks while it is read is ERR_RETRY. */
struct engine *engine_open(const struct engine_conf *conf, struct err *e);
void engine_close(struct engine *en); /* NULL is fine; every adapter and sample must be freed first */
const struct engine_info *engine_info(const struct engine *en); /* lives as long as en */

/* Memory of the engine's devices, by the one that has the least left: what is free beside the weights and whatever else
 * uses it now, and all of it.  0 and 0 for a device without memory of its own ("cpu"). */
int engine_device_memory(const struct engine *en, size_t *free_bytes, size_t *total_bytes, struct err *e) WARN_UNUSED;

/* Bytes of one token by the folder's tokenizer.json (byte-level BPE): a pointer into the engine,
 * *size bytes, not NUL terminated.  NULL when the folder has no tokenizer or the id no entry. */
const char *engine_token_bytes(const struct engine *en, int32_t id, size_t *size);
bool engine_has_tokenizer(const struct engine *en);

/* ------------------------------------------------------------------ adapters */

/* Lies in the memory of the engine's devices, which it must not outlive. */
struct adapter;

struct lora_conf {
    int rank;                   /* 1 .. ENGINE_RANK_MAX */
    bool train_attn;            /* q, k, v, o projections */
    bool train_mlp;             /* gate, up, down */
    bool train_unembed;         /* the unembedding (lm_head), also when tied */
};

/* A fresh adapter with optimizer state: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, as PEFT
 * does), drawn by Philox from seed and the tensor's name; B zero; gradients, m, v and step zero. */
struct adapter *adapter_create(struct engine *en, const struct lora_conf *conf, uint64_t seed,
                               struct err *e);
void adapter_free(struct adapter *ad); /* NULL is fine */
const struct lora_conf *adapter_conf(const struct adapter *ad);
int64_t adapter_step(const struct adapter *ad);      /* optimizer steps taken */
bool adapter_has_gradient(const struct adapter *ad); /* something was accumulated since the last step */
size_t adapter_bytes(const struct engine *en, const struct lora_conf *conf, bool optimizer); /* of all ranks and replicas
                        together, wherever they lie; of one with optimizer state the moments are half */

/* SHA-256 (hex, 65 bytes) over configuration, weights, step, m, v and pending gradient: equal digests
 * mean equal state, on however many ranks and replicas. */
int adapter_digest(const struct adapter *ad, char out[65], struct err *e) WARN_UNUSED;

/* A checkpoint is a folder: adapter_config.json + adapter_model.safetensors (loadable by PEFT) and,
 * when asked for, optimizer.safetensors (m, v, step; the pending gradient too if there is one).
 * save writes dir + ".tmp", syncs, renames over nothing: an existing dir is ERR_USER.
 * *size_bytes gets the sum of the files; sha256 the hash over the files' hashes in order of name.
 * Files hold whole tensors: the ranks and replicas that saved them do not show, and any number of either can load
 * them. */
int adapter_save(const struct adapter *ad, const char *dir, bool with_optimizer, int64_t *size_bytes,
                 char sha256[65], struct err *e) WARN_UNUSED;

/* Checks the files against expected_sha256 (NULL: not checked) before anything is used.
 * trainable false: weights only, for sampling; no gradient or optimizer memory.
 * with_optimizer true but no optimizer.safetensors there: ERR_USER.  Not with_optimizer: m, v, step 0. */
struct adapter *adapter_load(struct engine *en, const char *dir, const char *expected_sha256,
                             bool trainable, bool with_optimizer, struct err *e);

/* ------------------------------------------------------------------ training */

/* The losses.  For position i of a datum let p_i = log P(targets[i]), q_i = logprobs[i], A_i =
 * advantages[i], w_i = weights[i], r_i = exp(p_i - q_i), clamp_i(x) = min(max(x, low_i), high_i).
 * sg(x) is x without a derivative.  The loss of a datum is minus the sum over all its positions of
 *
 *   cross_entropy        w_i p_i                               slope dL/dp_i: -w_i
 *   importance_sampling  r_i A_i                               -r_i A_i
 *   ppo                  min(r_i A_i, clamp_i(r_i) A_i)        -r_i A_i, or 0 where the clamped term
 *                        (arXiv 1707.06347, eq. 7)             is the smaller
 *   cispo                sg(clamp_i(r_i)) p_i A_i              -clamp_i(r_i) A_i
 *                        (CISPO, arXiv 2506.13585)
 *   dro                  p_i A_i - beta/2 (p_i - q_i)^2        -A_i + beta (p_i - q_i)
 *                        (arXiv 2405.19107)
 *   gspo                 min(s_i A_i, clamp_i(s_i) A_i)        -s A_i, or 0 where the clamped term
 *                        (arXiv 2507.18071, eq. 5 and 7,       is the smaller
 *                        and its form by tokens, section 4.3)
 *
 * where s_i = sg(s) exp(p_i - sg(p_i)), and s = exp(mean of p_j - q_j over the positions j whose
 * sequence_ratio_mask is not 0): one ratio a datum.  Losses are sums; nothing is divided by counts.
 *
 * cross_entropy also takes targets and weights of shape [n, K]: the sum runs over both, which with
 * a teacher's probabilities as weights is distillation (arXiv 1503.02531) from its top K.
 *
 * Our reading, where the papers leave it open: the bounds are bounds of the ratio itself and not
 * distances from 1.  dro is taken token by token, as the client's documentation writes it, not by
 * sequence as in the paper; its quadratic term holds at every position, advantage 0 or not, so q
 * must be true everywhere.  In gspo every position with an advantage has the sequence's ratio,
 * whether or not the mask counts it. */
enum loss_kind {
    LOSS_CROSS_ENTROPY,
    LOSS_IMPORTANCE_SAMPLING,
    LOSS_PPO,
    LOSS_CISPO,
    LOSS_DRO,
    LOSS_GSPO,
    LOSS_UNKNOWN
};

/* "cross_entropy" ...; LOSS_UNKNOWN for a name we do not have.  loss_names(): a list for error texts. */
enum loss_kind loss_kind_of(const char *name);
const char *loss_names(void);

struct loss_conf {
    enum loss_kind kind;
    double clip_low, clip_high; /* ppo, cispo, gspo: bounds of the ratio, 0 <= low <= high */
    double beta;                /* dro: >= 0 */
};

/* The settings of a loss until somebody sets others: ppo 0.8 and 1.2, cispo 0 and 4, gspo 1 - 3e-4
 * and 1 + 4e-4, dro 0.05.  What a loss does not take is 0. */
struct loss_conf loss_defaults(enum loss_kind kind);

/* Sets clip_low_threshold, clip_high_threshold or beta.  ERR_USER for a key that the loss does not
 * take (the text names those that it does) and for a number that is not finite. */
int loss_set(struct loss_conf *c, const char *key, double value, struct err *e) WARN_UNUSED;

/* One sequence.  Position i predicts targets[i]; the caller has shifted already.  All arrays are
 * borrowed for the call and hold n values, or n x columns where it says [n, K].  A loss reads what
 * its formula names; what else is there is not looked at. */
struct datum {
    int n;
    int columns;             /* 0: targets are [n]; else [n, columns], for cross_entropy only */
    const int32_t *tokens;
    const int64_t *targets;  /* [n, K]; an id may stand in a row more than once */
    const float *weights;    /* [n, K]; any finite numbers */
    const float *logprobs;   /* as recorded at sampling */
    const float *advantages;
    const float *clip_low, *clip_high; /* bounds for each position; NULL: those of loss_conf */
    const float *sequence_ratio_mask;  /* gspo; NULL: every position counts */
    float *out_logprobs;     /* [n, K], filled for every position, weight 0 included */
};

/* One job's share of a pass.  Several items may name the same adapter: their gradients are added in
 * the order of the items. */
struct train_item {
    struct adapter *adapter;   /* NULL: the bare base model, forward_only */
    struct loss_conf loss;
    bool forward_only;         /* no gradient; adapter may then be not trainable */
    struct datum *datums;
    int datum_count;           /* >= 1 */
    double out_loss;           /* the sum */
};

/* Everything that a caller can get wrong about one item: token ids, targets, lengths against the
 * context, finite numbers, missing arrays.  ERR_USER names the datum, the value and what was expected. */
int engine_train_check(const struct engine *en, const struct train_item *item, struct err *e) WARN_UNUSED;

/* Runs all items in one packed pass (split inside as memory demands; no bit depends on the split)
 * and adds to the adapters' pending gradients.  Every item must have passed engine_train_check().
 * -1: ERR_RETRY (memory) leaves no item's gradient changed; ERR_LOST. */
int engine_train(struct engine *en, struct train_item *items, int count, struct err *e) WARN_UNUSED;

struct adam_params {
    double learning_rate, beta1, beta2, eps, weight_decay;
    double grad_clip_norm; /* maximum global norm of the gradient; 0: off */
};

/* ERR_USER unless all are finite and in range (rates >= 0, betas in [0, 1), eps >= 0). */
int adam_params_check(const struct adam_params *p, struct err *e) WARN_UNUSED;

/* AdamW with decoupled decay (arXiv 1711.05101, algorithm 2), bias corrected, in fp32 as torch.optim.AdamW:
 * clips, applies and clears the pending gradient; with none pending the gradient is zero and the step still
 * counts.  *grad_norm: the global norm before clipping (the factor is max / (norm + 1e-6), as torch's).
 * A norm that is not finite is ERR_USER: the gradient is dropped, weights, moments and step stay. */
int adapter_optim_step(struct engine *en, struct adapter *ad, const struct adam_params *p,
                       double *grad_norm, struct err *e) WARN_UNUSED;

/* ------------------------------------------------------------------ sampling */

struct sample_conf {
    int num_samples;              /* 0 .. 128; 0: the prompt's scores only */
    int max_tokens;               /* >= 1, or -1: up to the context limit */
    float temperature;            /* 0: greedy (lowest id wins ties) */
    int top_k;                    /* -1: off */
    float top_p;                  /* (0, 1] */
    uint64_t seed;                /* the user's, or derived from the job id */
    bool stop_at_eos;             /* false when the caller gave an empty stop list */
    const int32_t *stop_tokens;
    int stop_token_count;
    const char *const *stop_strings; /* UTF-8; the sample ends with the token that completes one */
    int stop_string_count;

    /* Scores: log-probabilities that are wanted beside those of the sampled tokens.  All are of the untempered,
     * untruncated distribution and have the bits that a forward pass gives the same id at that position. */
    bool prompt_logprobs;    /* log P(prompt[i] | prompt[..i)); position 0 is NaN */
    int prompt_last;         /* 0, or 1 .. prompt_count - 1: prompt_logprobs and topk_prompt only for the last so many
                                tokens of the prompt */
    int topk_prompt;         /* 0 .. ENGINE_TOPK_MAX: the likeliest ids at each position of the prompt */
    int topk_sampled;        /* the same for each sampled token */
    int alt_tokens;          /* 0 .. ENGINE_ALT_MAX: draws with replacement at each position of the prompt but the first, at
                                this temperature, not cut by top_k and top_p */
    const int *target_first; /* NULL: none.  [prompt_count]: the ids target_first[i] .. target_first[i + 1] - 1 of */
    const int32_t *target_ids; /* this array are scored at position i + 1 of the prompt; -1 is skipped */
};

enum stop_reason { STOP_REASON_STOP, STOP_REASON_LENGTH };

/* Likeliest ids by descending log-probability, equal ones by ascending id.  What was not computed, and what a small
 * vocabulary does not have, is id 0 with ENGINE_NO_LOGPROB. */
struct top {
    int k;           /* 0: not asked for, and no arrays */
    int32_t *ids;    /* [positions, k] */
    float *logprobs; /* [positions, k] */
};

struct sampled {
    int n;
    int32_t *tokens;   /* the token(s) that complete a stop are included */
    float *logprobs;   /* untempered, untruncated log-probabilities, one a token */
    struct top top;    /* n positions */
    enum stop_reason reason;
};

struct sample_result {
    int prompt_count;
    float *prompt_logprobs; /* [prompt_count], NaN where there is none; NULL unless asked for */
    struct top prompt_top;  /* prompt_count positions, the first of them filler */
    struct top alt;         /* prompt_count - 1 positions: what was drawn for position i + 1, in the order of the draws */
    float *target_logprobs; /* beside target_ids, 0 where that is -1; NULL unless asked for */
    struct sampled *sequences;
    int sequence_count;
};
void sample_result_clear(struct sample_result *r);

/* One request in flight.  Requests of different adapters are added at any time between steps and run
 * together; a step moves every running sequence one token on and feeds some hundred rows of the prompts that wait,
 * the oldest first.  Token t of sample s is drawn by Philox(seed, s, t): company does not matter.
 *
 * A prompt is computed once for its samples, and its whole blocks of 64 tokens are kept for other requests of the
 * same weights that begin alike and that the same replica serves, also for those that arrive while it is being
 * computed (kv.h).  What a request wants scored is computed for it, and so is the last token of its prompt; no bit
 * shows which blocks were found. */
struct sample;

/* adapter NULL: the bare base model.  Its weights must stay as they are, and alive, while the request is in flight.
 * Copies what it needs.  ERR_USER for bad ids, an empty prompt, a prompt that does not fit the context, stop strings
 * without a tokenizer, bad numbers; ERR_RETRY when the KV budget has no room now (add again later; a request that
 * can never fit is ERR_USER). */
struct sample *engine_sample_add(struct engine *en, struct adapter *adapter, const int32_t *prompt,
                                 int prompt_count, const struct sample_conf *conf, struct err *e);

/* Moves every request on.  Returns the number of requests that are now unfinished, or -1 (ERR_LOST). */
int engine_sample_step(struct engine *en, struct err *e) WARN_UNUSED;

bool sample_done(const struct sample *s);

/* Takes the result of a finished request; the caller clears it. */
void sample_take(struct sample *s, struct sample_result *out);

/* Ends the request, finished or not, and gives its KV memory back.  NULL is fine. */
void engine_sample_free(struct engine *en, struct sample *s);

/* Since the engine was opened. */
struct sample_stats {
    int64_t prompt_tokens;        /* of all requests added */
    int64_t prompt_tokens_cached; /* of these, found in the prefix cache instead of computed */
    int64_t evictions;            /* blocks whose memory the cache had to give up */
    int64_t passes_replayed;      /* of decoding on a GPU, sent as one CUDA graph */
    int64_t passes_plain;         /* the others: the first of their kind, or changed since */
};
struct sample_stats engine_sample_stats(const struct engine *en);

#endif
