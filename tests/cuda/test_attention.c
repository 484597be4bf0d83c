/* Attention on the device: against the CPU's, and that the bits of a row are its own.
 *
 * Most numbers given to both are in bf16 already, so that they disagree only where the device rounds
 * weights (P, dS) to bf16, which is wrong by 2^-8 of each at most, and in the last bits of fp32.  So
 * what each result may differ by is that part of the sum of its terms' magnitudes, and no more.
 *
 * Where activations are kept in bf16, results are bit for bit those of fp32, rounded. */
#include "cuda/rounded.h"

#define PACK_MAX   6
#define BLOCKS_MAX 10

/* ------------------------------------------------------------------ sequences and packs */

/* A sequence's blocks on a device; its numbers are those of the pack it is in. */
struct cache {
    float *blocks[BLOCKS_MAX];
    int count;
};

static void cache_init(struct cache *c, const struct side *s, const struct attn_shape *shape, int n,
                       float fill)
{
    size_t floats = s->ops->kv_floats(shape);
    float *x = zeros(floats);
    for (size_t i = 0; i < floats; i++)
        x[i] = fill;
    c->count = (n + OPS_KV_BLOCK - 1) / OPS_KV_BLOCK;
    assert_true(c->count <= BLOCKS_MAX);
    for (int b = 0; b < c->count; b++)
        c->blocks[b] = up(s, x, floats);
    free(x);
}

static void cache_clear(struct cache *c, const struct side *s)
{
    for (int b = 0; b < c->count; b++)
        drop(s, c->blocks[b]);
}

/* Numbers of a pack, and what was made of them, in the host's memory. */
struct pack {
    struct attn_shape s;
    enum ops_dtype type; /* of activations on the device */
    int rows;
    float *q, *k, *v, *dout, *o, *lse, *dq, *dk, *dv;
};

static size_t q_floats(const struct pack *p)
{
    return (size_t)(p->s.heads * p->s.head_dim);
}

static size_t k_floats(const struct pack *p)
{
    return (size_t)(p->s.kv_heads * p->s.head_dim);
}

static struct pack pack_in(enum ops_dtype type, const struct attn_shape *s, int rows, bool bf16)
{
    float *(*make)(size_t, uint64_t) = bf16 ? numbers_bf16 : numbers;
    struct pack p = {.s = *s, .rows = rows, .type = type};
    size_t q = (size_t)rows * q_floats(&p), k = (size_t)rows * k_floats(&p);
    p.q = make(q, 1), p.k = make(k, 2), p.v = make(k, 3), p.dout = make(q, 4);
    p.o = zeros(q), p.lse = zeros((size_t)(rows * s->heads));
    p.dq = zeros(q), p.dk = zeros(k), p.dv = zeros(k);
    return p;
}

static struct pack pack_of(const struct attn_shape *s, int rows, bool bf16)
{
    return pack_in(OPS_F32, s, rows, bf16);
}

static void pack_free(struct pack *p)
{
    float *all[] = {p->q, p->k, p->v, p->dout, p->o, p->lse, p->dq, p->dk, p->dv};
    for (int i = 0; i < 9; i++)
        free(all[i]);
}

/* A part of a sequence: rows of the pack from `row` on are its positions from `start` on. */
struct part {
    struct cache *cache;
    int row, rows, start;
};

/* Writes one part's keys and values. */
static void write_part(const struct side *s, const struct pack *p, const struct part *part)
{
    const struct kv_seg g = {.rows = part->rows, .start = part->start, .blocks = part->cache->blocks};
    size_t k = k_floats(p), at = (size_t)part->row, n = (size_t)part->rows;
    struct act dev_k = up_act(s, p->k + at * k, n * k, p->type);
    struct act dev_v = up_act(s, p->v + at * k, n * k, p->type);
    s->ops->kv_write(s->d, dev_k, dev_v, &g, 1, &p->s);
    drop_act(s, dev_k), drop_act(s, dev_v);
}

