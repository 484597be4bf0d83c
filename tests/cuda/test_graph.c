/* Recorded sequences: what is replayed, compared or done anew has the bits of the same ops asked for one
 * by one; and it is replayed, which only ops->recorded() can tell. */
#include "cuda/rounded.h"

enum {
    HIDDEN = 48,
    HEADS = 4,
    KV_HEADS = 2,
    WIDTH = 16, /* of a head */
    WIDE = 80,  /* of the MLP */
    VOCAB = 50,
    RANK = 8,
    LAYERS = 2,
    ROWS = 6,    /* sequences, each with blocks of its own */
    BLOCKS = 12, /* of one */
    ADAPTERS = 3,
    CONTEXT = BLOCKS * OPS_KV_BLOCK,
    Q = HEADS * WIDTH,
    KV = KV_HEADS * WIDTH
};

static const struct attn_shape shape = {HEADS, KV_HEADS, WIDTH};

/* Sites of a layer. */
enum { SQ, SK, SV, SO, SG, SU, SD, SITES };
static const int ins[SITES] = {HIDDEN, HIDDEN, HIDDEN, Q, HIDDEN, HIDDEN, WIDE};
static const int outs[SITES] = {Q, KV, KV, HIDDEN, WIDE, WIDE, HIDDEN};

/* A small model with adapters on a device, and room for a pass. */
struct model {
    struct side s;
    float *table, *gain, *cosine, *sine;
    struct packed *w[LAYERS][SITES];
    float *a[ADAPTERS][SITES], *b[ADAPTERS][SITES]; /* the layers share them */
    float *memory, *blocks[ROWS][BLOCKS];
    float *x, *lse, *mid, *u[3];
    struct act norm, q, k, v, o, gate, up, act, final; /* of the type that the device prefers */
};

static struct packed *pack(const struct side *s, int out, int in, uint64_t seed)
{
    struct err e = {0};
    float *w = numbers((size_t)(out * in), seed);
    struct packed *p =
        s->ops->pack(s->d, &(struct ops_matrix){w, OPS_F32, out, in}, OPS_BF16, false, &e);
    assert_non_null(p);
    free(w);
    return p;
}

static float *made(const struct side *s, size_t n, uint64_t seed)
{
    float *x = numbers(n, seed), *p = up(s, x, n);
    free(x);
    return p;
}

/* Every sequence has keys and values at all positions, as if it had come that far. */
static void fill_blocks(struct model *m)
{
    size_t floats = m->s.ops->kv_floats(&shape);
    m->memory = room(&m->s, floats * LAYERS * ROWS * BLOCKS);
    float *k = made(&m->s, (size_t)CONTEXT * KV, 50), *v = made(&m->s, (size_t)CONTEXT * KV, 51);
    for (int i = 0; i < ROWS; i++) {
        for (int b = 0; b < BLOCKS; b++)
            m->blocks[i][b] = m->memory + floats * LAYERS * (size_t)(i * BLOCKS + b);
        for (size_t l = 0; l < LAYERS; l++) {
            struct kv_seg all = {.rows = CONTEXT, .blocks = m->blocks[i], .layer_offset = l * floats};
            m->s.ops->kv_write(m->s.d, act_f32(k), act_f32(v), &all, 1, &shape);
        }
    }
    drop(&m->s, k), drop(&m->s, v);
}

static struct act narrow(const struct side *s, size_t width)
{
    return room_act(s, ROWS * width, s->ops->act_dtype(OPS_BF16));
}

