/* cases.c - see cases.h.
 *
 * A repetition does each side of a case once, so that whatever disturbs the machine disturbs all of
 * them alike; ratios are medians over repetitions.  Times by wall clock are what a user sees; CPU
 * time (of all threads) beside them holds better on a busy machine, but counts waiting threads. */
#include "cases.h"

#include <stdio.h>
#include <string.h>
#include "figures.h"
#include "profile.h"
#include "series.h"

#define PEAK_N 2048

/* ------------------------------------------------------------------ one side of a case */

/* Seconds of one side, a repetition each. */
struct side {
    struct series wall, cpu, pass, pass_cpu;
};

static void side_add(struct side *s, const struct took *t)
{
    series_add(&s->wall, t->pass.wall_s + t->optim.wall_s);
    series_add(&s->cpu, t->pass.cpu_s + t->optim.cpu_s);
    series_add(&s->pass, t->pass.wall_s);
    series_add(&s->pass_cpu, t->pass.cpu_s);
}

static void print(const char *name, const char *figure, double value, const char *unit)
{
    figure_print("engine", name, figure, value, unit);
}

static int measure_peak(struct bench *b, struct err *e)
{
    double rate;
    int rc = b->peer ? peer_gemm_peak(b->peer, PEAK_N, &rate, e)
                     : work_gemm_peak(b->work, PEAK_N, &rate, e);
    if (rc == 0 && rate > b->flop_peak) b->flop_peak = rate;
    return rc;
}

/* ------------------------------------------------------------------ training */

struct train_case {
    const char *name;
    struct train_shape shape, base; /* base.adapters 0: compared with the peer only */
    bool bf16;                      /* the shape on weights kept in bf16; base and peer in fp32 */
};

static const struct train_case train_cases[] = {
    {"train_16x256", {1, 16, 256, 1}, {0}, false},
    {"request_1x64", {1, 1, 64, 16}, {1, 16, 256, 1}, false},
    {"adapters_16_of_1x256", {16, 1, 256, 1}, {1, 16, 256, 1}, false},
    {"adapters_64_of_1x64", {64, 1, 64, 1}, {1, 64, 64, 1}, false},
    {"train_16x256_bf16", {1, 16, 256, 1}, {1, 16, 256, 1}, true},
};
#define TRAIN_CASES (sizeof train_cases / sizeof *train_cases)

enum { OURS, OURS_BASE, PEERS, PEERS_BASE, SIDES };

static double tokens_of(const struct train_shape *s)
{
    return (double)s->adapters * s->batch * s->seq * s->repeat;
}

static int train_once(struct bench *b, const struct train_case *c, struct side *sides,
                      struct err *e)
{
    const struct train_shape *shapes[] = {&c->shape, &c->base};
    for (int side = 0; side < SIDES; side++) {
        const struct train_shape *s = shapes[side % 2];
        struct took took;
        bool peers = side >= PEERS;
        if (s->adapters == 0 || (peers && !b->peer)) continue;
        struct work *ours = c->bf16 && side == OURS ? b->work_bf16 : b->work;
        if ((peers ? peer_train(b->peer, s, &took, e) : work_train(ours, s, &took, e)) < 0)
            return -1;
        side_add(&sides[side], &took);
    }
    return measure_peak(b, e);
}

/* How the rate of one side compares with its base, both in tokens a second. */
static void print_over_base(const struct train_case *c, const char *whose, const struct side *many,
                            const struct side *base)
{
    double tokens = tokens_of(&c->shape) / tokens_of(&c->base);
    char figure[64];
    snprintf(figure, sizeof figure, "%sover_base", whose);
    print(c->name, figure, tokens * series_ratio(&base->wall, &many->wall), "x");
    snprintf(figure, sizeof figure, "%spass_over_base", whose);
    print(c->name, figure, tokens * series_ratio(&base->pass, &many->pass), "x");
    snprintf(figure, sizeof figure, "%sover_base_cpu", whose);
    print(c->name, figure, tokens * series_ratio(&base->cpu, &many->cpu), "x");
    snprintf(figure, sizeof figure, "%spass_over_base_cpu", whose);
    print(c->name, figure, tokens * series_ratio(&base->pass_cpu, &many->pass_cpu), "x");
}

static void print_train(const struct bench *b, const struct train_case *c,
                        const struct side *sides)
{
    double tokens = tokens_of(&c->shape);
    double rate = tokens / series_median(&sides[OURS].wall);
    double gflop = 1e-9 * rate * work_flop_per_token(b->work, c->shape.seq);
    print(c->name, "tokens_per_s", rate, "tok/s");
    print(c->name, "pass_tokens_per_s", tokens / series_median(&sides[OURS].pass), "tok/s");
    print(c->name, "tokens_per_cpu_s", tokens / series_median(&sides[OURS].cpu), "tok/s");
    print(c->name, "gflop_per_s", gflop, "GFLOP/s");
    print(c->name, b->peer ? "share_of_torch_mm" : "share_of_own_gemm", gflop / b->flop_peak, "x");
    if (c->base.adapters) print_over_base(c, "", &sides[OURS], &sides[OURS_BASE]);
    if (!b->peer) return;
    print(c->name, "peer_tokens_per_s", tokens / series_median(&sides[PEERS].wall), "tok/s");
    print(c->name, "over_peer", series_ratio(&sides[PEERS].wall, &sides[OURS].wall), "x");
    print(c->name, "over_peer_cpu", series_ratio(&sides[PEERS].cpu, &sides[OURS].cpu), "x");
    if (c->base.adapters) print_over_base(c, "peer_", &sides[PEERS], &sides[PEERS_BASE]);
}

