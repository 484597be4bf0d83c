/* test_torch.c - the engine against numbers that PyTorch, transformers and PEFT computed.
 *
 * tools/record_fixtures.py wrote them: two models, three adapters each, sequences run one by one.
 * Here the sequences of all three adapters share every pass.  Errors seen are printed; the limits
 * are: logits 2e-5 absolute, gradients 1e-4 relative, of a tensor's norm and of its largest entry.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/head.h"
#include "engine/model.h"
#include "engine/safetensors.h"
#include "engine/train.h"

#define ADAPTERS   3
#define DATUMS_MAX 8
#define LOGITS_MAX 2e-5
#define RELATIVE   1e-4
#define STEPS      10

struct twin {
    struct engine *en;
    struct safetensors *data, *want;
    json_t *cases;
    struct adapter *adapters[ADAPTERS];
    struct datum datums[ADAPTERS][DATUMS_MAX]; /* with every array set; targets [n] */
    struct datum wide[ADAPTERS][DATUMS_MAX];   /* targets, weights and out_logprobs of [n, K] */
    int ids[ADAPTERS][DATUMS_MAX], counts[ADAPTERS];
};

/* ------------------------------------------------------------------ reading the fixtures */

static const struct safetensors_tensor *tensor(const struct safetensors *st, const char *fmt, ...)
{
    char name[SAFETENSORS_NAME_MAX];
    va_list va;
    va_start(va, fmt);
    vsnprintf(name, sizeof name, fmt, va);
    va_end(va);
    const struct safetensors_tensor *t = safetensors_find(st, name);
    if (!t) fail_msg("the fixtures have no \"%s\"", name);
    return t;
}

static void *copy_of(const struct safetensors_tensor *t)
{
    void *copy = malloc(t->size + 1);
    memcpy(copy, t->data, t->size);
    return copy;
}

static int32_t *narrow(const struct safetensors_tensor *t)
{
    int64_t *wide = copy_of(t);
    int32_t *out = calloc(t->count, sizeof *out);
    for (size_t i = 0; i < t->count; i++)
        out[i] = (int32_t)wide[i];
    free(wide);
    return out;
}

static struct datum read_datum(const struct safetensors *data, int id)
{
    const struct safetensors_tensor *tokens = tensor(data, "%d.tokens", id);
    return (struct datum){
        .n = (int)tokens->count,
        .tokens = narrow(tokens),
        .targets = copy_of(tensor(data, "%d.targets", id)),
        .weights = copy_of(tensor(data, "%d.weights", id)),
        .logprobs = copy_of(tensor(data, "%d.logprobs", id)),
        .advantages = copy_of(tensor(data, "%d.advantages", id)),
        .clip_low = copy_of(tensor(data, "%d.clip_low", id)),
        .clip_high = copy_of(tensor(data, "%d.clip_high", id)),
        .sequence_ratio_mask = copy_of(tensor(data, "%d.mask", id)),
        .out_logprobs = calloc(tokens->count, sizeof(float)),
    };
}

static struct datum read_wide(const struct safetensors *data, int id, int n)
{
    const struct safetensors_tensor *targets = tensor(data, "%d.wide_targets", id);
    return (struct datum){
        .n = n,
        .columns = (int)(targets->count / (size_t)n),
        .targets = copy_of(targets),
        .weights = copy_of(tensor(data, "%d.wide_weights", id)),
        .out_logprobs = calloc(targets->count, sizeof(float)),
    };
}

static void datum_clear(struct datum *d)
{
    free((void *)d->tokens);
    free((void *)d->targets);
    free((void *)d->weights);
    free((void *)d->logprobs);
    free((void *)d->advantages);
    free((void *)d->clip_low);
    free((void *)d->clip_high);
    free((void *)d->sequence_ratio_mask);
    free(d->out_logprobs);
}

static json_t *adapter_case(const struct twin *t, int i)
{
    return json_array_get(json_object_get(t->cases, "adapters"), (size_t)i);
}