static void model_open(struct model *m, const struct ops *ops)
{
    *m = (struct model){.s = side_open(ops)};
    const struct side *s = &m->s;
    m->table = made(s, VOCAB * HIDDEN, 1), m->gain = made(s, HIDDEN, 2);
    m->cosine = made(s, CONTEXT * WIDTH / 2, 3), m->sine = made(s, CONTEXT * WIDTH / 2, 4);
    for (int site = 0; site < SITES; site++) {
        uint64_t seed = 100 + 10 * (uint64_t)site;
        for (int l = 0; l < LAYERS; l++)
            m->w[l][site] = pack(s, outs[site], ins[site], seed + (uint64_t)l);
        for (int i = 0; i < ADAPTERS; i++) {
            m->a[i][site] = made(s, (size_t)(RANK * ins[site]), seed + 3 + (uint64_t)i);
            m->b[i][site] = made(s, (size_t)(RANK * outs[site]), seed + 6 + (uint64_t)i);
        }
    }
    fill_blocks(m);
    m->x = room(s, ROWS * HIDDEN), m->mid = room(s, ROWS * HIDDEN), m->lse = room(s, ROWS * HEADS);
    m->norm = narrow(s, HIDDEN), m->final = narrow(s, HIDDEN), m->q = narrow(s, Q), m->o = narrow(s, Q);
    m->k = narrow(s, KV), m->v = narrow(s, KV);
    m->gate = narrow(s, WIDE), m->up = narrow(s, WIDE), m->act = narrow(s, WIDE);
    for (int i = 0; i < 3; i++)
        m->u[i] = room(s, ROWS * RANK);
}

static void model_close(struct model *m)
{
    float *all[] = {m->table, m->gain, m->cosine, m->sine, m->memory, m->x,
                    m->mid,   m->lse,  m->u[0],   m->u[1], m->u[2]};
    struct act acts[] = {m->norm, m->q,  m->k,   m->v,    m->o,
                         m->gate, m->up, m->act, m->final};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        drop(&m->s, all[i]);
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
        drop_act(&m->s, acts[i]);
    for (int site = 0; site < SITES; site++) {
        for (int l = 0; l < LAYERS; l++)
            m->s.ops->packed_free(m->s.d, m->w[l][site]);
        for (int i = 0; i < ADAPTERS; i++)
            drop(&m->s, m->a[i][site]), drop(&m->s, m->b[i][site]);
    }
    side_close(&m->s);
}

/* ------------------------------------------------------------------ a step of decoding */

/* What is asked of a step. */
struct step {
    int rows;              /* of sequences 0, 1, ... */
    int position[ROWS];
    int adapters;          /* groups of rows with one: the first rows, one each */
    int first;             /* the first of these adapters */
    int layers;            /* 0: all */
    int odd_layer;         /* 1, 2: that layer squares its MLP's input first; 0: none does */
    bool waits;            /* downloads something half way */
    float *gone;           /* copied to `act` by the way, where it is there */
};

/* Rows of a sequence's own at this step. */
struct pass {
    struct kv_seg segs[ROWS];
    int32_t ids[ROWS];
    struct lora_group groups[3][ROWS];
};

static void project(struct model *m, struct pass *p, const struct step *t, int layer, int site,
                    int count, struct act x, const struct act *y, bool add)
{
    struct projection list[3];
    for (int i = 0; i < count; i++, site++) {
        for (int g = 0; g < t->adapters; g++) {
            int which = (t->first + g) % ADAPTERS;
            p->groups[i][g] = (struct lora_group){.row = g,
                                                  .rows = 1,
                                                  .rank = RANK,
                                                  .scale = 0.5f + (float)which,
                                                  .a = m->a[which][site],
                                                  .b = m->b[which][site]};
        }
        list[i] = (struct projection){.w = m->w[layer][site],
                                      .in = ins[site],
                                      .out = outs[site],
                                      .y = y[i],
                                      .add = add,
                                      .u = m->u[i],
                                      .ldu = RANK,
                                      .groups = p->groups[i],
                                      .count = t->adapters};
    }
    m->s.ops->project(m->s.d, x, t->rows, list, count);
    memset(p->groups, 0xee, sizeof p->groups); /* the caller's again */
}

