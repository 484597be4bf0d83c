/* sample.h - a request in flight, shared by who checks it (sample_check.c), adds it (sample.c),
 * moves it (sample_step.c) and reads its scores off the logits (sample_score.c). */
#ifndef ENGINE_SAMPLE_H
#define ENGINE_SAMPLE_H

#include "base/buf.h"
#include "engine/head.h"
#include "engine/inside.h"
#include "engine/kv.h"

#define SAMPLE_ROWS_MOST 512 /* rows of one pass, if the scratch has room */

struct sequence {
    int n;
    int32_t *tokens;  /* [max_new] */
    float *logprobs;  /* [max_new] */
    struct top top;   /* [max_new, conf.topk_sampled] */
    struct kv_line line;
    struct buf text;  /* the last bytes said, for stop strings */
    bool done;
    enum stop_reason reason;
};

struct sample {
    struct sample *next; /* of the engine's; one adapter's stand together */
    uint64_t arrival;
    int replica;             /* that serves it */
    struct adapter *adapter; /* that replica's */
    uint64_t owner; /* names the weights */
    struct sample_conf conf; /* with arrays of our own */
    size_t stop_longest;     /* bytes */
    int32_t *prompt;
    int prompt_count, max_new;
    int fed;           /* prompt tokens whose keys and values are there */
    int cached_max;    /* so many may come from the cache: whole blocks before the first row that is
                          asked for something */
    struct kv_line line; /* the prompt's */
    int line_max;        /* blocks of a sequence that goes all the way */

    float *prompt_logprobs; /* [prompt_count] or NULL */
    struct top prompt_top;  /* [prompt_count, k] */
    struct top alt;         /* [prompt_count - 1, k] */
    float *target_logprobs; /* beside conf.target_ids */

    struct sequence *sequences;
    int running; /* sequences that go on */
    bool done;
};

/* What engine.h promises of engine_sample_..., on one replica, of which the adapter is. */
struct sample *sampler_add(struct engine *en, struct adapter *adapter, const int32_t *prompt,
                           int prompt_count, const struct sample_conf *conf, struct err *e);
int sampler_step(struct engine *en, struct err *e) WARN_UNUSED;
void sampler_remove(struct engine *en, struct sample *s);
struct sample_stats sampler_stats(const struct engine *en);

int sample_rows_max(const struct engine *en);
size_t sample_bytes(const struct engine *en);

int sample_check(const struct engine *en, const int32_t *prompt, int count,
                 const struct sample_conf *c, struct err *e) WARN_UNUSED;

/* Goes on over whole blocks of the prompt that are in the cache, as far as it may. */
void sample_adopt(struct engine *en, struct sample *s);

/* Gives the KV blocks back; the results stay. */
void sequence_end(struct engine *en, struct sequence *q);
void sample_end(struct engine *en, struct sample *s);

/* ------------------------------------------------------------------ scores */

/* Where the log-probabilities of a chunk of rows go.  Asking is cheap; the kernels answer all that
 * was asked in one go. */
struct asks {
    struct head *head; /* the chunk's; set by who runs it */
    int count;
    int *rows;    /* [HEAD_CELLS_MAX] of the chunk, ascending */
    int32_t *ids; /* beside rows */
    float **out;
    float *logprobs;
    int *first;   /* [rows of the head + 1] */
};

int asks_init(struct asks *a, struct engine *en, struct err *e) WARN_UNUSED;
int asks_add(struct asks *a, int row, int32_t id, float *out, struct err *e) WARN_UNUSED;
/* Answers; before the head's next chunk. */
int asks_settle(struct asks *a, struct err *e) WARN_UNUSED;

/* Tokens to be chosen from a chunk of rows, and where each goes; the device chooses them in one go. */
#define CHOICES_MAX 4096
struct choices {
    struct head *head;  /* the chunk's; set by who runs it */
    int count;
    struct pick *picks; /* [CHOICES_MAX], by row of the chunk */
    int32_t *ids;       /* beside picks */
    int32_t **out;
};

int choices_init(struct choices *c, struct engine *en, struct err *e) WARN_UNUSED;
void choices_add(struct choices *c, const struct pick *p, int32_t *out);
/* Before the head's next chunk.  A device that fails says so at the next sync. */
void choices_settle(struct choices *c);

/* Arrays of n positions, filled with filler.  k 0: none. */
int top_init(struct top *t, int k, size_t n);
void top_clear(struct top *t);
/* By descending log-probability, equal ones by ascending id. */
void top_sort(struct top *t, int n);
/* The likeliest ids of a row, for position at. */
int top_ask(struct top *t, int at, struct asks *a, int row, const float *logits,
            struct err *e) WARN_UNUSED;

/* Is anything asked of the prompt's row at pos, which predicts the token at pos + 1?  And the first
 * such row; prompt_count when there is none. */
bool score_wanted(const struct sample *s, int pos);
int score_first(const struct sample *s);
/* Does it take the logits themselves? */
bool score_reads_logits(const struct sample *s, int pos);
/* Has ids drawn, which score_ask() then asks for. */
void score_choose(const struct sample *s, int pos, struct choices *c, int row);
/* Asks for all of it.  logits: the row on the host, if it takes them. */
int score_ask(struct sample *s, int pos, struct asks *a, int row, const float *logits,
              struct err *e) WARN_UNUSED;

#endif
