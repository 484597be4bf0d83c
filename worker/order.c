/* order.c - see order.h.  A ring of slots, indexed by seq, holds the seqs applied + 1 .. applied +
 * size; another one of bytes the marks of the ORDER_PAST seqs before. */
#include "order.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

#define SLOTS_MIN 16

struct slot {
    void *item;    /* NULL: none came so far, or it was given up */
    uint8_t marks; /* of all jobs of this seq that were here */
    bool given_up;
};

struct order {
    int64_t applied, unbroken, highest, held;
    int64_t
        known_from; /* the lowest seq whose marks are remembered; applied + 1: none that is over */
    int64_t size;   /* a power of two */
    struct slot *slots;
    uint8_t past[ORDER_PAST];
};

struct order *order_create(int64_t applied, struct err *e)
{
    struct order *o = calloc(1, sizeof *o);
    if (o) o->slots = calloc(SLOTS_MIN, sizeof *o->slots);
    if (!o || !o->slots) {
        free(o);
        err_set(e, ERR_RETRY, "out of memory for a run's order");
        return NULL;
    }
    o->applied = o->unbroken = o->highest = applied;
    o->known_from = applied + 1;
    o->size = SLOTS_MIN;
    return o;
}

void order_free(struct order *o)
{
    if (!o) return;
    free(o->slots);
    free(o);
}

static struct slot *slot(const struct order *o, int64_t seq)
{
    return &o->slots[(uint64_t)seq & (uint64_t)(o->size - 1)];
}

static bool filled(const struct slot *s)
{
    return s->item || s->given_up;
}

static int grow(struct order *o, int64_t seq, struct err *e)
{
    int64_t size = o->size;
    while (seq - o->applied > size)
        size *= 2;
    if (size == o->size) return 0;
    struct slot *slots = calloc((size_t)size, sizeof *slots);
    if (!slots) return err_set(e, ERR_RETRY, "out of memory for %lld held jobs", (long long)size);
    for (int64_t s = o->applied + 1; s <= o->highest; s++)
        slots[(uint64_t)s & (uint64_t)(size - 1)] = *slot(o, s);
    free(o->slots);
    o->slots = slots;
    o->size = size;
    return 0;
}

/* ---------------------------------------------------------------- the past */

static uint8_t *past(struct order *o, int64_t seq)
{
    return &o->past[(uint64_t)seq % ORDER_PAST];
}

/* applied + 1 is over. */
static void pass(struct order *o)
{
    struct slot *s = slot(o, ++o->applied);
    *past(o, o->applied) = s->marks;
    *s = (struct slot){0};
    if (o->known_from <= o->applied - ORDER_PAST) o->known_from = o->applied - ORDER_PAST + 1;
}

int order_past(const struct order *o, uint8_t out[ORDER_PAST])
{
    int count = 0;
    for (int64_t seq = o->known_from; seq <= o->applied; seq++)
        out[count++] = o->past[(uint64_t)seq % ORDER_PAST];
    return count;
}

void order_recall(struct order *o, const uint8_t *bytes, int count)
{
    if (count > ORDER_PAST) {
        bytes += count - ORDER_PAST;
        count = ORDER_PAST;
    }
    o->known_from = o->applied + 1 - count;
    for (int i = 0; i < count; i++)
        *past(o, o->known_from + i) = bytes[i];
}

/* ---------------------------------------------------------------- in */

/* A job whose seq has an end already, or another job.  Remembers that it was here. */
static enum order_added refused(uint8_t *marks, uint8_t mark)
{
    uint8_t before = *marks;
    *marks |= mark;
    if (before & mark) return ORDER_COPY;
    return before ? ORDER_USED : ORDER_LATE;
}

static void advance(struct order *o)
{
    while (o->unbroken < o->highest && filled(slot(o, o->unbroken + 1)))
        o->unbroken++;
    while (o->applied < o->unbroken && slot(o, o->applied + 1)->given_up)
        pass(o);
}

int order_add(struct order *o, int64_t seq, int mark, void *item, struct err *e)
{
    assert(mark >= 0 && mark < ORDER_MARKS);
    uint8_t bit = (uint8_t)(1u << mark);
    if (seq < o->known_from) return ORDER_COPY;
    if (seq <= o->applied) return (int)refused(past(o, seq), bit);
    if (seq > o->unbroken + ORDER_WINDOW) return ORDER_FAR;
    if (grow(o, seq, e) < 0) return -1;
    struct slot *s = slot(o, seq);
    if (filled(s)) return (int)refused(&s->marks, bit);
    *s = (struct slot){.item = item, .marks = bit};
    o->held++;
    if (seq > o->highest) o->highest = seq;
    advance(o);
    return ORDER_HELD;
}

/* ---------------------------------------------------------------- what is there */

void *order_at(const struct order *o, int64_t seq)
{
    if (seq <= o->applied || seq > o->highest) return NULL;
    return slot(o, seq)->item;
}

int64_t order_applied(const struct order *o)
{
    return o->applied;
}

int64_t order_unbroken(const struct order *o)
{
    return o->unbroken;
}

int64_t order_held(const struct order *o)
{
    return o->held;
}

void order_each(const struct order *o, void (*each)(void *arg, void *item), void *arg)
{
    for (int64_t seq = o->applied + 1; seq <= o->highest; seq++) {
        void *item = order_at(o, seq);
        if (item) each(arg, item);
    }
}

/* ---------------------------------------------------------------- out */

void order_done(struct order *o, int64_t seq)
{
    assert(seq == o->applied + 1 && order_at(o, seq));
    o->held--;
    pass(o);
    advance(o);
}

int order_expire(struct order *o, void (*failed)(void *arg, void *item), void *arg)
{
    int count = 0;
    for (int64_t seq = o->unbroken + 1; seq <= o->highest; seq++) {
        struct slot *s = slot(o, seq);
        void *item = s->item;
        s->item = NULL;
        s->given_up = true;
        if (!item) continue;
        o->held--;
        count++;
        failed(arg, item);
    }
    advance(o);
    return count;
}