/* Writes and attends; the pack's rows lie on the device from first on, as many as parts need. */
static void attend(const struct side *s, struct pack *p, const struct part *parts, int count)
{
    struct kv_seg segs[PACK_MAX];
    int first = parts[0].row, rows = 0;
    for (int i = 0; i < count; i++) {
        segs[i] = (struct kv_seg){.row = parts[i].row - first,
                                  .rows = parts[i].rows,
                                  .start = parts[i].start,
                                  .blocks = parts[i].cache->blocks};
        rows = segs[i].row + segs[i].rows;
    }
    size_t q = q_floats(p), k = k_floats(p), at = (size_t)first, n = (size_t)rows;
    struct act dev_q = up_act(s, p->q + at * q, n * q, p->type);
    struct act dev_k = up_act(s, p->k + at * k, n * k, p->type);
    struct act dev_v = up_act(s, p->v + at * k, n * k, p->type), dev_o = room_act(s, n * q, p->type);
    float *dev_lse = room(s, n * (size_t)p->s.heads);
    s->ops->kv_write(s->d, dev_k, dev_v, segs, count, &p->s);
    s->ops->attention(s->d, dev_o, dev_lse, dev_q, segs, count, &p->s);
    bring_act(s, p->o + at * q, dev_o, n * q);
    bring(s, p->lse + at * (size_t)p->s.heads, dev_lse, n * (size_t)p->s.heads);
    drop_act(s, dev_q), drop_act(s, dev_k), drop_act(s, dev_v);
}

/* The way back from the pack's o and lse, whoever made them. */
static void attend_back(const struct side *s, struct pack *p, const struct part *parts, int count)
{
    struct kv_seg segs[PACK_MAX];
    for (int i = 0; i < count; i++)
        segs[i] = (struct kv_seg){
            .row = parts[i].row, .rows = parts[i].rows, .blocks = parts[i].cache->blocks};
    size_t q = (size_t)p->rows * q_floats(p), k = (size_t)p->rows * k_floats(p);
    struct act dev_q = up_act(s, p->q, q, p->type), dev_o = up_act(s, p->o, q, p->type);
    struct act dev_dout = up_act(s, p->dout, q, p->type), dq = up_act(s, p->dq, q, p->type);
    struct act dk = up_act(s, p->dk, k, p->type), dv = up_act(s, p->dv, k, p->type);
    float *dev_lse = up(s, p->lse, (size_t)(p->rows * p->s.heads));
    s->ops->attention_back(s->d, dq, dk, dv, dev_dout, dev_o, dev_lse, dev_q, segs, count, &p->s);
    bring_act(s, p->dq, dq, q), bring_act(s, p->dk, dk, k), bring_act(s, p->dv, dv, k);
    drop_act(s, dev_q), drop_act(s, dev_o), drop_act(s, dev_dout), drop(s, dev_lse);
}

/* ------------------------------------------------------------------ against the definition */

/* The magnitudes of what was summed for each result: what a rounded weight can move it by. */
struct bounds {
    double *o, *dq, *dk, *dv;
};

