/* case.h - numbers that PyTorch computed, as tools/record_shapes.py wrote them.
 *
 * A case names a base model by the flags of tinworks-model and by its weights' SHA-256, and
 * adapters by a seed: A as adapter_create() draws it, B by philox_fill() within b_bound under the
 * name
 * "<site>.lora_B".  So it holds no weights, only data and results. */
#ifndef CLI_CASE_H
#define CLI_CASE_H

#include <jansson.h>
#include "base/arena.h"
#include "engine/engine.h"

#define CASE_ADAPTERS_MAX 8
#define CASE_DATUMS_MAX   16

/* Some logits of one sequence: values [positions, ids], and the log of each position's whole sum.
 */
struct case_logits {
    int datum, positions, ids;
    const int32_t *position, *id;
    const double *lse, *values;
};

struct case_adapter {
    struct lora_conf lora;
    uint64_t seed;
    struct datum datums[CASE_DATUMS_MAX]; /* with what any loss reads */
    int datum_count;
    struct case_logits logits;
    const json_t *losses;    /* {name of a loss: value} */
    enum loss_kind loss;     /* whose gradients are in: */
    const json_t *gradients; /* {"<site>.lora_A": {norm, most, at: [], values: []}} */
    const json_t *steps;     /* settings, losses and norms of optimizer steps; NULL: none */
};

struct case_limits {
    double logits;                   /* absolute */
    double losses, gradients, steps; /* relative */
};

struct compare_case {
    json_t *root;
    struct arena *arena; /* owns the arrays */
    const char *name, *make, *weights_sha256;
    double clip_low, clip_high, b_bound;
    struct case_limits limits;
    struct case_adapter adapters[CASE_ADAPTERS_MAX];
    int adapter_count;
};

/* ERR_USER says what is missing or wrong.  Cleared by the caller, also on failure. */
int case_read(struct compare_case *c, const char *path, struct err *e) WARN_UNUSED;
void case_clear(struct compare_case *c);

/* A number called name in o; ERR_USER when it is none. */
int case_number(const json_t *o, const char *name, double *out, struct err *e) WARN_UNUSED;

/* A list of numbers called name in o, of the given length, -1: any up to a million. */
int case_list(struct compare_case *c, const json_t *o, const char *name, int count,
              const double **out, int *got, struct err *e) WARN_UNUSED;

#endif
