/* test_company.c - the engine's laws as a property: company never shows in a run's bits.
 *
 * A run is a script drawn from a seed: an adapter of some rank on some projections, and ten
 * optimizer steps' worth of training and forward-only calls, with requests for samples in between.
 * It is played alone, then among others (other ranks, projections, lengths and losses, steps of
 * their own at times of their own), in passes that memory cuts elsewhere, on other numbers of
 * threads, and with one of them leaving memory and coming back from a snapshot.  Every loss, every
 * log-probability, the digest before and after each step, and every sample must come out with the
 * same bits.
 *
 * The seeds are printed; TINWORKS_SEED=N replays one alone. */
#include "world.h"

#include <time.h>
#include "engine/train.h"
#include "seal/seal.h"

/* One key head for five, no size a multiple of another's. */
#define ODD_TIED_MODEL                                                                             \
    "--vocab 1027 --hidden 33 --layers 2 --heads 5 --kv-heads 1 --head-dim 14 "                    \
    "--intermediate 71 --context 400 --tied true"

#define STEPS      10
#define EVENTS_MAX 80
#define RUNS_MAX   64
#define VICTIMS    2 /* of a company, whose bits are compared; the others only keep them company */
#define TEXTS      3 /* prompts are beginnings of these, so that runs and requests share them */
#define ITEMS_MAX  (3 * RUNS_MAX)

/* Sanitizers look at every access, ten times slower; 63 others would show them nothing new. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FIXED_SEEDS 1
#define OTHERS_MOST 7
#else
#define FIXED_SEEDS 2
#define OTHERS_MOST 63
#endif

/* ------------------------------------------------------------------ drawing */

static int pick(uint64_t *state, int n)
{
    return (int)(next_word(state) % (uint32_t)n);
}

static int one_of(uint64_t *state, const int *values, int count)
{
    return values[pick(state, count)];
}

/* ------------------------------------------------------------------ scripts */

enum move { MOVE_TRAIN, MOVE_FORWARD, MOVE_OPTIM, MOVE_SAMPLE };

struct event {
    enum move move;
    struct train_item item; /* train, forward */
    struct adam_params adam;
    struct sample_conf sample;
    int prompt;          /* tokens */
    int text;            /* which of the TEXTS it is the beginning of */
    int with;            /* whom a sample asks: WITH_... */
    struct sample *live; /* under way */
    char digest[65];     /* of all that came of it */
};

enum { WITH_BASE, WITH_FROZEN, WITH_SELF };

struct run {
    uint64_t seed;
    struct lora_conf lora;
    struct adapter *adapter, *frozen; /* frozen: what a sampler holds while the run trains on */
    struct event events[EVENTS_MAX];
    int count, next;
};

static struct lora_conf draw_lora(uint64_t *state)
{
    static const int ranks[] = {1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 64, 127, 128};
    int sites = 1 + pick(state, 7);
    return (struct lora_conf){.rank = one_of(state, ranks, 14),
                              .train_attn = sites & 1,
                              .train_mlp = sites & 2,
                              .train_unembed = sites & 4};
}

static struct adam_params draw_adam(uint64_t *state)
{
    return (struct adam_params){.learning_rate = 1e-3 * (1 + pick(state, 5)),
                                .beta1 = pick(state, 2) ? 0.9 : 0.8,
                                .beta2 = pick(state, 2) ? 0.95 : 0.999,
                                .eps = 1e-8,
                                .weight_decay = pick(state, 2) ? 0.1 : 0,
                                .grad_clip_norm = pick(state, 2) ? 1 : 0};
}

static struct event *add_event(struct run *r, enum move move)
{
    assert_true(r->count < EVENTS_MAX);
    struct event *ev = &r->events[r->count++];
    ev->move = move;
    return ev;
}