static double dot(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static void add_bound(double *to, double weight, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        to[i] += weight * fabs((double)x[i]);
}

/* One query and one key, rows of the pack; want: the definition's results. */
static void pair_bounds(struct bounds *b, const struct pack *want, int head, int row, int key)
{
    int dim = want->s.head_dim, kv_head = head / (want->s.heads / want->s.kv_heads);
    size_t q = (size_t)((row * want->s.heads + head) * dim);
    size_t k = (size_t)((key * want->s.kv_heads + kv_head) * dim);
    double scale = 1 / sqrt(dim), score = scale * dot(want->q + q, want->k + k, dim);
    double p = exp(score - (double)want->lse[row * want->s.heads + head]);
    double dp = dot(want->dout + q, want->v + k, dim), d = dot(want->dout + q, want->o + q, dim);
    /* dP - D is a difference of sums of up to 2 dim products below 1, each rounded in fp32 */
    double ds = p * (fabs(dp - d) * ROUNDING + 2 * dim * 0x1p-22);
    add_bound(b->o + q, p * ROUNDING, want->v + k, dim);
    add_bound(b->dv + k, p * ROUNDING, want->dout + q, dim);
    add_bound(b->dq + q, scale * ds, want->k + k, dim);
    add_bound(b->dk + k, scale * ds, want->q + q, dim);
}

static void compare(const float *got, const float *want, const double *bound, size_t n,
                    enum ops_dtype type, const char *what)
{
    for (size_t i = 0; i < n; i++)
        assert_near((double)got[i], (double)want[i], bound[i] + 4e-6 + kept(type, want[i]), what, i);
}

static double *doubles(size_t n)
{
    double *x = calloc(n, sizeof *x);
    assert_non_null(x);
    return x;
}

static void compare_packs(const struct pack *got, const struct pack *want, const struct part *parts,
                          int count)
{
    size_t q = (size_t)got->rows * q_floats(got), k = (size_t)got->rows * k_floats(got);
    struct bounds b = {doubles(q), doubles(q), doubles(k), doubles(k)};
    for (int i = 0; i < count; i++)
        for (int r = 0; r < parts[i].rows; r++)
            for (int j = 0; j <= r; j++)
                for (int h = 0; h < got->s.heads; h++)
                    pair_bounds(&b, want, h, parts[i].row + r, parts[i].row + j);
    for (size_t i = 0; i < (size_t)(got->rows * got->s.heads); i++)
        assert_near((double)got->lse[i], (double)want->lse[i], 1e-5, "lse", i);
    compare(got->o, want->o, b.o, q, got->type, "o");
    compare(got->dq, want->dq, b.dq, q, got->type, "dq");
    compare(got->dk, want->dk, b.dk, k, got->type, "dk");
    compare(got->dv, want->dv, b.dv, k, got->type, "dv");
    free(b.o), free(b.dq), free(b.dk), free(b.dv);
}

/* A pack of sequences of these lengths, one after another. */
static int lay(struct part *parts, struct cache *caches, const struct side *s,
               const struct attn_shape *shape, const int *lengths, float fill)
{
    int rows = 0;
    for (int i = 0; lengths[i]; rows += lengths[i++]) {
        cache_init(&caches[i], s, shape, lengths[i], fill);
        parts[i] = (struct part){&caches[i], rows, lengths[i], 0};
    }
    return rows;
}

static int count_of(const int *lengths)
{
    int n = 0;
    while (lengths[n])
        n++;
    return n;
}

static void both_ways(const struct ops *ops, struct pack *p, const struct pack *from,
                      const int *lengths)
{
    struct side s = side_open(ops);
    struct cache caches[PACK_MAX];
    struct part parts[PACK_MAX] = {0};
    int count = count_of(lengths);
    lay(parts, caches, &s, &p->s, lengths, 0);
    attend(&s, p, parts, count);
    struct pack back = *p;
    back.o = from->o, back.lse = from->lse; /* the same for both, so that D is the same */
    attend_back(&s, &back, parts, count);
    for (int i = 0; i < count; i++)
        cache_clear(&caches[i], &s);
    side_close(&s);
}

static void agrees_in(enum ops_dtype type, const struct attn_shape *shape, const int *lengths)
{
    struct part parts[PACK_MAX];
    int rows = 0, count = count_of(lengths);
    for (int i = 0; i < count; rows += lengths[i++])
        parts[i] = (struct part){NULL, rows, lengths[i], 0};
    struct pack want = pack_in(type, shape, rows, true), got = pack_in(type, shape, rows, true);
    struct pack given = pack_in(type, shape, rows, true);
    both_ways(ops_cpu(), &given, &given, lengths);
    for (size_t i = 0; type == OPS_BF16 && i < (size_t)rows * q_floats(&given); i++)
        given.o[i] = as_bf16(given.o[i]);
    both_ways(ops_cpu(), &want, &given, lengths);
    both_ways(twin(), &got, &given, lengths);
    compare_packs(&got, &want, parts, count);
    pack_free(&got), pack_free(&want), pack_free(&given);
}

static void agrees(const struct attn_shape *shape, const int *lengths)
{
    agrees_in(OPS_F32, shape, lengths);
}

static void both_ways_agree_with_the_definition(void **state)
{
    static const int all[] = {1, 63, 64, 65, 130, 0}, some[] = {65, 1, 2, 0}, two[] = {3, 66, 0};
    agrees(&(struct attn_shape){2, 1, 64}, all);
    agrees(&(struct attn_shape){1, 1, 80}, all);
    agrees(&(struct attn_shape){4, 2, 16}, some);
    agrees(&(struct attn_shape){6, 2, 10}, some);
    agrees(&(struct attn_shape){3, 3, 33}, some);
    agrees(&(struct attn_shape){5, 1, 128}, two);
    agrees(&(struct attn_shape){8, 1, 2}, two);
    agrees(&(struct attn_shape){2, 1, 256}, two);
    agrees(&(struct attn_shape){1, 1, 200}, two);
    agrees_in(OPS_BF16, &(struct attn_shape){2, 1, 64}, some);
    agrees_in(OPS_BF16, &(struct attn_shape){6, 2, 10}, some);
    agrees_in(OPS_BF16, &(struct attn_shape){2, 1, 256}, two);
}

static void assert_rows(const struct pack *a, const struct pack *b, int row, int rows)
{
    size_t q = q_floats(a), heads = (size_t)a->s.heads, at = (size_t)row, n = (size_t)rows;
    assert_same_bits(a->o + at * q, b->o + at * q, n * q);
    assert_same_bits(a->lse + at * heads, b->lse + at * heads, n * heads);
}

static void round_all(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = as_bf16(x[i]);
}

/* Widths whose rows can be copied 16 bytes at a time, and others. */
static void activations_in_bf16_are_those_of_fp32_rounded(void **state)
{
    static const struct attn_shape shapes[] = {{4, 2, 16}, {3, 3, 33}, {6, 2, 10}, {2, 1, 64},
                                               {1, 1, 80}, {1, 1, 128}, {1, 1, 200}};
    static const int lengths[] = {3, 66, 0};
    for (int i = 0; i < 7; i++) {
        struct pack want = pack_of(&shapes[i], 69, true), given = pack_of(&shapes[i], 69, true);
        struct pack got = pack_in(OPS_BF16, &shapes[i], 69, true);
        size_t q = 69 * q_floats(&want), k = 69 * k_floats(&want);
        round_all(memcpy(given.o, given.dout, q * sizeof *given.o), q); /* any will do */
        both_ways(twin(), &want, &given, lengths);
        both_ways(twin(), &got, &given, lengths);
        round_all(want.o, q), round_all(want.dq, q), round_all(want.dk, k), round_all(want.dv, k);
        assert_rows(&got, &want, 0, 69);
        assert_same_bits(got.dq, want.dq, q);
        assert_same_bits(got.dk, want.dk, k);
        assert_same_bits(got.dv, want.dv, k);
        pack_free(&want), pack_free(&got), pack_free(&given);
    }
}

/* ------------------------------------------------------------------ bits */

static enum ops_dtype in_turn(int i)
{
    return i % 2 ? OPS_BF16 : OPS_F32;
}

/* The sequence in pieces that begin at cuts[0] = 0, cuts[1] ..., the last ending with the pack. */
static void in_pieces(const struct side *s, struct pack *p, const int *cuts, int count)
{
    struct cache c;
    cache_init(&c, s, &p->s, p->rows, 0);
    for (int i = 0; i < count; i++) {
        int end = i + 1 < count ? cuts[i + 1] : p->rows;
        attend(s, p, &(struct part){&c, cuts[i], end - cuts[i], cuts[i]}, 1);
    }
    cache_clear(&c, s);
}

/* After the whole was written: rows by themselves, as decoding does. */
static void rows_alone(const struct side *s, struct pack *p, const int *rows, int count)
{
    struct cache c;
    cache_init(&c, s, &p->s, p->rows, 0);
    write_part(s, p, &(struct part){&c, 0, p->rows, 0});
    for (int i = 0; i < count; i++)
        attend(s, p, &(struct part){&c, rows[i], 1, rows[i]}, 1);
    cache_clear(&c, s);
}

static void decoding_has_the_bits_of_one_prefill(void **state)
{
    static const struct attn_shape shapes[] = {{1, 1, 16}, {8, 1, 64}, {7, 1, 80}, {2, 1, 128},
                                               {3, 1, 256}};
    static const int cuts[] = {0, 1, 3, 50, 64, 133, 134};
    static const int rows[] = {0, 1, 62, 63, 64, 65, 127, 128, 138};
    for (int i = 0; i < 5; i++) {
        struct side s = side_open(twin());
        struct pack whole = pack_in(in_turn(i), &shapes[i], 139, false);
        struct pack pieces = pack_in(in_turn(i), &shapes[i], 139, false);
        struct pack alone = pack_in(in_turn(i), &shapes[i], 139, false);
        in_pieces(&s, &whole, (int[]){0}, 1);
        in_pieces(&s, &pieces, cuts, 7);
        rows_alone(&s, &alone, rows, 9);
        assert_rows(&whole, &pieces, 0, 139);
        for (int r = 0; r < 9; r++)
            assert_rows(&whole, &alone, rows[r], 1);
        pack_free(&whole), pack_free(&pieces), pack_free(&alone);
        side_close(&s);
    }
}

/* More blocks of keys than a CUDA block of the decoding kernel has warps, and every remainder; from
 * 8 on, blocks of keys have CUDA blocks of their own.  And few rows of which only the last sees the
 * last block. */
static void a_long_sequence_decodes_with_the_same_bits(void **state)
{
    static const struct attn_shape shapes[] = {{2, 1, 16}, {1, 1, 128}};
    static const int rows[] = {191, 192, 255, 256, 257, 320, 384, 447, 448, 510, 511, 512, 513};
    for (int i = 0; i < 2; i++) {
        struct side s = side_open(twin());
        struct pack whole = pack_in(in_turn(i), &shapes[i], 514, false);
        struct pack alone = pack_in(in_turn(i), &shapes[i], 514, false);
        in_pieces(&s, &whole, (int[]){0}, 1);
        rows_alone(&s, &alone, rows, 13);
        for (int r = 0; r < 13; r++)
            assert_rows(&whole, &alone, rows[r], 1);
        struct cache c;
        cache_init(&c, &s, &shapes[i], 514, 0);
        write_part(&s, &alone, &(struct part){&c, 0, 510, 0});
        memset(alone.o, 0, 514 * q_floats(&alone) * sizeof(float));
        attend(&s, &alone, &(struct part){&c, 510, 3, 510}, 1);
        assert_rows(&whole, &alone, 510, 3);
        cache_clear(&c, &s);
        pack_free(&whole), pack_free(&alone);
        side_close(&s);
    }
}

/* In one call: sequences that begin, go on and decode; then each by itself. */
static void a_sequence_alone_has_the_bits_it_has_in_company(void **state)
{
    static const struct attn_shape shapes[] = {{4, 2, 16}, {2, 1, 80}};
    static const int lengths[] = {5, 65, 130, 1, 64, 0};
    for (int i = 0; i < 2; i++) {
        struct side s = side_open(twin());
        struct cache caches[PACK_MAX];
        struct part parts[PACK_MAX];
        int rows = lay(parts, caches, &s, &shapes[i], lengths, 0);
        struct pack all = pack_in(in_turn(i), &shapes[i], rows, false);
        struct pack one = pack_in(in_turn(i), &shapes[i], rows, false);
        attend(&s, &all, parts, 5);
        attend_back(&s, &all, parts, 5);
        for (int j = 4; j >= 0; j--) {
            attend(&s, &one, &parts[j], 1);
            attend_back(&s, &one, &parts[j], 1);
        }
        size_t q = (size_t)rows * q_floats(&all), k = (size_t)rows * k_floats(&all);
        assert_rows(&all, &one, 0, rows);
        assert_same_bits(all.dq, one.dq, q);
        assert_same_bits(all.dk, one.dk, k);
        assert_same_bits(all.dv, one.dv, k);
        parts[0].start = 3, parts[0].rows = 2; /* the first two go on where they have been before */
        parts[1].start = 60, parts[1].rows = 5;
        attend(&s, &all, parts, 2);
        for (int j = 0; j < 2; j++) {
            attend(&s, &one, &parts[j], 1);
            assert_rows(&all, &one, parts[j].row, parts[j].rows);
        }
        for (int j = 0; j < 5; j++)
            cache_clear(&caches[j], &s);
        pack_free(&all), pack_free(&one);
        side_close(&s);
    }
}

/* q, k, v and dO mean what they are when rounded to bf16. */
static void numbers_are_rounded_to_bf16_first(void **state)
{
    static const struct attn_shape shape = {2, 1, 33};
    static const int lengths[] = {66, 1, 0};
    struct pack plain = pack_of(&shape, 67, false), bf16 = pack_of(&shape, 67, true);
    both_ways(twin(), &plain, &plain, lengths);
    both_ways(twin(), &bf16, &bf16, lengths);
    size_t q = 67 * q_floats(&plain), k = 67 * k_floats(&plain);
    assert_rows(&plain, &bf16, 0, 67);
    assert_same_bits(plain.dq, bf16.dq, q);
    assert_same_bits(plain.dk, bf16.dk, k);
    assert_same_bits(plain.dv, bf16.dv, k);
    pack_free(&plain), pack_free(&bf16);
}

/* NaN behind the last position of a block, as one that is used again may have there. */
static void what_lies_behind_a_sequence_is_not_seen(void **state)
{
    static const struct attn_shape shape = {4, 2, 10};
    static const int lengths[] = {70, 3, 0};
    struct side s = side_open(twin());
    struct pack packs[2];
    for (int dirty = 0; dirty < 2; dirty++) {
        struct cache caches[PACK_MAX];
        struct part parts[PACK_MAX];
        lay(parts, caches, &s, &shape, lengths, dirty ? NAN : 0);
        packs[dirty] = pack_in(OPS_BF16, &shape, 73, false);
        attend(&s, &packs[dirty], parts, 2);
        attend_back(&s, &packs[dirty], parts, 2);
        attend(&s, &packs[dirty], &(struct part){&caches[0], 69, 1, 69}, 1);
        cache_clear(&caches[0], &s), cache_clear(&caches[1], &s);
    }
    assert_rows(&packs[0], &packs[1], 0, 73);
    assert_same_bits(packs[0].dq, packs[1].dq, 73 * q_floats(&packs[0]));
    assert_same_bits(packs[0].dk, packs[1].dk, 73 * k_floats(&packs[0]));
    assert_same_bits(packs[0].dv, packs[1].dv, 73 * k_floats(&packs[0]));
    pack_free(&packs[0]), pack_free(&packs[1]);
    side_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_ways_agree_with_the_definition),
        cmocka_unit_test(activations_in_bf16_are_those_of_fp32_rounded),
        cmocka_unit_test(decoding_has_the_bits_of_one_prefill),
        cmocka_unit_test(a_long_sequence_decodes_with_the_same_bits),
        cmocka_unit_test(a_sequence_alone_has_the_bits_it_has_in_company),
        cmocka_unit_test(numbers_are_rounded_to_bf16_first),
        cmocka_unit_test(what_lies_behind_a_sequence_is_not_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
