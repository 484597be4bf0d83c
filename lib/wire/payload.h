/* payload.h - what is inside a job or a result: C <-> protobuf and JSON.
 *
 * Decoders accept what the public clients send (docs/protocol.md) and say in ERR_USER texts what is wrong:
 * the place ("datum 3: target_tokens"), the value, what was expected.  They bound every size before allocation
 * and copy what they keep.  Semantics that need the model (token ids against its vocabulary, context) are the
 * engine's to check. */
#ifndef WIRE_PAYLOAD_H
#define WIRE_PAYLOAD_H

#include <stdbool.h>
#include <stdint.h>
#include "wire/job.h"

#define DATUMS_MAX         1024
#define DATUM_TOKENS_MAX   32768
#define REQUEST_TOKENS_MAX (1 << 20)
#define TARGETS_MAX        256       /* target_tokens of one position */
#define RESULT_CELLS_MAX   (3 << 20) /* log-probabilities of one result: 12 MiB */
#define LOSS_SETTINGS_MAX  16
#define NUM_SAMPLES_MAX    128
#define STOPS_MAX          64
#define STOP_BYTES_MAX     256
#define RANK_MAX           128
#define JSON_DEPTH_MAX     32
#define SAMPLE_TOPK_MAX    20
#define SAMPLE_ALT_MAX     64
#define SAMPLE_RESULT_MAX  (12 << 20) /* bytes that the answer to a sample request may come to */

/* ---------------------------------------------------------------- training */

/* One sequence as it came.  An array that was not sent is NULL; every array present has n values,
 * but for targets and weights of shape [n, columns], which lie row by row.  A sparse tensor is made
 * dense: cells that it does not list are 0, which for targets is the id 0. */
struct train_datum {
    int n;
    int columns;        /* of targets; 0: they are [n] */
    int weight_columns; /* the same of weights; equal to columns where both were sent */
    int32_t *tokens;
    int64_t *targets;
    float *weights, *logprobs, *advantages;
    float *clip_low, *clip_high, *sequence_ratio_mask;
};

/* An entry of loss_fn_config.  Which keys a loss takes is not this room's to know. */
struct loss_setting {
    char key[64];
    bool text; /* the value is a text; number is 0 then */
    double number;
};

struct train_request {
    char run[ID_SIZE];
    int64_t seq; /* 0 when the request carries none */
    bool forward_only;
    char loss[64];
    struct loss_setting settings[LOSS_SETTINGS_MAX];
    int setting_count;
    int count;
    struct train_datum *datums;
    int64_t tokens;                     /* sum of n */
    int64_t target_cells, weight_cells; /* values of all targets and of all weights */
};

/* Protobuf ForwardBackwardRequest, or JSON {"forward_backward_input"|"forward_input": {"data": [...],
 * "loss_fn": s, "loss_fn_config"?: {..}}, "model_id", "seq_id"?}.
 * Two ways to be wrong: *malformed true means that the bytes are no such message at all (answer 400);
 * false means a well-formed request with a wrong content (accept the job and fail its future). */
struct train_request *train_request_decode(enum content content, const void *bytes, size_t size,
                                           bool *malformed, struct err *e);
void train_request_free(struct train_request *r);

/* Only what admission needs, without copying tensors: run, seq, forward_only, tokens. */
int train_request_peek(enum content content, const void *bytes, size_t size, struct train_request *out,
                       struct err *e) WARN_UNUSED;

/* ForwardBackwardOutput as protobuf: the field "logprobs" of every datum, in the shape of its targets, and the
 * metrics as given; "loss:sum" must be among them.  Datums that follow each other with the same number of columns
 * share an ArrayRecord. */
struct train_output {
    int n, columns; /* as in train_datum */
    const float *logprobs;
};
struct metric {
    const char *name; /* "name:reduction" */
    double value;
};
char *train_output_encode(int count, const struct train_output *outputs, const struct metric *metrics,
                          int metric_count, size_t *size, struct err *e);
/* The same message as JSON text, for clients that asked for JSON. */
char *train_output_to_json(const void *bytes, size_t size, size_t *json_size, struct err *e);

/* ---------------------------------------------------------------- sampling */

/* target_prompt_logprobs: a tensor [prompt_count - 1, columns] of ids; row i is scored at position i + 1 of the prompt.
 * Dense or CSR, in one form: the ids of row i are ids[first[i]] .. ids[first[i + 1] - 1]. */
struct sample_targets {
    int64_t columns;
    int *first;            /* [prompt_count]; NULL: not asked for */
    int32_t *ids;          /* -1: nothing there */
    int64_t *column_of;    /* CSR: beside ids; dense: NULL */
};
void sample_targets_clear(struct sample_targets *t);

struct sample_request {
    int32_t *prompt;
    int prompt_count;
    int num_samples;  /* compute_logprobs: 0 */
    int max_tokens;   /* -1: to the context limit */
    bool has_seed;
    uint64_t seed;
    double temperature, top_p;
    int top_k;
    bool stop_given;  /* false: stop at EOS; true with no stops: never before max_tokens */
    int32_t *stop_tokens;
    int stop_token_count;
    char **stop_strings;
    int stop_string_count;
    bool prompt_logprobs;
    int prompt_last;               /* prompt_logprobs_last_n; 0: the whole prompt */
    int topk_prompt, topk_sample;  /* 0 .. SAMPLE_TOPK_MAX */
    int alt_tokens;                /* prompt_alt_tokens_k: 0 .. SAMPLE_ALT_MAX */
    struct sample_targets targets;
    /* the weights, resolved at admission; run empty: the base model */
    char checkpoint_run[ID_SIZE];
    int64_t checkpoint_seq;
};