static void attend(struct model *m, struct pass *p, const struct step *t, int layer)
{
    const struct ops *ops = m->s.ops;
    struct device *d = m->s.d;
    const struct act qkv[] = {m->q, m->k, m->v};
    project(m, p, t, layer, SQ, 3, m->norm, qkv, false);
    ops->rms_norm(d, m->q, m->q, m->gain, t->rows * HEADS, WIDTH, 1e-6f);
    ops->rope(d, m->q, m->cosine, m->sine, p->segs, t->rows, HEADS, WIDTH);
    ops->rope(d, m->k, m->cosine, m->sine, p->segs, t->rows, KV_HEADS, WIDTH);
    for (int i = 0; i < t->rows; i++)
        p->segs[i].layer_offset = (size_t)layer * ops->kv_floats(&shape);
    ops->kv_write(d, m->k, m->v, p->segs, t->rows, &shape);
    ops->attention(d, m->o, m->lse, m->q, p->segs, t->rows, &shape);
}

static void layer(struct model *m, struct pass *p, const struct step *t, int l)
{
    const struct ops *ops = m->s.ops;
    struct device *d = m->s.d;
    size_t bytes = (size_t)(t->rows * HIDDEN) * sizeof(float);
    float part[HIDDEN];
    ops->rms_norm(d, m->norm, act_f32(m->x), m->gain, t->rows, HIDDEN, 1e-6f);
    attend(m, p, t, l);
    if (t->waits) ops->download(d, part, m->norm.p, HIDDEN * ops_size(m->norm.dtype));
    ops->copy(d, m->mid, m->x, bytes);
    const struct act mid = act_f32(m->mid), x = act_f32(m->x);
    project(m, p, t, l, SO, 1, m->o, &mid, true);
    ops->rms_norm(d, m->norm, mid, m->gain, t->rows, HIDDEN, 1e-6f);
    if (t->odd_layer == l + 1)
        ops->swiglu(d, m->norm, m->norm, m->norm, (size_t)(t->rows * HIDDEN));
    const struct act gate_up[] = {m->gate, m->up};
    project(m, p, t, l, SG, 2, m->norm, gate_up, false);
    ops->swiglu(d, m->act, m->gate, m->up, (size_t)(t->rows * WIDE));
    ops->zero(d, m->x, bytes);
    project(m, p, t, l, SD, 1, m->act, &x, true);
}

static void forward(struct model *m, const struct step *t)
{
    struct pass p;
    for (int i = 0; i < t->rows; i++) {
        p.segs[i] = (struct kv_seg){
            .row = i, .rows = 1, .start = t->position[i], .blocks = m->blocks[i]};
        p.ids[i] = (t->position[i] * 7 + i) % VOCAB;
    }
    m->s.ops->gather(m->s.d, act_f32(m->x), act_f32(m->table), p.ids, t->rows, HIDDEN);
    if (t->gone) m->s.ops->copy(m->s.d, m->act.p, t->gone, WIDE * sizeof *t->gone);
    memset(p.ids, 0xee, sizeof p.ids);
    for (int l = 0; l < (t->layers ? t->layers : LAYERS); l++)
        layer(m, &p, t, l);
    m->s.ops->rms_norm(m->s.d, m->final, act_f32(m->x), m->gain, t->rows, HIDDEN, 1e-6f);
    memset(&p, 0xee, sizeof p);
}

/* What a step leaves: its output, and what attention left of the last layer. */
struct left {
    float final[ROWS * HIDDEN], o[ROWS * Q], lse[ROWS * HEADS];
};

static void take(struct model *m, const struct step *t, struct left *to)
{
    const struct ops *ops = m->s.ops;
    size_t rows = (size_t)t->rows;
    memset(to, 0, sizeof *to);
    take_act(&m->s, to->final, m->final, rows * HIDDEN);
    take_act(&m->s, to->o, m->o, rows * Q);
    ops->download(m->s.d, to->lse, m->lse, rows * HEADS * sizeof(float));
    ops->zero(m->s.d, m->final.p, ROWS * HIDDEN * ops_size(m->final.dtype)); /* the next one has to write */
    ops->zero(m->s.d, m->o.p, ROWS * Q * ops_size(m->o.dtype));
    ops->zero(m->s.d, m->lse, ROWS * HEADS * sizeof(float));
}

