/* pick.c - the choice of a token from its logits.
 *
 * It needs no sort.  The kept set is "every logit above a threshold, and the first
 * few ids that equal it"; the threshold is found digit by digit over an order-preserving integer
 * image of the logits (a radix select), by count for top_k and by mass for top_p. */
#include <math.h>
#include <string.h>
#include "engine/model.h"

#define DIGIT_BITS 8
#define DIGITS     (1 << DIGIT_BITS)

/* Larger logit, larger image.  NaN, which only a diverged run has, comes last; -0 equals +0. */
static uint32_t order_of(float x)
{
    uint32_t bits;
    if (isnan(x)) return 0;
    x += 0.0f;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static int32_t greedy(const float *logits, int vocab)
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
    const float *mass; /* beside logits: probabilities, but for a common factor */
    int vocab;
};

static void fill_mass(float *mass, const float *logits, int vocab, float max, float inv_temperature)
{
    for (int i = 0; i < vocab; i++)
        mass[i] = isnan(logits[i]) ? 0 : expf((logits[i] - max) * inv_temperature);
}

static bool keeps(const struct kept *k, uint32_t order, int *ties_seen)
{
    if (order > k->above) return true;
    return order == k->above && (*ties_seen)++ < k->ties;
}

/* The smallest set of most likely ids within `from` whose weight reaches target; an id weighs 1
 * (by_mass false) or its probability.  A set of ids that weigh less altogether is returned whole.
 */
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
            bins[o >> shift & (DIGITS - 1)] += by_mass ? (double)r->mass[i] : 1;
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
        got += by_mass ? (double)r->mass[i] : 1;
        k.ties++;
    }
    return k;
}

static double total_mass(const struct row *r, struct kept k)
{
    double sum = 0;
    int ties_seen = 0;
    for (int i = 0; i < r->vocab; i++)
        if (keeps(&k, order_of(r->logits[i]), &ties_seen)) sum += (double)r->mass[i];
    return sum;
}

/* Indices of the uniform numbers, smallest first. */
static void rank(const double *uniforms, int count, int *order)
{
    for (int j = 0; j < count; j++) {
        int at = j;
        for (; at > 0 && uniforms[order[at - 1]] > uniforms[j]; at--)
            order[at] = order[at - 1];
        order[at] = j;
    }
}

/* Walks the set in the order of ids until each uniform number times its mass is passed.  -1: the
 * set weighs nothing. */
static void draw(const struct row *r, struct kept k, const double *uniforms, int count,
                 int32_t *ids)
{
    double total = total_mass(r, k), passed = 0;
    int order[ENGINE_ALT_MAX], ties_seen = 0, next = 0;
    int32_t last = -1;
    rank(uniforms, count, order);
    for (int i = 0; i < r->vocab && next < count; i++) {
        if (!keeps(&k, order_of(r->logits[i]), &ties_seen)) continue;
        double w = (double)r->mass[i];
        if (w <= 0) continue;
        last = i;
        passed += w;
        while (next < count && passed > uniforms[order[next]] * total)
            ids[order[next++]] = i;
    }
    while (next < count)
        ids[order[next++]] = last; /* rounding kept the sum below the whole */
}

/* Draws from what top_k and top_p leave; greedy where there is nothing to draw from. */
static void choose(const float *logits, int vocab, const struct pick *how, const double *uniforms,
                   int count, float *mass, int32_t *ids)
{
    int32_t best = greedy(logits, vocab);
    float inv_temperature = 1 / how->temperature;
    bool drawn = how->temperature > 0 && isfinite(logits[best]) && isfinite(inv_temperature);
    if (drawn) {
        struct row r = {logits, mass, vocab};
        struct kept k = {.above = 0, .ties = 0};
        fill_mass(mass, logits, vocab, logits[best], inv_temperature);
        if (how->top_k > 0 && how->top_k < vocab) k = select_top(&r, k, how->top_k, false);
        if (how->top_p < 1) k = select_top(&r, k, (double)how->top_p * total_mass(&r, k), true);
        draw(&r, k, uniforms, count, ids);
    }
    for (int j = 0; j < count; j++)
        if (!drawn || ids[j] < 0) ids[j] = best;
}

int32_t sample_pick(const float *logits, int vocab, const struct pick *how, double uniform,
                    float *scratch)
{
    int32_t id;
    choose(logits, vocab, how, &uniform, 1, scratch, &id);
    return id;
}

void sample_draws(const float *logits, int vocab, float temperature, const double *uniforms,
                  int count, float *scratch, int32_t *ids)
{
    const struct pick whole = {.temperature = temperature, .top_k = -1, .top_p = 1};
    choose(logits, vocab, &whole, uniforms, count, scratch, ids);
}

/* Insertion into a short sorted list: almost every logit is turned away by its end. */
void sample_top(const float *logits, int vocab, int k, int32_t *ids)
{
    uint32_t orders[ENGINE_TOPK_MAX];
    int n = 0;
    for (int i = 0; i < vocab; i++) {
        uint32_t o = order_of(logits[i]);
        if (n == k && o <= orders[n - 1]) continue;
        int at = n < k ? n++ : n - 1;
        for (; at > 0 && orders[at - 1] < o; at--) {
            orders[at] = orders[at - 1];
            ids[at] = ids[at - 1];
        }
        orders[at] = o;
        ids[at] = i;
    }
    for (int j = n; j < k; j++)
        ids[j] = -1;
}