static void draw_call(struct run *r, const struct engine *en, uint64_t *state, bool heavy)
{
    static const int of_victims[] = {1, 63, 64, 65, 129, 300}, of_others[] = {1, 2, 7, 31, 64, 65};
    int lengths[4] = {0}, datums = heavy ? 1 + pick(state, 3) : 1;
    for (int i = 0; i < datums; i++)
        lengths[i] = one_of(state, heavy ? of_victims : of_others, 6);
    struct event *ev = add_event(r, pick(state, 4) ? MOVE_TRAIN : MOVE_FORWARD);
    enum loss_kind kind = (enum loss_kind)pick(state, LOSS_UNKNOWN);
    ev->item = make_item(en, NULL, kind, lengths, next_word(state));
    ev->item.forward_only = ev->move == MOVE_FORWARD;
}

static void draw_sample(struct run *r, uint64_t *state, int with)
{
    static const int prompts[] = {1, 63, 64, 65, 129};
    struct event *ev = add_event(r, MOVE_SAMPLE);
    ev->prompt = one_of(state, prompts, 5);
    ev->text = pick(state, TEXTS);
    ev->with = with;
    ev->sample = (struct sample_conf){.num_samples = pick(state, 4),
                                      .max_tokens = 1 + pick(state, 30),
                                      .temperature = (float)pick(state, 3) * 0.6f,
                                      .top_k = pick(state, 2) ? 40 : -1,
                                      .top_p = pick(state, 2) ? 0.9f : 1,
                                      .seed = next_word(state),
                                      .prompt_logprobs = pick(state, 2),
                                      .stop_at_eos = true};
}

static void draw_script(struct run *r, const struct engine *en, uint64_t seed, bool heavy)
{
    uint64_t state = seed;
    *r = (struct run){.seed = seed, .lora = draw_lora(&state)};
    for (int s = 0; s < STEPS; s++) {
        for (int calls = 1 + (heavy ? pick(&state, 3) : 0); calls > 0; calls--)
            draw_call(r, en, &state, heavy);
        if (pick(&state, 3) == 0) draw_sample(r, &state, pick(&state, 3));
        add_event(r, MOVE_OPTIM)->adam = draw_adam(&state);
    }
    draw_sample(r, &state, WITH_SELF); /* what it has learnt */
}

/* B is not zero from the start, so every gradient has something to say. */
static struct adapter *draw_adapter(struct engine *en, const struct lora_conf *conf, uint64_t seed)
{
    struct err e = {0};
    struct adapter *ad = adapter_create(en, conf, seed, &e);
    if (!ad) fail_msg("%s", e.text);
    for (int i = 0; i < ad->site_count; i++) {
        char name[64];
        const struct lora_tensor *t = &ad->sites[i];
        if (!t->b) continue;
        lora_site_name(ad, i, name, sizeof name);
        size_t count = (size_t)t->out * (size_t)conf->rank;
        float *b = malloc(count * sizeof *b);
        assert_non_null(b);
        philox_fill(b, count, 0, 0.05f, ~seed, name);
        adapter_tensor_put(ad, i, PART_WEIGHTS, 1, 0, b, count);
        free(b);
    }
    return ad;
}

static void open_run(struct run *r, struct engine *en, uint64_t seed, bool heavy)
{
    draw_script(r, en, seed, heavy);
    r->adapter = draw_adapter(en, &r->lora, seed);
    r->frozen = draw_adapter(en, &r->lora, seed + 1);
    for (int i = 0; i < r->count; i++)
        r->events[i].item.adapter = r->adapter;
}

static void close_run(struct run *r)
{
    for (int i = 0; i < r->count; i++)
        item_clear(&r->events[i].item);
    adapter_free(r->adapter);
    adapter_free(r->frozen);
}

/* ------------------------------------------------------------------ what comes of an event */

struct note {
    struct seal_hash *h;
};

static struct note note_begin(void)
{
    struct err e = {0};
    struct note n = {seal_hash_begin(&e)};
    assert_non_null(n.h);
    return n;
}

static void note_end(struct note n, struct event *ev)
{
    uint8_t digest[SEAL_SHA256_SIZE];
    seal_hash_end(n.h, digest);
    seal_hex(digest, sizeof digest, ev->digest);
}

