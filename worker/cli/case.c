/* case.c - see case.h. */
#include "case.h"

#include <string.h>
#include "engine/files.h"

#define CASE_SIZE_MAX ((size_t)64 << 20)
#define ARENA_MAX     ((size_t)256 << 20)
#define LIST_MAX      1000000

int case_number(const json_t *o, const char *name, double *out, struct err *e)
{
    const json_t *v = json_object_get(o, name);
    *out = json_number_value(v);
    return json_is_number(v) ? 0 : err_set(e, ERR_USER, "there is no number \"%s\"", name);
}

static int whole(const json_t *o, const char *name, int max, int *out, struct err *e)
{
    double x;
    if (case_number(o, name, &x, e) < 0) return -1;
    if (!(x >= 0 && x <= max) || x != (double)(int)x)
        return err_set(e, ERR_USER, "\"%s\" is %g, expected a whole number up to %d", name, x, max);
    *out = (int)x;
    return 0;
}

static int text(const json_t *o, const char *name, const char **out, struct err *e)
{
    *out = json_string_value(json_object_get(o, name));
    return *out ? 0 : err_set(e, ERR_USER, "there is no text \"%s\"", name);
}

int case_list(struct compare_case *c, const json_t *o, const char *name, int count,
              const double **out, int *got, struct err *e)
{
    const json_t *list = json_object_get(o, name), *v;
    size_t n = json_array_size(list), i;
    if (!json_is_array(list) || n > LIST_MAX || (count >= 0 && n != (size_t)count))
        return err_set(e, ERR_USER, "there is no list \"%s\" of the right length", name);
    double *x = arena_alloc(c->arena, (n + 1) * sizeof *x, e);
    if (!x) return -1;
    json_array_foreach(list, i, v)
    {
        if (!json_is_number(v))
            return err_set(e, ERR_USER, "\"%s\" holds something that is no number", name);
        x[i] = json_number_value(v);
    }
    *out = x;
    if (got) *got = (int)n;
    return 0;
}

/* ------------------------------------------------------------------ data */

static int ids(struct compare_case *c, const json_t *o, const char *name, int count,
               const int32_t **out, int *got, struct err *e)
{
    const double *x;
    int n;
    if (case_list(c, o, name, count, &x, &n, e) < 0) return -1;
    int32_t *narrow = arena_alloc(c->arena, ((size_t)n + 1) * sizeof *narrow, e);
    if (!narrow) return -1;
    for (int i = 0; i < n; i++) {
        if (!(x[i] >= 0 && x[i] <= INT32_MAX))
            return err_set(e, ERR_USER, "\"%s\" holds %g, expected a whole number", name, x[i]);
        narrow[i] = (int32_t)x[i];
    }
    *out = narrow;
    if (got) *got = n;
    return 0;
}

static int floats(struct compare_case *c, const json_t *o, const char *name, int count,
                  const float **out, struct err *e)
{
    const double *x;
    if (case_list(c, o, name, count, &x, NULL, e) < 0) return -1;
    float *narrow = arena_alloc(c->arena, ((size_t)count + 1) * sizeof *narrow, e);
    if (!narrow) return -1;
    for (int i = 0; i < count; i++)
        narrow[i] = (float)x[i];
    *out = narrow;
    return 0;
}

static int read_datum(struct compare_case *c, const json_t *o, struct datum *d, struct err *e)
{
    const int32_t *targets;
    if (ids(c, o, "tokens", -1, &d->tokens, &d->n, e) < 0 ||
        ids(c, o, "targets", d->n, &targets, NULL, e) < 0 ||
        floats(c, o, "weights", d->n, &d->weights, e) < 0 ||
        floats(c, o, "logprobs", d->n, &d->logprobs, e) < 0 ||
        floats(c, o, "advantages", d->n, &d->advantages, e) < 0)
        return -1;
    int64_t *wide = arena_alloc(c->arena, ((size_t)d->n + 1) * sizeof *wide, e);
    if (!wide) return -1;
    for (int i = 0; i < d->n; i++)
        wide[i] = targets[i];
    d->targets = wide;
    d->out_logprobs = arena_zalloc(c->arena, ((size_t)d->n + 1) * sizeof(float), e);
    return d->out_logprobs ? 0 : -1;
}

/* values lies as a list of rows. */
static int read_values(struct compare_case *c, const json_t *rows, struct case_logits *l,
                       struct err *e)
{
    double *values =
        arena_alloc(c->arena, ((size_t)l->positions * (size_t)l->ids + 1) * sizeof *values, e);
    if (!values) return -1;
    if (json_array_size(rows) != (size_t)l->positions)
        return err_set(e, ERR_USER, "\"values\" has not one row a position");
    for (int i = 0; i < l->positions; i++)
        for (int k = 0; k < l->ids; k++) {
            const json_t *row = json_array_get(rows, (size_t)i),
                         *v = json_array_get(row, (size_t)k);
            if (!json_is_number(v))
                return err_set(e, ERR_USER, "\"values\" holds something that is no number");
            values[i * l->ids + k] = json_number_value(v);
        }
    l->values = values;
    return 0;
}