/* The step op by op, and recorded; both write the same keys and values. */
static void same_both_ways(struct model *m, uint64_t key, const struct step *t)
{
    struct left plain, recorded;
    forward(m, t);
    take(m, t, &plain);
    m->s.ops->record_begin(m->s.d, key);
    forward(m, t);
    m->s.ops->record_end(m->s.d);
    take(m, t, &recorded);
    for (int i = 0; i < t->rows * HIDDEN; i++)
        assert_true(isfinite(plain.final[i]));
    assert_memory_equal(&plain, &recorded, sizeof plain);
}

/* On the device; the CPU, which records nothing, has to say so. */
static void assert_counts(const struct model *m, int plain, int captured, int replayed)
{
    struct ops_recorded r = m->s.ops->recorded(m->s.d);
    if (m->s.ops == ops_cpu()) plain = captured = replayed = 0;
    if (r.plain != plain || r.captured != captured || r.replayed != replayed)
        fail_msg("%d plain, %d captured, %d replayed; expected %d, %d, %d", (int)r.plain,
                 (int)r.captured, (int)r.replayed, plain, captured, replayed);
}

static const struct ops *both[2];

static void on_both(void (*test)(struct model *m))
{
    both[0] = ops_cpu(), both[1] = twin();
    for (int i = 0; i < 2; i++) {
        struct model m;
        model_open(&m, both[i]);
        test(&m);
        model_close(&m);
    }
}

/* The step `after` steps after one of so many rows at these positions. */
static struct step step_at(int rows, const int *positions, int after)
{
    struct step t = {.rows = rows};
    for (int i = 0; i < rows; i++)
        t.position[i] = positions[i] + after;
    return t;
}

/* ------------------------------------------------------------------ the tests */

static const int some[ROWS] = {3, 17, 58, 130, 200, 64};

/* Positions pass the end of a block, and adapters change places. */
static void grow(struct model *m)
{
    for (int i = 0; i < 12; i++) {
        struct step t = step_at(3, some, i);
        t.adapters = 2, t.first = i;
        same_both_ways(m, 7, &t);
    }
    assert_counts(m, 1, 1, 11);
    assert_int_equal(m->s.ops->recorded(m->s.d).kept, m->s.ops == ops_cpu() ? 0 : 1);
}

/* The host is ahead of the device by several steps, and writes the next one's descriptors. */
static void hurry(struct model *m)
{
    enum { STEPS = 6, FLOATS = 4 * HIDDEN };
    struct act kept = room_act(&m->s, STEPS * FLOATS, m->final.dtype);
    float *got;
    struct left want;
    for (int i = 0; i < STEPS; i++) {
        struct step t = step_at(4, some, i);
        m->s.ops->record_begin(m->s.d, 1);
        forward(m, &t);
        m->s.ops->record_end(m->s.d);
        m->s.ops->copy(m->s.d, act_at(kept, i * FLOATS).p, m->final.p, FLOATS * ops_size(kept.dtype));
    }
    assert_counts(m, 1, 1, STEPS - 1);
    got = down_act(&m->s, kept, STEPS * FLOATS);
    for (int i = 0; i < STEPS; i++) {
        struct step t = step_at(4, some, i);
        forward(m, &t);
        take(m, &t, &want);
        assert_same_bits(got + i * FLOATS, want.final, FLOATS);
    }
    free(got);
}

static void steps_need_not_wait_for_one_another(void **state)
{
    on_both(hurry);
}

static void steps_that_differ_in_positions_and_adapters_alone_are_replayed(void **state)
{
    on_both(grow);
}

static void alternate(struct model *m)
{
    for (int i = 0; i < 6; i++)
        for (int rows = 1; rows <= 5; rows += 2) {
            struct step t = step_at(rows, some + 1, i);
            t.adapters = rows / 2;
            same_both_ways(m, (uint64_t)rows, &t);
        }
    assert_counts(m, 3, 3, 15);
}