static void note_item(struct event *ev)
{
    struct note n = note_begin();
    assert_true(isfinite(ev->item.out_loss));
    seal_hash_add(n.h, &ev->item.out_loss, sizeof ev->item.out_loss);
    for (int i = 0; i < ev->item.datum_count; i++) {
        const struct datum *d = &ev->item.datums[i];
        seal_hash_add(n.h, d->out_logprobs, (size_t)d->n * sizeof(float));
    }
    note_end(n, ev);
}

static void note_optim(struct engine *en, struct run *r, struct event *ev)
{
    struct note n = note_begin();
    struct err e = {0};
    char state[65];
    double norm;
    digest_of(r->adapter, state);
    seal_hash_add(n.h, state, sizeof state);
    if (adapter_optim_step(en, r->adapter, &ev->adam, &norm, &e) < 0) fail_msg("%s", e.text);
    seal_hash_add(n.h, &norm, sizeof norm);
    digest_of(r->adapter, state);
    seal_hash_add(n.h, state, sizeof state);
    note_end(n, ev);
}

static void note_sample(struct engine *en, struct event *ev)
{
    struct note n = note_begin();
    struct sample_result got;
    sample_take(ev->live, &got);
    engine_sample_free(en, ev->live);
    ev->live = NULL;
    assert_int_equal(got.sequence_count, ev->sample.num_samples);
    for (int i = 0; i < got.sequence_count; i++) {
        const struct sampled *q = &got.sequences[i];
        const int head[2] = {q->n, (int)q->reason};
        seal_hash_add(n.h, head, sizeof head);
        seal_hash_add(n.h, q->tokens, (size_t)q->n * sizeof *q->tokens);
        seal_hash_add(n.h, q->logprobs, (size_t)q->n * sizeof *q->logprobs);
    }
    if (got.prompt_logprobs) /* position 0 is a NaN, whose bits say nothing */
        seal_hash_add(n.h, got.prompt_logprobs + 1, (size_t)(got.prompt_count - 1) * sizeof(float));
    sample_result_clear(&got);
    note_end(n, ev);
}

/* ------------------------------------------------------------------ playing */

/* How a company is played. */
struct how {
    int threads;
    size_t scratch;
    uint64_t mix; /* who comes when; 0: one event at a time */
};

struct stage {
    struct engine *en;
    const struct folder *folder; /* for snapshots */
    struct run *runs;
    int count;
    uint64_t mix;
};

static void start_sample(struct stage *g, struct run *r, struct event *ev)
{
    int32_t prompt[129];
    uint64_t state = (uint64_t)ev->text;
    struct adapter *const with[] = {NULL, r->frozen, r->adapter};
    struct err e = {0};
    for (int i = 0; i < ev->prompt; i++)
        prompt[i] = pick(&state, engine_info(g->en)->vocab);
    ev->live = engine_sample_add(g->en, with[ev->with], prompt, ev->prompt, &ev->sample, &e);
    if (!ev->live) fail_msg("%s", e.text);
}

static bool is_call(const struct run *r)
{
    return r->next < r->count && r->events[r->next].move <= MOVE_FORWARD;
}

static int step_samples(struct stage *g)
{
    struct err e = {0};
    int left = engine_sample_step(g->en, &e);
    if (left < 0) fail_msg("%s", e.text);
    for (int i = 0; i < g->count; i++)
        for (int k = 0; k < g->runs[i].next; k++) {
            struct event *ev = &g->runs[i].events[k];
            if (ev->live && sample_done(ev->live)) note_sample(g->en, ev);
        }
    return left;
}

/* Weights must not change under a request for samples. */
static void settle_own(struct stage *g, const struct run *r)
{
    for (int i = 0; i < r->next; i++)
        while (r->events[i].live && r->events[i].with == WITH_SELF)
            step_samples(g);
}

/* What a run does by itself: its optimizer step, or a request for samples. */
static void act_alone(struct stage *g, struct run *r)
{
    struct event *ev = &r->events[r->next++];
    if (ev->move == MOVE_OPTIM) {
        settle_own(g, r);
        note_optim(g->en, r, ev);
    } else {
        start_sample(g, r, ev);
    }
}

