/* head.h - from normed rows to logits and log-probabilities, a chunk of rows at a time.
 *
 * A vocabulary is wide, so logits exist for one chunk only, and only for rows that somebody asked
 * for.  The head lies at the beginning of the engine's scratch, before a pass's activations.
 *
 * With several ranks each has a head over its part of the vocabulary.  A row's log-sum-exp is that
 * of the parts', and an id's log-probability its own part's plus the difference of the two; both
 * are worked out in double on the host.  Callers hold the first rank's head. */
#ifndef ENGINE_HEAD_H
#define ENGINE_HEAD_H

#include "engine/pass.h"

/* A chunk's log-probabilities: enough for one block of the datum law whose every row asks for the
 * most ids. */
#define HEAD_CELLS_MAX (ENGINE_BLOCK_TOKENS * ENGINE_TARGETS_MAX)

struct head {
    struct engine *en;        /* of this rank */
    struct head **ranks;      /* of the first: the heads of all ranks, itself included */
    int rows_max; /* of a chunk; a multiple of the datum law's block, below HEAD_CELLS_MAX */
    int ldu;
    size_t bytes;             /* of scratch that it takes */
    struct act x;             /* [rows_max, hidden] */
    float *dx;                /* [rows_max, hidden] */
    float *logits;            /* [rows_max, this rank's part of the vocabulary] */
    float *u, *du;            /* [rows_max, ldu] */
    float *lse;               /* [rows_max] */
    float *logprob, *g;       /* [HEAD_CELLS_MAX] */
    float *whole;             /* with several ranks and no way back: room for some rows of all of the vocabulary */

    /* of the chunk at hand */
    int rows;
    const int32_t *index;      /* which rows of the pass */
    struct lora_group *groups; /* [rows_max] */
    int group_count;
    int *block_rows; /* [rows_max + 1] */

    /* with several ranks, on the host: */
    int32_t *part_ids;           /* [HEAD_CELLS_MAX] ids by this rank's count, -1: not its own */
    float *part_logprob;         /* [HEAD_CELLS_MAX] */
    float *part_lse, *whole_lse; /* [rows_max] */
};

/* Scratch bytes of a head for adapters up to rank ldu; back: with room for gradients. */
size_t head_bytes(const struct engine *en, int ldu, bool back);
int head_rows_max(const struct engine *en);

/* The room on the host of a rank beside others, for as long as its engine lives; ERR_RETRY. */
int head_open(struct engine *en, struct err *e) WARN_UNUSED;
void head_close(struct engine *en);

/* Lays the head out.  NULL: ERR_RETRY. */
struct head *head_begin(struct engine *en, int ldu, bool back, struct err *e);

/* logits of n <= rows_max rows of the pass, given in ascending order; index is borrowed. */
void head_logits(struct head *h, struct pass *p, const int32_t *index, int n);

/* Copies the logits of a row of the chunk, all of the vocabulary, to the host. */
void head_row(const struct head *h, int row, float *to);

/* ops->pick from rows of the chunk, for a head without a way back; ids is on the host.  With several ranks the first
 * one's device chooses, from whole rows that go there by way of the host. */
void head_pick(struct head *h, int32_t *ids, const struct pick *picks, int count);

/* logprob and lse of ids[n], one a row of the chunk; also copied to host_logprob when not NULL. */
void head_logprob(struct head *h, const int32_t *ids, float *host_logprob);
/* The same with ids first[i] .. first[i + 1] - 1 for row i; at most HEAD_CELLS_MAX of them. */
void head_logprobs(struct head *h, const int *first, const int32_t *ids, float *host_logprob);
/* The same for rows from .. from + rows - 1 of the chunk: first[0] is of the first of these. */
void head_logprobs_of(struct head *h, int from, int rows, const int *first, const int32_t *ids,
                      float *host_logprob);

/* With g (host) = dL / dlogprob, beside the ids that head_logprobs() was last asked for: the rows'
 * share of pass->dfinal, and the gradients of the adapters' unembedding.  A chunk must hold whole
 * blocks of the rows that are ever given. */
void head_back(struct head *h, struct pass *p, const int *first, const int32_t *ids,
               const float *host_g);

#endif