static struct twin *twin_open(const char *name, int threads)
{
    char dir[512], path[1024];
    struct err e = {0};
    json_error_t at;
    struct twin *t = calloc(1, sizeof *t);
    snprintf(dir, sizeof dir, "%s/torch/%s", FIXTURES, name);
    t->en = engine_open(
        &(struct engine_conf){.model_dir = dir, .device = "cpu", .threads = threads}, &e);
    if (!t->en) fail_msg("%s", e.text);
    snprintf(path, sizeof path, "%s/data.safetensors", dir);
    t->data = safetensors_open(path, &e);
    snprintf(path, sizeof path, "%s/expected.safetensors", dir);
    t->want = safetensors_open(path, &e);
    snprintf(path, sizeof path, "%s/cases.json", dir);
    t->cases = json_load_file(path, 0, &at);
    if (!t->data || !t->want || !t->cases) fail_msg("%s%s", e.text, at.text);
    for (int i = 0; i < ADAPTERS; i++) {
        snprintf(path, sizeof path, "%s/adapter-%d", dir, i);
        t->adapters[i] = adapter_load(t->en, path, NULL, true, false, &e);
        if (!t->adapters[i]) fail_msg("%s", e.text);
        const json_t *ids = json_object_get(adapter_case(t, i), "datums");
        t->counts[i] = (int)json_array_size(ids);
        for (int k = 0; k < t->counts[i]; k++) {
            t->ids[i][k] = (int)json_integer_value(json_array_get(ids, (size_t)k));
            t->datums[i][k] = read_datum(t->data, t->ids[i][k]);
            t->wide[i][k] = read_wide(t->data, t->ids[i][k], t->datums[i][k].n);
        }
    }
    return t;
}

static void twin_close(struct twin *t)
{
    for (int i = 0; i < ADAPTERS; i++) {
        for (int k = 0; k < t->counts[i]; k++) {
            datum_clear(&t->datums[i][k]);
            datum_clear(&t->wide[i][k]);
        }
        adapter_free(t->adapters[i]);
    }
    json_decref(t->cases);
    safetensors_close(t->data);
    safetensors_close(t->want);
    engine_close(t->en);
    free(t);
}

/* ------------------------------------------------------------------ comparing */

static double max_error(const float *x, const struct safetensors_tensor *want)
{
    float *w = copy_of(want);
    double most = 0;
    for (size_t i = 0; i < want->count; i++) {
        assert_true(isfinite(x[i]));
        most = fmax(most, fabs((double)x[i] - (double)w[i]));
    }
    free(w);
    return most;
}

/* The larger of |x - w| / |w| by norm and by largest entry. */
static double relative_error(const float *x, const struct safetensors_tensor *want)
{
    float *w = copy_of(want);
    double off = 0, all = 0, most = 0;
    for (size_t i = 0; i < want->count; i++) {
        off += ((double)x[i] - (double)w[i]) * ((double)x[i] - (double)w[i]);
        all += (double)w[i] * (double)w[i];
        most = fmax(most, fabs((double)w[i]));
    }
    free(w);
    assert_true(all > 0);
    return fmax(sqrt(off / all), max_error(x, want) / most);
}

/* Against "<what>.<adapter>.<site>.lora_A.weight" and B of every site; returns the worst. */
static double adapter_error(const struct twin *t, int adapter, const char *what, bool gradient)
{
    const struct adapter *ad = t->adapters[adapter];
    double worst = 0;
    int seen = 0;
    for (int i = 0; i < ad->site_count; i++) {
        const struct lora_tensor *s = &ad->sites[i];
        char site[64];
        if (!s->a) continue;
        lora_site_name(ad, i, site, sizeof site);
        const struct safetensors_tensor *a =
            tensor(t->want, "%s.%d.%s.lora_A.weight", what, adapter, site);
        const struct safetensors_tensor *b =
            tensor(t->want, "%s.%d.%s.lora_B.weight", what, adapter, site);
        assert_int_equal(a->count, (size_t)ad->conf.rank * (size_t)s->in);
        assert_int_equal(b->count, (size_t)ad->conf.rank * (size_t)s->out);
        worst = fmax(worst, relative_error(gradient ? s->grad_a : s->a, a));
        worst = fmax(worst, relative_error(gradient ? s->grad_b : s->b, b));
        seen++;
    }
    assert_true(seen > 0);
    return worst;
}

/* A loss as it was recorded: {"loss", "clip_low"?, "clip_high"?, "beta"?, "by_token"?, "mask"?,
 * "wide"?}. */
static const json_t *loss_case(const struct twin *t, const char *name)
{
    const json_t *c = json_object_get(json_object_get(t->cases, "cases"), name);
    if (!c) fail_msg("the fixtures have no case \"%s\"", name);
    return c;
}

static struct loss_conf conf_of(const json_t *c)
{
    return (struct loss_conf){
        .kind = loss_kind_of(json_string_value(json_object_get(c, "loss"))),
        .clip_low = json_number_value(json_object_get(c, "clip_low")),
        .clip_high = json_number_value(json_object_get(c, "clip_high")),
        .beta = json_number_value(json_object_get(c, "beta")),
    };
}

