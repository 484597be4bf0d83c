/* The choice of a token: against the CPU's, and that a choice is its own.
 *
 * Masses and their sums are the device's own, so a number that falls on a boundary between two ids
 * may choose either.  Everything else must be the CPU's choice. */
#include "cuda/sides.h"

#define ALMOST_ONE 0x1.fffffffffffffp-1
#define EDGE       2e-6 /* of the whole: fp32's exponentials, each 2 units wrong */

static double next_uniform(uint64_t *state)
{
    double high = ((double)next_number(state) + 1) / 2;
    return high + ((double)next_number(state) + 1) * 0x1p-34;
}

/* The choices of both sides from the same logits [rows, vocab]; the caller frees. */
static void choose(struct side s[2], int32_t *ids[2], const float *logits, int rows, int vocab,
                   const struct pick *picks, int count)
{
    for (int i = 0; i < 2; i++) {
        float *there = up(&s[i], logits, (size_t)rows * (size_t)vocab);
        ids[i] = calloc((size_t)count, sizeof *ids[i]);
        s[i].ops->pick(s[i].d, ids[i], there, picks, count, vocab);
        for (int c = 0; c < count; c++)
            assert_in_range(ids[i][c], 0, vocab - 1);
        drop(&s[i], there);
    }
}

/* ------------------------------------------------------------------ by sorting */

/* What may be chosen, in double: upto[i] is the mass of the ids to i that are kept. */
struct sorted {
    double *upto, all;
    bool *maybe; /* kept, or within rounding of it */
};

static const float *sort_by;

static int by_logit(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    if (sort_by[x] != sort_by[y]) return sort_by[x] < sort_by[y] ? 1 : -1;
    return (x > y) - (x < y);
}

static struct sorted sort(const float *logits, int vocab, const struct pick *how)
{
    size_t n = (size_t)vocab;
    int *order = malloc(n * sizeof *order), k = vocab;
    double *mass = malloc(n * sizeof *mass), total = 0, got = 0;
    struct sorted t = {calloc(n, sizeof *t.upto), 0, calloc(n, sizeof *t.maybe)};
    for (int i = 0; i < vocab; i++)
        order[i] = i;
    sort_by = logits;
    qsort(order, n, sizeof *order, by_logit);
    for (int i = 0; i < vocab; i++)
        mass[i] = exp((double)(logits[i] - logits[order[0]]) / (double)how->temperature);
    if (how->top_k > 0 && how->top_k < vocab) k = how->top_k;
    for (int i = 0; i < k; i++)
        total += mass[order[i]];
    double target = how->top_p < 1 ? (double)how->top_p * total : INFINITY;
    for (int i = 0; i < k; i++) {
        t.maybe[order[i]] = got <= target + EDGE * total;
        if (got < target) t.upto[order[i]] = mass[order[i]];
        got += mass[order[i]];
    }
    for (int i = 0; i < vocab; i++)
        t.upto[i] = t.all += t.upto[i];
    free(order), free(mass);
    return t;
}

/* Does the number fall, but for rounding, between the two ids? */
static bool at_the_edge(const struct sorted *t, double uniform, int32_t a, int32_t b)
{
    int32_t low = a < b ? a : b, high = a < b ? b : a;
    return fabs(t->upto[low] - uniform * t->all) <= EDGE * t->all &&
           fabs(t->upto[high - 1] - uniform * t->all) <= EDGE * t->all;
}

static void same_but_at_edges(struct side s[2], const float *logits, int vocab, struct pick how,
                              int count)
{
    struct pick *picks = malloc((size_t)count * sizeof *picks);
    int32_t *ids[2];
    uint64_t random = (uint64_t)vocab;
    int differ = 0;
    for (int c = 0; c < count; c++) {
        picks[c] = how;
        picks[c].uniform = c == 0 ? 0 : c == 1 ? ALMOST_ONE : next_uniform(&random);
    }
    choose(s, ids, logits, 1, vocab, picks, count);
    struct sorted t = sort(logits, vocab, &how);
    for (int c = 0; c < count; c++) {
        assert_true(t.maybe[ids[1][c]]);
        if (ids[0][c] == ids[1][c]) continue;
        differ++;
        if (!at_the_edge(&t, picks[c].uniform, ids[0][c], ids[1][c]))
            fail_msg("vocab %d, temperature %g, top_k %d, top_p %g, uniform %.17g: %d, expected %d",
                     vocab, (double)how.temperature, how.top_k, (double)how.top_p,
                     picks[c].uniform, ids[1][c], ids[0][c]);
    }
    if (differ) print_message("vocab %d: %d of %d at an edge\n", vocab, differ, count);
    assert_true(differ * 10 <= count);
    free(t.upto), free(t.maybe), free(ids[0]), free(ids[1]), free(picks);
}