static void keys_take_turns(void **state)
{
    on_both(alternate);
}

/* Where attention begins to split keys over blocks, and where it splits over more of them. */
static void lengthen(struct model *m)
{
    const int positions[] = {505, 570, 637};
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < 14; i++) {
            struct step t = step_at(1, positions + s, i);
            same_both_ways(m, 1, &t);
        }
    assert_counts(m, 3, 3, 39); /* for 8 blocks, for 9 and 10, for 11 and 12 */
}

static void grids_that_grow_with_the_sequence_are_captured_anew(void **state)
{
    on_both(lengthen);
}

/* The same key, but another sequence of ops: one more, one less at the end, other shapes. */
static void differ(struct model *m)
{
    for (int i = 0; i < 12; i++) {
        struct step t = step_at(4, some, i);
        if (i >= 3) t.odd_layer = 2;
        if (i >= 6) t.layers = 1;
        if (i >= 9) t.rows = 2;
        same_both_ways(m, 3, &t);
    }
    assert_counts(m, 4, 4, 8);
    for (int i = 0; i < 8; i++) { /* never twice the same: nothing is captured */
        struct step t = step_at(1 + i % 2, some, i);
        same_both_ways(m, 3, &t);
    }
    assert_counts(m, 12, 4, 8);
}

static void a_sequence_that_differs_half_way_is_done_and_kept(void **state)
{
    on_both(differ);
}

/* One ends where the other goes on. */
static void end_early(struct model *m)
{
    const struct ops *ops = m->s.ops;
    float got[2], want[2] = {0};
    for (int i = 0; i < 9; i++) {
        float *to = m->act.p;
        ops->upload(m->s.d, to, (const float[]){1, 1}, 2 * sizeof *to);
        ops->record_begin(m->s.d, 1);
        ops->zero(m->s.d, to, sizeof *to);
        want[1] = i >= 3 && i < 6 ? 1 : 0;
        if (want[1] == 0) ops->zero(m->s.d, to + 1, sizeof *to);
        ops->record_end(m->s.d);
        ops->download(m->s.d, got, to, sizeof got);
        assert_same_bits(got, want, 2);
    }
    assert_counts(m, 3, 3, 6);
    for (int i = 0; i < 3; i++) { /* of nothing at all */
        ops->record_begin(m->s.d, 2);
        ops->record_end(m->s.d);
    }
}

static void a_sequence_may_end_early_or_be_empty(void **state)
{
    on_both(end_early);
}

/* Seventeen keys in turn are one too many, sixteen are not. */
static void crowd(struct model *m)
{
    for (int keys = 17; keys >= 16; keys--)
        for (int i = 0; i < 3 * keys; i++) {
            struct step t = step_at(1 + i % keys % 3, some, i / keys);
            same_both_ways(m, (uint64_t)(100 * keys + i % keys), &t);
        }
    assert_counts(m, 3 * 17 + 16, 16, 32);
    assert_int_equal(m->s.ops->recorded(m->s.d).kept, m->s.ops == ops_cpu() ? 0 : 16);
}

static void more_keys_than_are_kept_are_done_plainly(void **state)
{
    on_both(crowd);
}

/* What ends a recording: the host wants to see something, or memory comes and goes. */
static void interrupt(struct model *m)
{
    for (int i = 0; i < 4; i++) {
        struct step t = step_at(3, some, i);
        t.waits = i % 2 == 1;
        same_both_ways(m, 1, &t);
    }
    assert_counts(m, 4, 0, 0);
    for (int i = 0; i < 6; i++) {
        struct step t = step_at(2, some, i);
        t.gone = i < 3 ? NULL : made(&m->s, WIDE, (uint64_t)i);
        same_both_ways(m, 2, &t);
        if (t.gone) drop(&m->s, t.gone);
    }
    struct ops_recorded r = m->s.ops->recorded(m->s.d);
    assert_true(m->s.ops == ops_cpu() || r.replayed >= 2);
}

static void memory_that_is_gone_is_not_named_again(void **state)
{
    on_both(interrupt);
}

