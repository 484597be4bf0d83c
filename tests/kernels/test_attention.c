/* Causal attention: against a plain softmax in double, prefill against decode, the way back. */
#include "kernels/check.h"

/* heads, kv_heads, head_dim: alone, grouped, dims that fill no vector, a wide one. */
static const struct attn_shape shapes[] = {
    {1, 1, 2}, {4, 2, 16}, {6, 2, 10}, {3, 3, 33}, {8, 1, 64}};
#define SHAPES (int)(sizeof shapes / sizeof *shapes)

/* One sequence with its own blocks. */
struct seq {
    const struct ops *ops;
    struct device *d;
    struct attn_shape s;
    int n;
    float *q, *k, *v, *o, *lse, *memory, *blocks[8];
};

static size_t q_floats(const struct seq *t)
{
    return (size_t)(t->s.heads * t->s.head_dim);
}

static size_t k_floats(const struct seq *t)
{
    return (size_t)(t->s.kv_heads * t->s.head_dim);
}

static void seq_init(struct seq *t, const struct attn_shape *s, int n, int threads)
{
    *t = (struct seq){.ops = ops_cpu(), .s = *s, .n = n};
    t->d = device_with(t->ops, threads);
    size_t rows = (size_t)n;
    t->q = numbers(rows * q_floats(t), 1);
    t->k = numbers(rows * k_floats(t), 2);
    t->v = numbers(rows * k_floats(t), 3);
    t->o = zeros(rows * q_floats(t));
    t->lse = zeros(rows * (size_t)s->heads);
    size_t block = t->ops->kv_floats(s);
    t->memory = zeros(8 * block);
    for (int b = 0; b < 8; b++)
        t->blocks[b] = t->memory + (size_t)b * block;
}

static void seq_clear(struct seq *t)
{
    free(t->q), free(t->k), free(t->v), free(t->o), free(t->lse), free(t->memory);
    t->ops->close(t->d);
}

/* Rows from .. from + rows - 1 as one segment, written and attended. */
static void run(struct seq *t, int from, int rows)
{
    struct kv_seg g = {.row = 0, .rows = rows, .start = from, .blocks = t->blocks};
    t->ops->kv_write(t->d, act_f32(t->k + (size_t)from * k_floats(t)),
                     act_f32(t->v + (size_t)from * k_floats(t)), &g, 1, &t->s);
    t->ops->attention(t->d, act_f32(t->o + (size_t)from * q_floats(t)), t->lse + from * t->s.heads,
                      act_f32(t->q + (size_t)from * q_floats(t)), &g, 1, &t->s);
}

static double score(const struct seq *t, int row, int head, int key)
{
    int dim = t->s.head_dim, kv = head / (t->s.heads / t->s.kv_heads);
    double sum = 0;
    for (int i = 0; i < dim; i++)
        sum += (double)t->q[(row * t->s.heads + head) * dim + i] *
               (double)t->k[(key * t->s.kv_heads + kv) * dim + i];
    return sum / sqrt(dim);
}

static void check_row(const struct seq *t, int row, int head)
{
    int dim = t->s.head_dim, kv = head / (t->s.heads / t->s.kv_heads);
    double all = 0;
    for (int j = 0; j <= row; j++)
        all += exp(score(t, row, head, j));
    assert_near((double)t->lse[row * t->s.heads + head], log(all), 5e-6, "lse", (size_t)row);
    for (int i = 0; i < dim; i++) {
        double sum = 0;
        for (int j = 0; j <= row; j++)
            sum += exp(score(t, row, head, j)) / all *
                   (double)t->v[(j * t->s.kv_heads + kv) * dim + i];
        assert_near((double)t->o[(row * t->s.heads + head) * dim + i], sum, 5e-6, "o", (size_t)row);
    }
}