/* Names each run as often as it has calls to make now, shuffled. */
static int draw_order(struct stage *g, const int *quota, int *order)
{
    int n = 0;
    for (int i = 0; i < g->count; i++) {
        const struct run *r = &g->runs[i];
        for (int k = 0; k < quota[i] && r->next + k < r->count; k++) {
            if (r->events[r->next + k].move > MOVE_FORWARD) break;
            order[n++] = i;
        }
    }
    for (int i = n - 1; i > 0; i--) {
        int k = pick(&g->mix, i + 1), held = order[i];
        order[i] = order[k];
        order[k] = held;
    }
    return n;
}

/* Calls of some runs in one pass, each run's own in their order. */
static void act_together(struct stage *g, const int *quota)
{
    struct train_item items[ITEMS_MAX];
    struct event *whose[ITEMS_MAX];
    int order[ITEMS_MAX], n = draw_order(g, quota, order);
    if (n == 0) return;
    for (int i = 0; i < n; i++) {
        struct run *r = &g->runs[order[i]];
        whose[i] = &r->events[r->next++];
        items[i] = whose[i]->item;
    }
    train(g->en, items, n);
    for (int i = 0; i < n; i++) {
        whose[i]->item.out_loss = items[i].out_loss;
        note_item(whose[i]);
    }
}

/* Leaves memory in the middle of a run, perhaps with a pending gradient, and comes back. */
static void restart(struct stage *g, struct run *r)
{
    char dir[300], sha256[65];
    int64_t size;
    struct err e = {0};
    settle_own(g, r);
    snprintf(dir, sizeof dir, "%s/snapshot", g->folder->path);
    if (adapter_save(r->adapter, dir, true, &size, sha256, &e) < 0) fail_msg("%s", e.text);
    adapter_free(r->adapter);
    r->adapter = adapter_load(g->en, dir, sha256, true, true, &e);
    if (!r->adapter) fail_msg("%s", e.text);
    for (int i = 0; i < r->count; i++)
        r->events[i].item.adapter = r->adapter;
    folder_remove_path(dir);
}

/* Some of the runs do something; false when all have ended. */
static bool tick(struct stage *g)
{
    int quota[RUNS_MAX] = {0}, ended = 0;
    bool alone = g->count == 1;
    for (int i = 0; i < g->count; i++) {
        struct run *r = &g->runs[i];
        ended += r->next == r->count;
        if (r->next == r->count || (!alone && pick(&g->mix, 3) == 0)) continue;
        if (is_call(r))
            quota[i] = alone ? 1 : 1 + pick(&g->mix, 3);
        else
            act_alone(g, r);
    }
    act_together(g, quota);
    if (!alone && pick(&g->mix, 2)) step_samples(g);
    if (!alone && pick(&g->mix, 8) == 0 && g->runs[0].next < g->runs[0].count)
        restart(g, &g->runs[0]);
    return ended < g->count;
}

/* Plays runs of the given seeds; the first VICTIMS are long ones. */
static struct run *play(const struct folder *model, const uint64_t *seeds, int count,
                        const struct how *how)
{
    struct stage g = {.en = open_engine(model, how->threads, how->scratch, 0),
                      .folder = model,
                      .count = count,
                      .mix = how->mix};
    g.runs = calloc((size_t)count, sizeof *g.runs);
    assert_non_null(g.runs);
    for (int i = 0; i < count; i++)
        open_run(&g.runs[i], g.en, seeds[i], i < VICTIMS);
    while (tick(&g))
        ;
    while (step_samples(&g) > 0)
        ;
    for (int i = 0; i < count; i++)
        close_run(&g.runs[i]);
    engine_close(g.en);
    return g.runs;
}

/* ------------------------------------------------------------------ comparing */

static const char *const move_names[] = {"training call", "forward call", "optimizer step",
                                        "sample"};

