/* Log-probabilities and their way back: against the CPU's, and that a row's bits are its own. */
#include "cuda/sides.h"

#define ROWS 5
#define IDS  11

/* The third row asks for nothing, the fourth for an id twice. */
static const int first[ROWS + 1] = {0, 3, 4, 4, 9, 11};

struct head_result {
    float *logprob, *lse, *dx;
};

/* Rows from .. ROWS - 1 of all; `one`: an id a row. */
static struct head_result head(const struct side *s, const float *logits, const float *g,
                               const int32_t *ids, int from, bool one, int vocab)
{
    size_t n = (size_t)(ROWS - from) * (size_t)vocab, at = (size_t)from * (size_t)vocab;
    const int *begins = one ? NULL : first + from;
    const int32_t *asked = one ? ids + from : ids;
    float *x = up(s, logits + at, n), *lp = room(s, IDS), *lse = room(s, ROWS), *gs = up(s, g, IDS);
    s->ops->logprob(s->d, lp, lse, x, begins, asked, ROWS - from, vocab);
    s->ops->logprob_back(s->d, x, lse, gs, begins, asked, ROWS - from, vocab);
    s->ops->logprob(s->d, lp, lse, x, begins, asked, 0, vocab);
    drop(s, gs);
    return (struct head_result){down(s, lp, IDS), down(s, lse, ROWS), down(s, x, n)};
}

static void head_free(struct head_result *r)
{
    free(r->logprob), free(r->lse), free(r->dx);
}

static void check_vocab(struct side s[2], int vocab, bool one)
{
    size_t n = (size_t)ROWS * (size_t)vocab, last = (size_t)(ROWS - 1) * (size_t)vocab;
    float *x = numbers(n, 1), *g = numbers(IDS, 2);
    int32_t ids[IDS];
    for (int i = 0; i < IDS; i++)
        ids[i] = (int32_t)((unsigned)i * 7919u % (unsigned)vocab);
    ids[6] = ids[4];
    ids[2] = vocab - 1;
    ids[3] = ids[10] = -1; /* of another part of the vocabulary */
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] * 20 + (i < (size_t)vocab ? 300 : 0);
    if (vocab > 40) x[40] = -INFINITY;
    struct head_result r[2], alone = head(&s[1], x, g, ids, ROWS - 1, one, vocab);
    for (int i = 0; i < 2; i++)
        r[i] = head(&s[i], x, g, ids, 0, one, vocab);
    /* fp32 near 300, and of sums of `vocab` terms */
    assert_all_near(r[1].lse, r[0].lse, ROWS, 5e-5, "lse");
    assert_all_near(r[1].logprob, r[0].logprob, one ? ROWS : IDS, 5e-5, "logprob");
    assert_all_near(r[1].dx, r[0].dx, n, 5e-5, "gradient");
    assert_same_bits(alone.lse, r[1].lse + ROWS - 1, 1);
    if (one)
        assert_same_bits(alone.logprob, r[1].logprob + ROWS - 1, 1);
    else
        assert_same_bits(alone.logprob + first[ROWS - 1], r[1].logprob + first[ROWS - 1], 2);
    if (!one) assert_same_bits(alone.dx, r[1].dx + last, (size_t)vocab);
    head_free(&r[0]), head_free(&r[1]), head_free(&alone);
    free(x), free(g);
}

static void logprobs_agree_and_a_row_is_its_own(void **state)
{
    static const int vocabs[] = {1, 33, 1000, 1025, 50257};
    struct side s[2];
    sides_open(s);
    for (int v = 0; v < 5; v++) {
        check_vocab(s, vocabs[v], true);
        check_vocab(s, vocabs[v], false);
    }
    sides_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logprobs_agree_and_a_row_is_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