/* What was asked first has not been done yet when its memory goes. */
static void release_between(struct model *m)
{
    const struct ops *ops = m->s.ops;
    float got[WIDE], *there = room(&m->s, WIDE);
    for (int i = 0; i < 3; i++) {
        float *x = numbers(WIDE, (uint64_t)i);
        ops->upload(m->s.d, there, x, WIDE * sizeof *there);
        ops->record_begin(m->s.d, 1);
        ops->copy(m->s.d, m->act.p, there, WIDE * sizeof *there);
        if (i == 2) drop(&m->s, there);
        ops->copy(m->s.d, m->gate.p, m->act.p, WIDE * sizeof *there);
        ops->record_end(m->s.d);
        ops->download(m->s.d, got, m->gate.p, sizeof got);
        assert_same_bits(got, x, WIDE);
        free(x);
    }
    assert_counts(m, 2, 1, 1);
}

/* Scratch memory that the products before are still to use has to grow for one more. */
static void grow_scratch(struct model *m)
{
    enum { MANY = 64, FLOATS = ROWS * MANY * HIDDEN };
    const struct ops *ops = m->s.ops;
    float *x = made(&m->s, ROWS * MANY * WIDE, 1), *y = room(&m->s, FLOATS);
    float *got = zeros(FLOATS), *want = zeros(FLOATS);
    for (int count = 1; count <= ROWS; count++) {
        ops->zero(m->s.d, y, FLOATS * sizeof *y);
        ops->record_begin(m->s.d, 1);
        for (int i = 0; i < count; i++) /* rows i, i + 1, ... 64 (i + 1) - 1 */
            ops->gemm(m->s.d, act_f32(y + i * HIDDEN), act_f32(x + i * WIDE), MANY * (i + 1) - i,
                      m->w[0][SD], false);
        ops->record_end(m->s.d);
        ops->download(m->s.d, got, y, FLOATS * sizeof *y);
        ops->gemm(m->s.d, act_f32(y), act_f32(x), MANY * count, m->w[0][SD], false);
        ops->download(m->s.d, want, y, FLOATS * sizeof *y);
        assert_same_bits(got, want, (size_t)(MANY * count * HIDDEN));
    }
    free(got), free(want);
    drop(&m->s, x), drop(&m->s, y);
}

static void memory_goes_only_when_what_names_it_is_done(void **state)
{
    on_both(release_between);
    on_both(grow_scratch);
}

/* ------------------------------------------------------------------ descriptors */

enum { LONG = 3000 * 1000 };

struct asked {
    int32_t *ids;
    float *logits, *there, *x;
};

/* Logprobs of `count` ids of one row, the ids being descriptors. */
static void ask(const struct side *s, const struct asked *a, int count, int turn, uint64_t key)
{
    const int first[] = {0, count};
    float lse, *got = zeros((size_t)count);
    for (int i = 0; i < count; i++)
        a->ids[i] = (i * 7 + turn) % VOCAB;
    s->ops->record_begin(s->d, key);
    s->ops->logprob(s->d, a->there, a->there + LONG, a->logits, first, a->ids, 1, VOCAB);
    memset(a->ids, 0xff, (size_t)count * sizeof *a->ids);
    s->ops->record_end(s->d);
    s->ops->download(s->d, got, a->there, (size_t)count * sizeof *got);
    s->ops->download(s->d, &lse, a->there + LONG, sizeof lse);
    for (int i = 0; i < count; i++)
        assert_near((double)got[i], (double)(a->x[(i * 7 + turn) % VOCAB] - lse), 1e-6, "logprob",
                    (size_t)i);
    free(got);
}