static void assert_same_run(const struct run *alone, const struct run *other, const char *played)
{
    assert_int_equal(alone->count, other->count);
    for (int i = 0; i < alone->count; i++)
        if (strcmp(alone->events[i].digest, other->events[i].digest) || !*alone->events[i].digest)
            fail_msg("run %llu (rank %d): event %d (%s) has other bits when played %s",
                     (unsigned long long)alone->seed, alone->lora.rank, i,
                     move_names[alone->events[i].move], played);
}

/* The least memory that the longest datum of the widest adapter and a sampler get along with. */
static size_t tight_scratch(const struct folder *model)
{
    struct engine *en = open_engine(model, 1, 0, 0);
    size_t bytes = train_bytes(en, 300, train_blocks(300), ENGINE_RANK_MAX, true);
    engine_close(en);
    return bytes;
}

static void try_company(const struct folder *model, struct run *alone[VICTIMS],
                        const uint64_t *seeds, int count, const struct how *how)
{
    char played[160];
    snprintf(played, sizeof played, "with %d others, %d threads, %zu bytes of scratch, mix %llu",
             count - 1, how->threads, how->scratch, (unsigned long long)how->mix);
    struct run *runs = play(model, seeds, count, how);
    for (int v = 0; v < VICTIMS && v < count; v++)
        assert_same_run(alone[v], &runs[v], played);
    free(runs);
}