static int read_logits(struct compare_case *c, const json_t *o, struct case_adapter *a,
                       struct err *e)
{
    struct case_logits *l = &a->logits;
    if (whole(o, "datum", a->datum_count - 1, &l->datum, e) < 0 ||
        ids(c, o, "positions", -1, &l->position, &l->positions, e) < 0 ||
        ids(c, o, "ids", -1, &l->id, &l->ids, e) < 0 ||
        case_list(c, o, "lse", l->positions, &l->lse, NULL, e) < 0)
        return -1;
    for (int i = 0; i < l->positions; i++)
        if (l->position[i] >= a->datums[l->datum].n ||
            (i > 0 && l->position[i] <= l->position[i - 1]))
            return err_set(e, ERR_USER, "\"positions\" do not ascend within the sequence");
    return read_values(c, json_object_get(o, "values"), l, e);
}

/* ------------------------------------------------------------------ adapters, and the whole */

static int read_datums(struct compare_case *c, const json_t *list, struct case_adapter *a,
                       struct err *e)
{
    size_t n = json_array_size(list);
    if (n < 1 || n > CASE_DATUMS_MAX)
        return err_set(e, ERR_USER, "there are %zu \"datums\", expected 1 to %d", n,
                       CASE_DATUMS_MAX);
    for (size_t i = 0; i < n; i++)
        if (read_datum(c, json_array_get(list, i), &a->datums[a->datum_count++], e) < 0) return -1;
    return 0;
}

static int read_adapter(struct compare_case *c, const json_t *o, struct case_adapter *a,
                        struct err *e)
{
    int seed = 0;
    const char *loss;
    const json_t *gradients = json_object_get(o, "gradients");
    if (whole(o, "rank", ENGINE_RANK_MAX, &a->lora.rank, e) < 0 ||
        whole(o, "seed", INT32_MAX, &seed, e) < 0)
        return -1;
    a->seed = (uint64_t)seed;
    a->lora.train_attn = json_is_true(json_object_get(o, "train_attn"));
    a->lora.train_mlp = json_is_true(json_object_get(o, "train_mlp"));
    a->lora.train_unembed = json_is_true(json_object_get(o, "train_unembed"));
    if (read_datums(c, json_object_get(o, "datums"), a, e) < 0 ||
        read_logits(c, json_object_get(o, "logits"), a, e) < 0 ||
        text(gradients, "loss", &loss, e) < 0)
        return -1;
    a->losses = json_object_get(o, "losses");
    a->loss = loss_kind_of(loss);
    a->gradients = json_object_get(gradients, "tensors");
    a->steps = json_object_get(o, "steps");
    if (a->loss == LOSS_UNKNOWN)
        return err_set(e, ERR_USER, "loss is \"%.40s\", expected one of %s", loss, loss_names());
    return 0;
}

static int read_root(struct compare_case *c, struct err *e)
{
    const json_t *limits = json_object_get(c->root, "limits");
    const json_t *adapters = json_object_get(c->root, "adapters");
    size_t n = json_array_size(adapters);
    if (text(c->root, "name", &c->name, e) < 0 || text(c->root, "make", &c->make, e) < 0 ||
        text(c->root, "weights_sha256", &c->weights_sha256, e) < 0 ||
        case_number(c->root, "clip_low", &c->clip_low, e) < 0 ||
        case_number(c->root, "clip_high", &c->clip_high, e) < 0 ||
        case_number(c->root, "b_bound", &c->b_bound, e) < 0 ||
        case_number(limits, "logits", &c->limits.logits, e) < 0 ||
        case_number(limits, "losses", &c->limits.losses, e) < 0 ||
        case_number(limits, "gradients", &c->limits.gradients, e) < 0 ||
        case_number(limits, "steps", &c->limits.steps, e) < 0)
        return -1;
    if (n < 1 || n > CASE_ADAPTERS_MAX)
        return err_set(e, ERR_USER, "there are %zu \"adapters\", expected 1 to %d", n,
                       CASE_ADAPTERS_MAX);
    for (size_t i = 0; i < n; i++)
        if (read_adapter(c, json_array_get(adapters, i), &c->adapters[c->adapter_count++], e) < 0)
            return err_prefix(e, "adapter %zu", i);
    return 0;
}

int case_read(struct compare_case *c, const char *path, struct err *e)
{
    *c = (struct compare_case){.arena = arena_create(ARENA_MAX, e)};
    if (!c->arena) return -1;
    c->root = file_json_read(path, CASE_SIZE_MAX, e);
    if (!c->root) return -1;
    return read_root(c, e) < 0 ? err_prefix(e, "case \"%s\"", path) : 0;
}

void case_clear(struct compare_case *c)
{
    json_decref(c->root);
    arena_free(c->arena);
}