/* More than a recording begins with, more than any may have, and the ring beside them. */
static void descriptors_of_recordings_find_room(void **state)
{
    struct side s = side_open(twin());
    float *x = numbers(VOCAB, 1);
    struct asked a = {malloc(LONG * sizeof *a.ids), up(&s, x, VOCAB), room(&s, LONG + 1), x};
    for (int i = 0; i < 6; i++)
        ask(&s, &a, 1000 + 10 * i, i, 1); /* in the room that the first has to grow */
    struct ops_recorded r = s.ops->recorded(s.d);
    assert_true(r.plain == 1 && r.replayed == 5);
    for (int i = 0; i < 3; i++)
        ask(&s, &a, 1500 + i, i, 1); /* not in it */
    r = s.ops->recorded(s.d);
    assert_true(r.plain == 2 && r.replayed == 7 && r.captured == 2);
    for (int i = 0; i < 6; i++)
        ask(&s, &a, 1000 * 1000, i, 2); /* 4 MB: room is made, twice as much each time */
    r = s.ops->recorded(s.d);
    assert_true(r.captured == 3 && r.replayed > 7);
    for (int i = 0; i < 8; i++)
        ask(&s, &a, LONG, i, 3); /* 12 MB are too many */
    assert_true(s.ops->recorded(s.d).captured == 3);
    for (int i = 0; i < 8; i++) /* the ring goes round between replays */
        ask(&s, &a, 300 * 1000 + i, i, 4 + (uint64_t)(i % 2) * 100 * (uint64_t)i);
    drop(&s, a.logits), drop(&s, a.there);
    free(a.ids), free(x);
    side_close(&s);
}

/* ------------------------------------------------------------------ failures */

#ifdef CUDA_EMULATED
void emulate_fail_launch(int nth, int error); /* emulate.h is C++ */
void emulate_fail_graph(int error);

static void zeros_then_scaled(const struct side *s, float *x)
{
    s->ops->record_begin(s->d, 1);
    s->ops->zero(s->d, x, 100 * sizeof *x);
    s->ops->swiglu(s->d, act_f32(x), act_f32(x), act_f32(x), 100);
    s->ops->record_end(s->d);
}

/* after: sequences that work; then one cannot be made a graph, or what it launches fails. */
static void lost_after(int after, void (*arrange)(void), const char *what)
{
    struct side s = side_open(twin());
    struct err e = {0};
    float *x = room(&s, 100);
    for (int i = 0; i < after; i++)
        zeros_then_scaled(&s, x);
    assert_int_equal(s.ops->sync(s.d, &e), 0);
    arrange();
    zeros_then_scaled(&s, x);
    zeros_then_scaled(&s, x); /* nothing */
    assert_int_equal(s.ops->sync(s.d, &e), -1);
    assert_int_equal(e.kind, ERR_LOST);
    if (!strstr(e.text, what)) fail_msg("\"%s\" does not say \"%s\"", e.text, what);
    drop(&s, x);
    s.ops->close(s.d);
}

static void no_graph(void)
{
    emulate_fail_graph(2); /* out of memory */
}

static void no_launch(void)
{
    emulate_fail_launch(1, 700);
}

static void what_fails_is_kept_whatever_way_it_was_asked(void **state)
{
    lost_after(0, no_launch, "swiglu_kernel: an illegal");
    lost_after(1, no_graph, "graph: out of memory");
    lost_after(3, no_launch, "graph: an illegal");
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_that_differ_in_positions_and_adapters_alone_are_replayed),
        cmocka_unit_test(steps_need_not_wait_for_one_another),
        cmocka_unit_test(keys_take_turns),
        cmocka_unit_test(grids_that_grow_with_the_sequence_are_captured_anew),
        cmocka_unit_test(a_sequence_that_differs_half_way_is_done_and_kept),
        cmocka_unit_test(a_sequence_may_end_early_or_be_empty),
        cmocka_unit_test(more_keys_than_are_kept_are_done_plainly),
        cmocka_unit_test(memory_that_is_gone_is_not_named_again),
        cmocka_unit_test(memory_goes_only_when_what_names_it_is_done),
        cmocka_unit_test(descriptors_of_recordings_find_room),
#ifdef CUDA_EMULATED
        cmocka_unit_test(what_fails_is_kept_whatever_way_it_was_asked),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