static void try_seed(const struct folder *model, uint64_t seed)
{
    static const int others[] = {0, 0, 1, 7, 63};
    uint64_t seeds[RUNS_MAX], state = seed;
    struct run *alone[VICTIMS];
    size_t tight = tight_scratch(model);
    print_message("  seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < RUNS_MAX; i++)
        seeds[i] = (uint64_t)next_word(&state) << 8;
    for (int v = 0; v < VICTIMS; v++)
        alone[v] = play(model, &seeds[v], 1, &(struct how){.threads = 1});
    for (int i = 0; i < 5 && others[i] <= OTHERS_MOST; i++) {
        struct how how = {
            .threads = 1 + (i + (int)(seed % 3)) % 3,
            .scratch = i == 1 || pick(&state, 2) ? tight + tight / 4 * (size_t)pick(&state, 13) : 0,
            .mix = next_word(&state)};
        try_company(model, alone, seeds, others[i] + 1, &how);
    }
    for (int v = 0; v < VICTIMS; v++)
        free(alone[v]);
}

/* ------------------------------------------------------------------ every cut */

/* Sequences in the order in which the engine puts them: adapter by adapter, forward-only ones last.
 */
static const int order_lengths[] = {31, 64, 65, 1, 129, 64, 130, 7, 63, 2};
#define ORDER_COUNT   10
#define ORDER_FORWARD 8
#define BOUNDS_MAX    (ORDER_COUNT * ORDER_COUNT)

static int passes;
static const struct ops *uncounted;

static int counting_sync(struct device *d, struct err *e)
{
    passes++;
    return uncounted->sync(d, e);
}

static int compare_sizes(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return x < y ? -1 : x > y;
}

/* Bounds on memory at which the cut can change: where some run of neighbours just fits.  Ascending,
 * from the first at which every sequence fits alone. */
static int cut_bounds(const struct engine *en, size_t *bounds)
{
    size_t least = 0;
    int n = 0, kept = 0;
    for (int i = 0; i < ORDER_COUNT; i++)
        for (int k = i, rows = 0, blocks = 0; k < ORDER_COUNT; k++) {
            if ((i < ORDER_FORWARD) != (k < ORDER_FORWARD)) break;
            rows += order_lengths[k];
            blocks += train_blocks(order_lengths[k]);
            bounds[n] = train_bytes(en, rows, blocks, confs[2].rank, i < ORDER_FORWARD);
            if (i == k && bounds[n] > least) least = bounds[n];
            n++;
        }
    qsort(bounds, (size_t)n, sizeof *bounds, compare_sizes);
    for (int i = 0; i < n; i++)
        if (bounds[i] >= least && (kept == 0 || bounds[i] != bounds[kept - 1]))
            bounds[kept++] = bounds[i];
    return kept;
}

/* One call of three runs; the digest of the middle one's gradient, loss and log-probabilities. */
static void run_cut(struct engine *en, struct event *out)
{
    static const int one[] = {31, 64, 0}, two[] = {65, 1, 129, 0}, three[] = {64, 130, 0};
    static const int four[] = {7, 0}, five[] = {63, 2, 0};
    struct adapter *ads[3];
    for (int i = 0; i < 3; i++)
        ads[i] = draw_adapter(en, &confs[i], (uint64_t)i);
    struct train_item items[] = {make_item(en, ads[1], LOSS_PPO, one, 1),
                                 make_item(en, ads[0], LOSS_CROSS_ENTROPY, two, 2),
                                 make_item(en, ads[2], LOSS_CROSS_ENTROPY, four, 3),
                                 make_item(en, ads[0], LOSS_IMPORTANCE_SAMPLING, three, 4),
                                 make_item(en, ads[0], LOSS_CROSS_ENTROPY, five, 5)};
    items[4].forward_only = true;
    passes = 0;
    train(en, items, 5);
    int made = passes;
    struct note n = note_begin();
    for (int i = 1; i < 5; i++) {
        struct event ev = {.item = items[i]};
        note_item(&ev);
        seal_hash_add(n.h, ev.digest, sizeof ev.digest);
    }
    for (int i = 0; i < 3; i++) {
        char state[65];
        digest_of(ads[i], state);
        seal_hash_add(n.h, state, sizeof state);
        adapter_free(ads[i]);
    }
    note_end(n, out);
    passes = made; /* a digest waits for the device as well */
    for (int i = 0; i < 5; i++)
        item_clear(&items[i]);
}

static void try_cuts(const struct folder *model)
{
    struct engine *en = open_engine(model, 2, 0, 0);
    struct ops counting = *en->ops;
    struct event whole = {0}, cut = {0};
    size_t bounds[BOUNDS_MAX];
    int count = cut_bounds(en, bounds), seen[ORDER_COUNT + 1] = {0}, kinds = 0;
    uncounted = en->ops;
    counting.sync = counting_sync;
    en->ops = &counting;
    run_cut(en, &whole);
    assert_int_equal(passes, 2); /* with a gradient, and without */
    for (int i = 0; i < count; i++) {
        en->scratch_bytes_max = bounds[i];
        run_cut(en, &cut);
        if (strcmp(whole.digest, cut.digest))
            fail_msg("in %d passes of at most %zu bytes the bits differ", passes, bounds[i]);
        kinds += seen[passes]++ == 0;
    }
    print_message("  %d bounds, %d different numbers of passes\n", count, kinds);
    assert_true(kinds >= 3);
    en->ops = uncounted;
    engine_close(en);
}

/* ------------------------------------------------------------------ tests */

static struct folder models[2];

static int setup(void **state)
{
    models[0] = world_make(ODD_MODEL);
    models[1] = world_make(ODD_TIED_MODEL);
    return 0;
}

static int teardown(void **state)
{
    folder_remove(&models[0]);
    folder_remove(&models[1]);
    return 0;
}

static void no_cut_into_passes_shows(void **state)
{
    for (int m = 0; m < 2; m++)
        try_cuts(&models[m]);
}

/* Some seeds that never change, and one of this hour. */
static void no_company_shows(void **state)
{
    const char *given = getenv("TINWORKS_SEED");
    if (given) {
        char *end;
        uint64_t seed = strtoull(given, &end, 10);
        if (end == given || *end)
            fail_msg("TINWORKS_SEED is \"%s\", expected a whole number", given);
        try_seed(&models[seed % 2], seed);
        return;
    }
    for (uint64_t seed = 1; seed <= FIXED_SEEDS; seed++)
        try_seed(&models[seed % 2], seed);
    uint64_t now = (uint64_t)time(NULL);
    try_seed(&models[now % 2], now);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_cut_into_passes_shows),
        cmocka_unit_test(no_company_shows),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