/* The client's asample JSON, with "checkpoint": {"run": s, "seq": n} added by the gateway when a sampler or path
 * was named.  malformed as above.  What we do not offer (chunks that are not text) is well-formed and wrong: the text
 * names the field.  record_stability_info is accepted and does nothing: it asks for data that only the loss
 * stable_reinforce reads. */
struct sample_request *sample_request_decode(const void *bytes, size_t size, enum job_kind kind, bool *malformed,
                                             struct err *e);
void sample_request_free(struct sample_request *r);

/* ERR_USER when the answer could come to more than SAMPLE_RESULT_MAX on a model of that context.  To be asked before
 * anything is allocated for it. */
int sample_request_fits(const struct sample_request *r, int context_max, struct err *e) WARN_UNUSED;

/* [positions, k] row-major; k 0: not asked for.  Filler is id 0 with -99999. */
struct sample_top {
    int k;
    const int32_t *ids;
    const float *logprobs;
};

struct sample_sequence {
    int n;
    const int32_t *tokens;
    const float *logprobs;
    struct sample_top top; /* n positions */
    bool stopped; /* false: length */
};

/* All borrowed. */
struct sample_output {
    int count;
    const struct sample_sequence *sequences;
    int prompt_count;
    const float *prompt_logprobs; /* NULL: absent */
    struct sample_top prompt_top; /* prompt_count positions */
    struct sample_top alt;        /* prompt_count - 1 positions */
    const struct sample_targets *targets; /* NULL or without first: absent */
    const float *target_logprobs;         /* beside targets->ids */
};
/* SampleResponse as protobuf; and the same message as JSON, in which what was not asked for has no key. */
char *sample_output_encode(const struct sample_output *o, size_t *size, struct err *e);
char *sample_output_to_json(const void *bytes, size_t size, size_t *json_size, struct err *e);

/* ---------------------------------------------------------------- the small ones, all JSON */

struct checkpoint_ref {
    char run[ID_SIZE];
    int64_t seq; /* -1: not resolved yet; the latest save of that name below the job's own seq */
    char kind[24];  /* "training", "sampler", "external" */
    char name[132];
};

struct create_request {
    int rank;
    bool train_attn, train_mlp, train_unembed;
    bool has_seed;
    uint64_t seed;
    bool from_checkpoint, with_optimizer;
    struct checkpoint_ref checkpoint;
    char path[ID_SIZE + 200]; /* as the client named it, for the answer */
};
struct create_request *create_request_decode(const void *bytes, size_t size, struct err *e);
char *create_request_encode(const struct create_request *r, size_t *size, struct err *e);

struct optim_request {
    double learning_rate, beta1, beta2, eps, weight_decay, grad_clip_norm;
};
/* {"adam_params": {...}}, the SDK's defaults for what is absent; another optimizer is ERR_USER. */
int optim_request_decode(const void *bytes, size_t size, struct optim_request *out, struct err *e) WARN_UNUSED;

struct save_request {
    char name[132];        /* empty: for one sampler only */
    char sampler[ID_SIZE]; /* the sampler that this save makes; empty: a named checkpoint */
    bool external;         /* a named sampler save: its checkpoint is for downloading */
    bool overwrite;
    int64_t ttl_seconds;   /* 0: none */
    char path[ID_SIZE + 200]; /* URI of the result, empty for a sampler */
    char *metadata;        /* JSON object text or NULL; owned */
};
int save_request_decode(const void *bytes, size_t size, struct save_request *out, struct err *e) WARN_UNUSED;
char *save_request_encode(const struct save_request *r, size_t *size, struct err *e);
void save_request_clear(struct save_request *r);

struct load_request {
    struct checkpoint_ref checkpoint;
    bool with_optimizer;
    char path[ID_SIZE + 200];
};
int load_request_decode(const void *bytes, size_t size, struct load_request *out, struct err *e) WARN_UNUSED;
char *load_request_encode(const struct load_request *r, size_t *size, struct err *e);

/* A reject record's payload: {"error": text}.  *text is malloc'ed. */
int reject_decode(const void *bytes, size_t size, char **text, struct err *e) WARN_UNUSED;
char *reject_encode(const char *text, size_t *size, struct err *e);

/* Checkpoint URIs: tinker://<run>/<weights|sampler_weights|external_weights>/<name>, and
 * hpcai://<run>/<training/weights|sampler/sampler_weights>/<name>, which may also be given without the inner word.
 * ERR_USER names what is wrong.  Names: [A-Za-z0-9._-]{1,128}, no leading "." or "-". */
enum uri_scheme { URI_TINKER, URI_HPCAI };
int checkpoint_uri_parse(const char *uri, struct checkpoint_ref *out, struct err *e) WARN_UNUSED;
int checkpoint_uri_make(char *out, size_t size, enum uri_scheme scheme, const struct checkpoint_ref *ref,
                        struct err *e) WARN_UNUSED;
int checkpoint_name_check(const char *name, struct err *e) WARN_UNUSED;

#endif