static float *logits_of(int rows, int vocab, uint64_t seed, bool ties)
{
    size_t n = (size_t)rows * (size_t)vocab;
    float *x = numbers(n, seed);
    for (size_t i = 0; i < n; i++)
        x[i] = ties ? roundf(x[i] * 6) : x[i] * 6;
    return x;
}

static void draws_agree_but_where_a_number_is_at_an_edge(void **state)
{
    static const int vocabs[] = {1, 2, 31, 257, 2049, 151936};
    struct side s[2];
    sides_open(s);
    for (int v = 0; v < 6; v++)
        for (int i = 0; i < 8; i += v == 5 ? 3 : 1) {
            int vocab = vocabs[v];
            float *x = logits_of(1, vocab, (uint64_t)(v * 8 + i), i % 3 == 2);
            struct pick how = {.temperature = i == 4 ? 0.3f : 1.1f,
                               .top_k = i % 2 ? -1 : 1 + vocab / (i + 2),
                               .top_p = i & 2 ? 0.2f + 0.1f * (float)i : 1};
            same_but_at_edges(s, x, vocab, how, vocab > 100000 ? 70 : 200);
            free(x);
        }
    sides_close(s);
}

/* ------------------------------------------------------------------ exactly */

/* Hot enough for all masses to be one, so that these numbers name the kept ids in turn. */
static void top_k_keeps_what_the_cpu_keeps(void **state)
{
    static const int vocabs[] = {1, 2, 31, 257, 5000};
    struct pick picks[200];
    struct side s[2];
    sides_open(s);
    for (int v = 0; v < 5; v++)
        for (int i = 0; i < 8; i++) {
            int vocab = vocabs[v], k = i < 4 ? i + 1 : i * 25, all = k < vocab ? k : vocab;
            float *x = logits_of(1, vocab, (uint64_t)i, i % 2);
            int32_t *ids[2];
            for (int c = 0; c < all; c++)
                picks[c] = (struct pick){0, 1e9f, k, 1, (c + 0.5) / all};
            choose(s, ids, x, 1, vocab, picks, all);
            assert_memory_equal(ids[0], ids[1], (size_t)all * sizeof(int32_t));
            for (int c = 1; c < all; c++)
                assert_true(ids[1][c] > ids[1][c - 1]);
            free(ids[0]), free(ids[1]), free(x);
        }
    sides_close(s);
}

enum { ODD = 9, WIDTH = 40 };

/* Rows that a model should not make. */
static float odd_logit(int row, int i)
{
    float plain = (float)(i * 37 % 11) * 0.5f;
    switch (row) {
    case 0: return NAN;
    case 1: return i == 7 ? plain : NAN;
    case 2: return -INFINITY;
    case 3: return i == 11 ? plain : -INFINITY;
    case 4: return 3;
    case 5: return i > 30 ? INFINITY : plain;
    case 6: return i % 2 ? 0.0f : -0.0f;
    case 7: return i < 20 ? NAN : plain;
    default: return plain;
    }
}