static int run_train(struct bench *b, const struct train_case *c, struct err *e)
{
    struct side sides[SIDES] = {0}, unused[SIDES] = {0};
    if (c->bf16 && !b->work_bf16) b->work_bf16 = work_open(b->model_dir, b->threads, "bf16", e);
    if (c->bf16 && !b->work_bf16) return -1;
    if (train_once(b, c, unused, e) < 0) return -1;
    for (int i = 0; i < b->reps; i++)
        if (train_once(b, c, sides, e) < 0) return -1;
    print_train(b, c, sides);
    return 0;
}

/* ------------------------------------------------------------------ generating */

struct generate_case {
    const char *name;
    struct generate_shape shape;
};

static const struct generate_case generate_cases[] = {
    {"generate_1", {1, 64, 64}},
    {"generate_16", {16, 64, 64}},
};
#define GENERATE_CASES (sizeof generate_cases / sizeof *generate_cases)

static int generate_once(struct bench *b, const struct generate_case *c, struct side *ours,
                         struct side *peers, struct err *e)
{
    struct took took;
    if (work_generate(b->work, &c->shape, &took, e) < 0) return -1;
    side_add(ours, &took);
    if (!b->peer) return 0;
    if (peer_generate(b->peer, &c->shape, &took, e) < 0) return -1;
    side_add(peers, &took);
    return 0;
}

static int run_generate(struct bench *b, const struct generate_case *c, struct err *e)
{
    struct side ours = {0}, peers = {0}, unused = {0};
    double tokens = (double)c->shape.batch * c->shape.fresh;
    if (generate_once(b, c, &unused, &unused, e) < 0) return -1;
    for (int i = 0; i < b->reps; i++)
        if (generate_once(b, c, &ours, &peers, e) < 0) return -1;
    print(c->name, "tokens_per_s", tokens / series_median(&ours.wall), "tok/s");
    print(c->name, "tokens_per_cpu_s", tokens / series_median(&ours.cpu), "tok/s");
    if (!b->peer) return 0;
    print(c->name, "peer_tokens_per_s", tokens / series_median(&peers.wall), "tok/s");
    print(c->name, "over_peer", series_ratio(&peers.wall, &ours.wall), "x");
    print(c->name, "over_peer_cpu", series_ratio(&peers.cpu, &ours.cpu), "x");
    return 0;
}

/* ------------------------------------------------------------------ profiles */

static int profile_train(struct bench *b, const struct train_case *c, struct err *e)
{
    struct took took;
    char name[64];
    if (work_train(b->work, &c->shape, &took, e) < 0) return -1;
    snprintf(name, sizeof name, "profile_%s", c->name);
    profile_begin(work_engine(b->work));
    int rc = work_train(b->work, &c->shape, &took, e);
    profile_end(work_engine(b->work), name);
    return rc;
}

static int profile_generate(struct bench *b, const struct generate_case *c, struct err *e)
{
    struct took took;
    char name[64];
    snprintf(name, sizeof name, "profile_%s", c->name);
    profile_begin(work_engine(b->work));
    int rc = work_generate(b->work, &c->shape, &took, e);
    profile_end(work_engine(b->work), name);
    return rc;
}

static int run_profile(struct bench *b, struct err *e)
{
    for (size_t i = 0; i < TRAIN_CASES; i++)
        if (!train_cases[i].bf16 && profile_train(b, &train_cases[i], e) < 0) return -1;
    for (size_t i = 0; i < GENERATE_CASES; i++)
        if (profile_generate(b, &generate_cases[i], e) < 0) return -1;
    return 0;
}

/* ------------------------------------------------------------------ all of them */

const char *cases_names(void)
{
    return "memory, train_16x256, request_1x64, adapters_16_of_1x256, adapters_64_of_1x64, "
           "train_16x256_bf16, generate_1, generate_16, profile";
}

bool cases_known(const char *name)
{
    size_t size = strlen(name);
    for (const char *at = cases_names(); at; at = strchr(at, ' ')) {
        at += *at == ' ';
        if (!strncmp(at, name, size) && (at[size] == ',' || at[size] == 0)) return true;
    }
    return false;
}

static bool wanted(const char *only, const char *name)
{
    return !only || !strcmp(only, name);
}

static int run_measured(struct bench *b, const char *only, struct err *e)
{
    for (size_t i = 0; i < TRAIN_CASES; i++)
        if (wanted(only, train_cases[i].name) && run_train(b, &train_cases[i], e) < 0) return -1;
    for (size_t i = 0; i < GENERATE_CASES; i++)
        if (wanted(only, generate_cases[i].name) && run_generate(b, &generate_cases[i], e) < 0)
            return -1;
    if (wanted(only, "profile") && run_profile(b, e) < 0) return -1;
    if (b->flop_peak > 0)
        print("peak", b->peer ? "torch_mm" : "own_gemm", b->flop_peak, "GFLOP/s");
    return 0;
}

int cases_run(struct bench *b, const char *only, struct err *e)
{
    int rc = -1;
    if (wanted(only, "memory") && memory_case(b, e) < 0) return -1;
    if (only && !strcmp(only, "memory")) return 0;
    b->work = work_open(b->model_dir, b->threads, "fp32", e);
    if (!b->work) goto out;
    if (b->python) {
        b->peer = peer_open(b->python, b->script, b->model_dir, b->threads, e);
        if (!b->peer) goto out;
    }
    rc = run_measured(b, only, e);
out:
    peer_close(b->peer);
    work_close(b->work);
    work_close(b->work_bf16);
    return rc;
}