static void each_row_is_a_softmax_over_the_keys_up_to_itself(void **state)
{
    for (int s = 0; s < SHAPES; s++) {
        struct seq t;
        seq_init(&t, &shapes[s], 150, 2);
        run(&t, 0, t.n);
        for (int row = 0; row < t.n; row += 7)
            for (int h = 0; h < t.s.heads; h++)
                check_row(&t, row, h);
        seq_clear(&t);
    }
}

static void decoding_row_by_row_has_the_bits_of_one_prefill(void **state)
{
    for (int s = 0; s < SHAPES; s++) {
        struct seq whole, single, pieces;
        seq_init(&whole, &shapes[s], 140, 2);
        seq_init(&single, &shapes[s], 140, 1);
        seq_init(&pieces, &shapes[s], 140, 2);
        run(&whole, 0, 140);
        for (int i = 0; i < 140; i++)
            run(&single, i, 1);
        run(&pieces, 0, 50);
        run(&pieces, 50, 83);
        run(&pieces, 133, 7);
        size_t n = 140 * q_floats(&whole);
        assert_same_bits(whole.o, single.o, n);
        assert_same_bits(whole.o, pieces.o, n);
        assert_same_bits(whole.lse, single.lse, 140 * (size_t)whole.s.heads);
        seq_clear(&whole), seq_clear(&single), seq_clear(&pieces);
    }
}

/* Rubbish behind the last position of a block, as a reused block has it, is not seen. */
static void what_lies_behind_a_sequence_is_not_seen(void **state)
{
    struct seq clean, dirty;
    seq_init(&clean, &shapes[1], 70, 1);
    seq_init(&dirty, &shapes[1], 70, 1);
    for (size_t i = 0; i < 8 * dirty.ops->kv_floats(&dirty.s); i++)
        dirty.memory[i] = NAN;
    run(&clean, 0, 70);
    run(&dirty, 0, 69);
    run(&dirty, 69, 1);
    assert_same_bits(clean.o, dirty.o, 70 * q_floats(&clean));
    seq_clear(&clean), seq_clear(&dirty);
}

/* ------------------------------------------------------------------ packs and the way back */

/* Three sequences in one pack: lengths within a block, of exactly one, and of more. */
#define PACK 3
static const int lengths[PACK] = {5, 64, 71};
#define PACK_ROWS (5 + 64 + 71)

struct pack {
    const struct ops *ops;
    struct device *d;
    struct attn_shape s;
    struct kv_seg segs[PACK];
    float *blocks[PACK][2], *memory, *q, *k, *v, *o, *lse, *weight;
};

static void pack_init(struct pack *p, const struct attn_shape *s, int threads)
{
    *p = (struct pack){.ops = ops_cpu(), .s = *s};
    p->d = device_with(p->ops, threads);
    size_t q = (size_t)(PACK_ROWS * s->heads * s->head_dim);
    size_t k = (size_t)(PACK_ROWS * s->kv_heads * s->head_dim);
    p->q = numbers(q, 1), p->k = numbers(k, 2), p->v = numbers(k, 3), p->weight = numbers(q, 4);
    p->o = zeros(q), p->lse = zeros((size_t)(PACK_ROWS * s->heads));
    p->memory = zeros(2 * PACK * p->ops->kv_floats(s));
    for (int i = 0, row = 0; i < PACK; row += lengths[i++]) {
        for (int b = 0; b < 2; b++)
            p->blocks[i][b] = p->memory + (size_t)(2 * i + b) * p->ops->kv_floats(s);
        p->segs[i] = (struct kv_seg){.row = row, .rows = lengths[i], .blocks = p->blocks[i]};
    }
}

static void pack_clear(struct pack *p)
{
    free(p->q), free(p->k), free(p->v), free(p->o), free(p->lse), free(p->weight), free(p->memory);
    p->ops->close(p->d);
}

static double pack_loss(void *arg)
{
    struct pack *p = arg;
    p->ops->kv_write(p->d, act_f32(p->k), act_f32(p->v), p->segs, PACK, &p->s);
    p->ops->attention(p->d, act_f32(p->o), p->lse, act_f32(p->q), p->segs, PACK, &p->s);
    return weighed(p->o, p->weight, (size_t)(PACK_ROWS * p->s.heads * p->s.head_dim));
}