/* Of settings, too. */
static void the_ends_agree(void **state)
{
    static const float temperatures[] = {1e-30f, 0.7f, 1e30f, 0, -1, 1e-39f, NAN};
    static const float top_ps[] = {0, 1e-9f, 0.5f, 1};
    static const int top_ks[] = {0, 1, 7, WIDTH};
    float x[ODD][WIDTH];
    struct side s[2];
    sides_open(s);
    for (int r = 0; r < ODD; r++)
        for (int i = 0; i < WIDTH; i++)
            x[r][i] = odd_logit(r, i);
    for (int t = 0; t < 7; t++)
        for (int p = 0; p < 4; p += t < 3 ? 1 : 3) {
            struct pick picks[4 * 5 * ODD];
            int32_t *ids[2];
            int n = 0;
            for (int r = 0; r < ODD; r++)
                for (int k = 0; k < 4; k++)
                    for (int u = 0; u < 5; u++)
                        picks[n++] = (struct pick){r, temperatures[t], top_ks[k], top_ps[p],
                                                   u == 4 ? ALMOST_ONE : 0.231 * u};
            choose(s, ids, x[0], ODD, WIDTH, picks, n);
            assert_memory_equal(ids[0], ids[1], (size_t)n * sizeof(int32_t));
            free(ids[0]), free(ids[1]);
        }
    sides_close(s);
}

/* The last ids of the widest vocabulary, which have digits of their own. */
static void a_vocabulary_may_be_wide(void **state)
{
    struct side s[2];
    float *x = zeros(OPS_VOCAB_MAX);
    const struct pick picks[] = {{0, 0, -1, 1, 0.5},
                                 {0, 1, 3, 1, ALMOST_ONE},
                                 {0, 1, -1, 1, 0.5},
                                 {0, 1, -1, 1, ALMOST_ONE},
                                 {0, 1, OPS_VOCAB_MAX - 1, 1, ALMOST_ONE}};
    static const int32_t want[] = {0, 2, OPS_VOCAB_MAX / 2, OPS_VOCAB_MAX - 1, OPS_VOCAB_MAX - 2};
    int32_t *ids[2];
    sides_open(s);
    choose(s, ids, x, 1, OPS_VOCAB_MAX, picks, 5);
    for (int i = 0; i < 2; i++) {
        assert_memory_equal(ids[i], want, sizeof want);
        free(ids[i]);
    }
    free(x);
    sides_close(s);
}

/* ------------------------------------------------------------------ in company */

enum { ROWS = 7, VOCAB = 3000, PICKS = 120 };

static void a_choice_is_its_own(void **state)
{
    struct pick picks[PICKS], turned[PICKS];
    int32_t ids[PICKS], again[PICKS];
    uint64_t random = 3;
    struct side s[2];
    sides_open(s);
    float *x = logits_of(ROWS, VOCAB, 1, false), *there = up(&s[1], x, ROWS * VOCAB);
    for (int c = 0; c < PICKS; c++) {
        int kind = c < 60 ? c : c / 20; /* the last ones differ in their numbers alone */
        picks[c] = (struct pick){kind % ROWS, kind % 5 ? 0.8f : 0, kind % 2 ? -1 : 40 + kind,
                                 kind % 3 ? 1 : 0.9f, next_uniform(&random)};
        turned[PICKS - 1 - c] = picks[c];
    }
    s[1].ops->pick(s[1].d, ids, there, picks, PICKS, VOCAB);
    s[1].ops->pick(s[1].d, again, there, turned, PICKS, VOCAB);
    for (int c = 0; c < PICKS; c++)
        assert_int_equal(again[PICKS - 1 - c], ids[c]);
    for (int c = 0; c < PICKS; c += 7) { /* its row alone, elsewhere */
        struct pick alone = picks[c];
        float *row = up(&s[1], x + alone.row * VOCAB, VOCAB);
        alone.row = 0;
        s[1].ops->pick(s[1].d, again, row, &alone, 1, VOCAB);
        assert_int_equal(again[0], ids[c]);
        drop(&s[1], row);
    }
    s[1].ops->pick(s[1].d, NULL, there, picks, 0, VOCAB);
    drop(&s[1], there);
    free(x);
    sides_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_agree_but_where_a_number_is_at_an_edge),
        cmocka_unit_test(top_k_keeps_what_the_cpu_keeps),
        cmocka_unit_test(the_ends_agree),
        cmocka_unit_test(a_vocabulary_may_be_wide),
        cmocka_unit_test(a_choice_is_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
