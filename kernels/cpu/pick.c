/* pick.c - the choice of a token from its logits.
 *
 * It needs no sort.  The kept set is "every logit above a threshold, and the first
 * few ids that equal it"; the threshold is found digit by digit over an order-preserving integer
 * image of the logits (a radix select), by count for top_k and by mass for top_p.
 *
 * Masses are added in double by ascending id. */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define DIGIT_BITS 8
#define DIGITS     (1 << DIGIT_BITS)
#define DRAWS      64 /* in one walk */

/* Larger logit, larger image.  NaN comes last; -0 equals +0. */
static uint32_t order_of(float x)
{
    uint32_t bits;
    if (isnan(x)) return 0;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static int32_t likeliest(const float *logits, int vocab)
{
    int32_t best = 0;
    uint32_t most = 0;
    for (int i = 0; i < vocab; i++) {
        uint32_t o = order_of(logits[i]);
        if (o > most) {
            most = o;
            best = i;
        }
    }
    return best;
}

/* A set of ids: those whose order is above `above`, and the first `ties` ids whose order equals it.
 */
struct kept {
    uint32_t above;
    int ties;
};

struct row {
    const float *logits;
    const float *mass; /* beside logits; NULL where a thread's scratch has no room for it */
    int vocab;
    float max, inv_temperature;
};

static float weigh(const struct row *r, int i)
{
    return isnan(r->logits[i]) ? 0 : expf((r->logits[i] - r->max) * r->inv_temperature);
}

static double mass_of(const struct row *r, int i)
{
    return (double)(r->mass ? r->mass[i] : weigh(r, i));
}

static void fill_mass(struct row *r, float *scratch)
{
    if (r->vocab > (int)CPU_SCRATCH_FLOATS) return;
    for (int i = 0; i < r->vocab; i++)
        scratch[i] = weigh(r, i);
    r->mass = scratch;
}

static bool keeps(const struct kept *k, uint32_t order, int *ties_seen)
{
    if (order > k->above) return true;
    return order == k->above && (*ties_seen)++ < k->ties;
}

/* The smallest set of most likely ids within `from` whose weight reaches target; an id weighs 1
 * (by_mass false) or its mass.  A set of ids that weigh less altogether is returned whole. */
static struct kept select_top(const struct row *r, struct kept from, double target, bool by_mass)
{
    uint32_t prefix = 0;
    double got = 0;
    for (int shift = 32 - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        double bins[DIGITS] = {0};
        int ties_seen = 0;
        for (int i = 0; i < r->vocab; i++) {
            uint32_t o = order_of(r->logits[i]);
            bool same = shift + DIGIT_BITS == 32 || (o ^ prefix) >> (shift + DIGIT_BITS) == 0;
            if (!same || !keeps(&from, o, &ties_seen)) continue;
            bins[o >> shift & (DIGITS - 1)] += by_mass ? mass_of(r, i) : 1;
        }
        int d = DIGITS - 1;
        while (d > 0 && got + bins[d] < target)
            got += bins[d--];
        if (d == 0 && got + bins[0] < target && shift + DIGIT_BITS == 32) return from;
        prefix |= (uint32_t)d << shift;
    }
    struct kept k = {.above = prefix};
    int ties_seen = 0;
    for (int i = 0; i < r->vocab && got < target; i++) {
        if (order_of(r->logits[i]) != prefix || !keeps(&from, prefix, &ties_seen)) continue;
        got += by_mass ? mass_of(r, i) : 1;
        k.ties++;
    }
    return k;
}

static double total_mass(const struct row *r, struct kept k)
{
    double sum = 0;
    int ties_seen = 0;
    for (int i = 0; i < r->vocab; i++)
        if (keeps(&k, order_of(r->logits[i]), &ties_seen)) sum += mass_of(r, i);
    return sum;
}

/* Indices of the picks, smallest number first. */
static void rank(const struct pick *picks, int count, int *order)
{
    for (int j = 0; j < count; j++) {
        int at = j;
        for (; at > 0 && picks[order[at - 1]].uniform > picks[j].uniform; at--)
            order[at] = order[at - 1];
        order[at] = j;
    }
}

/* Walks the set in the order of ids until each number times its mass is passed.  A set that weighs
 * nothing leaves `otherwise`. */
static void draw(const struct row *r, struct kept k, double total, const struct pick *picks,
                 int count, int32_t otherwise, int32_t *ids)
{
    double passed = 0;
    int order[DRAWS], ties_seen = 0, next = 0;
    int32_t last = otherwise;
    rank(picks, count, order);
    for (int i = 0; i < r->vocab && next < count; i++) {
        if (!keeps(&k, order_of(r->logits[i]), &ties_seen)) continue;
        double w = mass_of(r, i);
        if (w <= 0) continue;
        last = i;
        passed += w;
        while (next < count && passed > picks[order[next]].uniform * total)
            ids[order[next++]] = i;
    }
    while (next < count)
        ids[order[next++]] = last; /* rounding kept the sum below the whole */
}

/* The picks of one row that differ in their numbers alone. */
static void choose(const float *logits, int vocab, const struct pick *picks, int count,
                   float *scratch, int32_t *ids)
{
    int32_t best = likeliest(logits, vocab);
    struct row r = {logits, NULL, vocab, logits[best], 1 / picks->temperature};
    if (!(picks->temperature > 0) || !isfinite(r.max) || !isfinite(r.inv_temperature)) {
        for (int j = 0; j < count; j++)
            ids[j] = best;
        return;
    }
    struct kept k = {.above = 0, .ties = 0};
    fill_mass(&r, scratch);
    if (picks->top_k > 0 && picks->top_k < vocab) k = select_top(&r, k, picks->top_k, false);
    if (picks->top_p < 1)
        k = select_top(&r, k, (double)picks->top_p * total_mass(&r, k), true);
    double total = total_mass(&r, k);
    for (int j = 0; j < count; j += DRAWS)
        draw(&r, k, total, picks + j, count - j < DRAWS ? count - j : DRAWS, best, ids + j);
}

struct picks {
    const float *logits;
    const struct pick *picks;
    int32_t *ids;
    int count, vocab;
};

static bool goes_on(const struct pick *before, const struct pick *p)
{
    return p->row == before->row && p->temperature == before->temperature &&
           p->top_k == before->top_k && p->top_p == before->top_p;
}

/* Of picks that go together the first has all the work. */
static void pick_task(const void *arg, int task, float *scratch)
{
    const struct picks *a = arg;
    const struct pick *p = a->picks + task;
    int count = 1;
    if (task > 0 && goes_on(p - 1, p)) return;
    while (task + count < a->count && goes_on(p, p + count))
        count++;
    choose(a->logits + (size_t)p->row * (size_t)a->vocab, a->vocab, p, count, scratch,
           a->ids + task);
}

void cpu_pick(struct device *d, int32_t *ids, const float *logits, const struct pick *picks,
              int count, int vocab)
{
    const struct picks a = {logits, picks, ids, count, vocab};
    assert(vocab >= 1 && vocab <= OPS_VOCAB_MAX);
    cpu_run(d, pick_task, &a, count, (size_t)count * (size_t)vocab);
}