static void the_way_back_agrees_with_finite_differences(void **state)
{
    for (int i = 0; i < SHAPES; i++) {
        struct pack p;
        pack_init(&p, &shapes[i], 2);
        int q = p.s.heads * p.s.head_dim, k = p.s.kv_heads * p.s.head_dim;
        float *dq = zeros((size_t)(PACK_ROWS * q)), *dk = zeros((size_t)(PACK_ROWS * k));
        float *dv = zeros((size_t)(PACK_ROWS * k));
        pack_loss(&p);
        p.ops->attention_back(p.d, act_f32(dq), act_f32(dk), act_f32(dv), act_f32(p.weight),
                              act_f32(p.o), p.lse, act_f32(p.q), p.segs, PACK, &p.s);
        static const int rows[] = {0, 4, 5, 30, 68, 69, 132, 133, 139}; /* ends of each */
        for (int r = 0; r < 9; r++) {
            int n = q < 24 ? q : 24, m = k < 24 ? k : 24;
            size_t at_q = (size_t)(rows[r] * q), at_k = (size_t)(rows[r] * k);
            assert_slopes(p.q + at_q, (size_t)n, dq + at_q, pack_loss, &p, "dq");
            assert_slopes(p.k + at_k, (size_t)m, dk + at_k, pack_loss, &p, "dk");
            assert_slopes(p.v + at_k, (size_t)m, dv + at_k, pack_loss, &p, "dv");
        }
        free(dq), free(dk), free(dv);
        pack_clear(&p);
    }
}

static void a_sequence_alone_has_the_bits_it_has_in_a_pack(void **state)
{
    struct pack all, one;
    pack_init(&all, &shapes[2], 2);
    pack_init(&one, &shapes[2], 1);
    size_t q = (size_t)(all.s.heads * all.s.head_dim),
           k = (size_t)(all.s.kv_heads * all.s.head_dim);
    float *dq = zeros(2 * PACK_ROWS * q), *dk = zeros(2 * PACK_ROWS * k);
    float *dv = zeros(2 * PACK_ROWS * k);
    float *dq1 = dq + PACK_ROWS * q, *dk1 = dk + PACK_ROWS * k, *dv1 = dv + PACK_ROWS * k;
    pack_loss(&all);
    all.ops->attention_back(all.d, act_f32(dq), act_f32(dk), act_f32(dv), act_f32(all.weight),
                            act_f32(all.o), all.lse, act_f32(all.q), all.segs, PACK, &all.s);
    for (int i = 0; i < PACK; i++) {
        one.ops->kv_write(one.d, act_f32(one.k), act_f32(one.v), &one.segs[i], 1, &one.s);
        one.ops->attention(one.d, act_f32(one.o), one.lse, act_f32(one.q), &one.segs[i], 1, &one.s);
        one.ops->attention_back(one.d, act_f32(dq1), act_f32(dk1), act_f32(dv1),
                                act_f32(one.weight), act_f32(one.o), one.lse, act_f32(one.q),
                                &one.segs[i], 1, &one.s);
    }
    assert_same_bits(all.o, one.o, PACK_ROWS * q);
    assert_same_bits(dq, dq1, PACK_ROWS * q);
    assert_same_bits(dk, dk1, PACK_ROWS * k);
    assert_same_bits(dv, dv1, PACK_ROWS * k);
    free(dq), free(dk), free(dv);
    pack_clear(&all), pack_clear(&one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_row_is_a_softmax_over_the_keys_up_to_itself),
        cmocka_unit_test(decoding_row_by_row_has_the_bits_of_one_prefill),
        cmocka_unit_test(what_lies_behind_a_sequence_is_not_seen),
        cmocka_unit_test(the_way_back_agrees_with_finite_differences),
        cmocka_unit_test(a_sequence_alone_has_the_bits_it_has_in_a_pack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