/* Only the arrays that the case is about. */
static struct datum choose_arrays(const struct datum *from, const struct datum *wide,
                                  const json_t *c)
{
    bool entropy = conf_of(c).kind == LOSS_CROSS_ENTROPY;
    bool clips = json_is_true(json_object_get(c, "by_token"));
    bool mask = json_is_true(json_object_get(c, "mask"));
    struct datum d = *from;
    if (json_is_true(json_object_get(c, "wide"))) {
        d = *wide;
        d.tokens = from->tokens;
    }
    if (!entropy) d.weights = NULL;
    if (entropy) d.logprobs = d.advantages = NULL;
    if (!clips) d.clip_low = d.clip_high = NULL;
    if (!mask) d.sequence_ratio_mask = NULL;
    return d;
}

struct batch {
    struct train_item items[ADAPTERS];
    struct datum datums[ADAPTERS][DATUMS_MAX];
};

static void batch_make(struct batch *b, struct twin *t, const json_t *const cases[ADAPTERS])
{
    struct err e = {0};
    for (int i = 0; i < ADAPTERS; i++) {
        for (int k = 0; k < t->counts[i]; k++)
            b->datums[i][k] = choose_arrays(&t->datums[i][k], &t->wide[i][k], cases[i]);
        b->items[i] = (struct train_item){.adapter = t->adapters[i],
                                          .loss = conf_of(cases[i]),
                                          .datums = b->datums[i],
                                          .datum_count = t->counts[i]};
        if (engine_train_check(t->en, &b->items[i], &e) < 0) fail_msg("%s", e.text);
    }
}

/* ------------------------------------------------------------------ the comparisons */

/* One packed pass of all sequences of all adapters, and every logit of it. */
static void compare_logits(struct twin *t)
{
    struct err e = {0};
    struct pass_seq seqs[ADAPTERS * DATUMS_MAX];
    int count = 0, rows = 0, blocks = 0;
    for (int i = 0; i < ADAPTERS; i++)
        for (int k = 0; k < t->counts[i]; k++) {
            const struct datum *d = &t->datums[i][k];
            seqs[count++] =
                (struct pass_seq){.adapter = t->adapters[i], .tokens = d->tokens, .rows = d->n};
            rows += d->n;
            blocks += train_blocks(d->n);
        }
    int vocab = engine_info(t->en)->vocab, row = 0, index[512];
    assert_in_range(rows, 1, 512);
    assert_true(rows <= head_rows_max(t->en));
    assert_int_equal(engine_scratch(t->en, train_bytes(t->en, rows, blocks, 16, false), &e), 0);
    struct head *h = head_begin(t->en, 16, false, &e);
    struct pass *p = h ? pass_begin(t->en, seqs, count, false, h->bytes, &e) : NULL;
    if (!p) fail_msg("%s", e.text);
    for (int i = 0; i < rows; i++)
        index[i] = i;
    pass_forward(p);
    head_logits(h, p, index, rows);
    double worst = 0;
    for (int i = 0; i < ADAPTERS; i++)
        for (int k = 0; k < t->counts[i]; k++) {
            const struct safetensors_tensor *want =
                tensor(t->want, "logits.%d.%d", i, t->ids[i][k]);
            assert_int_equal(want->count, (size_t)t->datums[i][k].n * (size_t)vocab);
            worst = fmax(worst, max_error(h->logits + (size_t)row * (size_t)vocab, want));
            row += t->datums[i][k].n;
        }
    arena_reset(t->en->host);
    print_message("    logits: largest error %.2e of %d rows\n", worst, rows);
    assert_true(worst <= LOGITS_MAX);
}

/* One loss for all adapters: its value and every gradient, in one call. */
static void compare_loss(struct twin *t, const char *name)
{
    struct err e = {0};
    struct batch b;
    const json_t *c = loss_case(t, name);
    double worst_loss = 0, worst_gradient = 0;
    batch_make(&b, t, (const json_t *[ADAPTERS]){c, c, c});
    if (engine_train(t->en, b.items, ADAPTERS, &e) < 0) fail_msg("%s", e.text);
    for (int i = 0; i < ADAPTERS; i++) {
        char what[64];
        double want =
            json_number_value(json_object_get(json_object_get(adapter_case(t, i), "losses"), name));
        worst_loss = fmax(worst_loss, fabs(b.items[i].out_loss - want) / fmax(1, fabs(want)));
        snprintf(what, sizeof what, "grad.%s", name);
        worst_gradient = fmax(worst_gradient, adapter_error(t, i, what, true));
    }
    print_message("    %s: loss off by %.2e, gradients by %.2e (relative)\n", name, worst_loss,
                  worst_gradient);
    assert_true(worst_loss <= RELATIVE);
    assert_true(worst_gradient <= RELATIVE);
}

static double setting(const json_t *steps, const char *name)
{
    const json_t *v = json_object_get(steps, name);
    if (!json_is_number(v)) fail_msg("the fixtures have no step setting \"%s\"", name);
    return json_number_value(v);
}

static double listed(const json_t *steps, const char *name, int step)
{
    return json_number_value(json_array_get(json_object_get(steps, name), (size_t)step));
}

/* One step of one adapter after the shared pass; returns the worse error of loss and norm. */
static double step_adapter(struct twin *t, int i, const struct train_item *item, int step)
{
    struct err e = {0};
    const json_t *s = json_object_get(adapter_case(t, i), "steps");
    const struct adam_params adam = {.learning_rate = setting(s, "lr"),
                                     .beta1 = setting(s, "beta1"),
                                     .beta2 = setting(s, "beta2"),
                                     .eps = setting(s, "eps"),
                                     .weight_decay = setting(s, "weight_decay"),
                                     .grad_clip_norm = setting(s, "clip")};
    double norm;
    assert_int_equal(adam_params_check(&adam, &e), 0);
    assert_true(adapter_has_gradient(t->adapters[i]));
    if (adapter_optim_step(t->en, t->adapters[i], &adam, &norm, &e) < 0) fail_msg("%s", e.text);
    assert_false(adapter_has_gradient(t->adapters[i]));
    assert_int_equal(adapter_step(t->adapters[i]), step + 1);
    double want = listed(s, "losses", step), want_norm = listed(s, "grad_norms", step);
    return fmax(fabs(item->out_loss - want) / fmax(1, fabs(want)),
                fabs(norm - want_norm) / want_norm);
}

/* Ten steps of three runs that share every pass, each with its own loss and settings. */
static void compare_steps(struct twin *t)
{
    struct err e = {0};
    const json_t *cases[ADAPTERS];
    double worst[ADAPTERS] = {0};
    bool clips = false;
    for (int i = 0; i < ADAPTERS; i++) {
        const json_t *s = json_object_get(adapter_case(t, i), "steps");
        cases[i] = loss_case(t, json_string_value(json_object_get(s, "loss")));
        clips |= setting(s, "clip") > 0 && listed(s, "grad_norms", 0) > setting(s, "clip");
    }
    assert_true(clips); /* or the recorded case would not show clipping */
    for (int step = 0; step < STEPS; step++) {
        struct batch b;
        batch_make(&b, t, cases);
        if (engine_train(t->en, b.items, ADAPTERS, &e) < 0) fail_msg("%s", e.text);
        for (int i = 0; i < ADAPTERS; i++)
            worst[i] = fmax(worst[i], step_adapter(t, i, &b.items[i], step));
    }
    for (int i = 0; i < ADAPTERS; i++) {
        double after = adapter_error(t, i, "after", false);
        print_message(
            "    ten steps of adapter %d: losses and norms off by %.2e, weights by %.2e\n", i,
            worst[i], after);
        assert_true(worst[i] <= RELATIVE);
        assert_true(after <= RELATIVE);
    }
}

/* ------------------------------------------------------------------ tests */

static const char *const models[] = {"tied", "untied"};

static void each_model(void (*run)(struct twin *t))
{
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int threads = 1; threads <= 2; threads++) {
            print_message("  %s, %d threads\n", models[m], threads);
            struct twin *t = twin_open(models[m], threads);
            run(t);
            twin_close(t);
        }
}

static void logits_are_pytorchs(void **state)
{
    (void)state;
    each_model(compare_logits);
}

static const char *compared; /* the case at hand */

static void compare_case(struct twin *t)
{
    compare_loss(t, compared);
}

/* state: the case's name */
static void a_loss_and_its_gradients_are_pytorchs(void **state)
{
    compared = *state;
    each_model(compare_case);
}

static void ten_adamw_steps_are_pytorchs(void **state)
{
    (void)state;
    each_model(compare_steps);
}

#define CASE(case_name)                                                                            \
    {                                                                                              \
        .name = case_name "_and_its_gradients_are_pytorchs",                                       \
        .test_func = a_loss_and_its_gradients_are_pytorchs, .initial_state = (void *)case_name     \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_pytorchs),
        CASE("cross_entropy"),
        CASE("wide"),
        CASE("importance_sampling"),
        CASE("ppo"),
        CASE("ppo_by_token"),
        CASE("cispo"),
        CASE("dro"),
        CASE("gspo"),
        cmocka_unit_test(ten_adamw_steps_are_pytorchs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
