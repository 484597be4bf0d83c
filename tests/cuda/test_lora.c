/* The low-rank products on the device: against the CPU's, and that the bits of a row are its own.
 *
 * Given numbers in bf16, the device differs from the CPU only where u and du are rounded to bf16 on
 * their way on, which is wrong by 2^-8 of each at most, in the last bits of fp32, and where what is kept
 * in bf16 is rounded once more. */
#include "cuda/rounded.h"

#define GROUPS_MAX 300

/* ------------------------------------------------------------------ a projection with adapters */

/* Group g: these rows, and the adapter they share.  An adapter is made from `seed`, so that two
 * groups of one seed and rank have the same. */
struct part {
    int row, rows, rank;
    uint64_t seed;
    const int *blocks; /* of the datum law, as in lora_group; NULL: one for each 64 rows */
};

/* In which types activations are kept.  Zero: all in fp32. */
struct types {
    enum ops_dtype x, y, dy, dx;
};

static const struct types some = {OPS_BF16, OPS_F32, OPS_F32, OPS_BF16}; /* as of a layer's last product */
static const struct types narrow = {OPS_BF16, OPS_BF16, OPS_BF16, OPS_BF16};

/* What goes in and what comes out, in the host's memory; gradients are those of part 0, 1, ... */
struct world {
    int rows, in, out, ldu, count;
    struct types t;
    const struct part *parts;
    float *x, *dy, *y, *u, *dx, *du;
    float *a[GROUPS_MAX], *b[GROUPS_MAX], *grad_a[GROUPS_MAX], *grad_b[GROUPS_MAX];
};

static struct world world_in(struct types t, int rows, int in, int out, int ldu,
                             const struct part *parts, int count, bool bf16)
{
    struct world w = {.rows = rows, .in = in, .out = out, .ldu = ldu, .count = count, .t = t};
    assert_true(count <= GROUPS_MAX);
    float *(*make)(size_t, uint64_t) = bf16 ? numbers_bf16 : numbers;
    w.parts = parts;
    w.x = make((size_t)(rows * in), 1), w.dy = make((size_t)(rows * out), 2);
    w.y = numbers_as(t.y, (size_t)(rows * out), 3), w.dx = numbers_as(t.dx, (size_t)(rows * in), 4);
    w.u = zeros((size_t)(rows * ldu)), w.du = zeros((size_t)(rows * ldu));
    for (int g = 0; g < count; g++) {
        size_t a = (size_t)(parts[g].rank * in), b = (size_t)(parts[g].rank * out);
        w.a[g] = make(a, 2 * parts[g].seed), w.b[g] = make(b, 2 * parts[g].seed + 1);
        w.grad_a[g] = numbers(a, 5), w.grad_b[g] = numbers(b, 6); /* something is there already */
    }
    return w;
}

static struct world world_of(int rows, int in, int out, int ldu, const struct part *parts,
                             int count, bool bf16)
{
    return world_in((struct types){0}, rows, in, out, ldu, parts, count, bf16);
}

static void world_free(struct world *w)
{
    for (int g = 0; g < w->count; g++)
        free(w->a[g]), free(w->b[g]), free(w->grad_a[g]), free(w->grad_b[g]);
    free(w->x), free(w->dy), free(w->y), free(w->u), free(w->dx), free(w->du);
}

static float scale_of(const struct part *p)
{
    return 3.0f / (float)p->rank;
}

/* The groups with their matrices on the device; blocks are laid in the room given. */
static void groups_up(const struct side *s, const struct world *w, int first, int count,
                      struct lora_group *groups, int *blocks)
{
    for (int i = 0; i < count; i++) {
        const struct part *p = &w->parts[first + i];
        size_t a = (size_t)(p->rank * w->in), b = (size_t)(p->rank * w->out);
        groups[i] = (struct lora_group){.row = p->row,
                                        .rows = p->rows,
                                        .rank = p->rank,
                                        .scale = scale_of(p),
                                        .a = up(s, w->a[first + i], a),
                                        .b = up(s, w->b[first + i], b),
                                        .grad_a = up(s, w->grad_a[first + i], a),
                                        .grad_b = up(s, w->grad_b[first + i], b)};
        struct lora_group *g = &groups[i];
        g->blocks = p->blocks ? p->blocks : blocks;
        for (int r = 0; !p->blocks && r < p->rows; r += OPS_KV_BLOCK)
            *blocks++ = p->row + r;
        if (!p->blocks) *blocks++ = p->row + p->rows;
        while (g->blocks[g->block_count] < p->row + p->rows)
            g->block_count++;
    }
}

static void groups_down(const struct side *s, struct world *w, int first, int count,
                        struct lora_group *groups)
{
    for (int i = 0; i < count; i++) {
        size_t a = (size_t)(groups[i].rank * w->in), b = (size_t)(groups[i].rank * w->out);
        bring(s, w->grad_a[first + i], groups[i].grad_a, a);
        bring(s, w->grad_b[first + i], groups[i].grad_b, b);
        drop(s, (float *)(uintptr_t)groups[i].a);
        drop(s, (float *)(uintptr_t)groups[i].b);
    }
}

/* Both ways for groups first .. first + count - 1, on top of what the world has; the way back whole
 * or in its two halves. */
static void run_as(const struct side *s, struct world *w, int first, int count, bool halves)
{
    static struct lora_group groups[GROUPS_MAX];
    static int blocks[4 * GROUPS_MAX];
    size_t in = (size_t)(w->rows * w->in), out = (size_t)(w->rows * w->out);
    size_t low = (size_t)(w->rows * w->ldu);
    groups_up(s, w, first, count, groups, blocks);
    struct act x = up_act(s, w->x, in, w->t.x), dy = up_act(s, w->dy, out, w->t.dy);
    struct act y = up_act(s, w->y, out, w->t.y), dx = up_act(s, w->dx, in, w->t.dx);
    float *u = up(s, w->u, low), *du = up(s, w->du, low);
    const struct projection p = {NULL, w->in, w->out, y, true, u, w->ldu, groups, count};
    struct projection_back back = {NULL,   w->in,  w->out, true, u, du,
                                   w->ldu, groups, count,  halves ? BACK_DX : BACK_WHOLE};
    s->ops->project(s->d, x, w->rows, &p, 1);
    s->ops->project_back(s->d, dx, dy, x, w->rows, &back);
    back.part = BACK_GRADS;
    if (halves) s->ops->project_back(s->d, act_f32(NULL), dy, x, w->rows, &back);
    bring_act(s, w->y, y, out), bring_act(s, w->dx, dx, in);
    bring(s, w->u, u, low), bring(s, w->du, du, low);
    drop_act(s, x), drop_act(s, dy);
    groups_down(s, w, first, count, groups);
}

static void run(const struct side *s, struct world *w, int first, int count)
{
    run_as(s, w, first, count, false);
}

/* ------------------------------------------------------------------ against the definition */

/* What sum over i of x[i] y[i] may be wrong by: of each product `each`, and fp32's last bits. */
static double bound(const float *x, int step_x, const float *y, int step_y, int n, double each)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += fabs((double)x[i * step_x] * (double)y[i * step_y]);
    return sum * (each + 0x1p-20) + 4e-6;
}

/* Rows of one group: u, y, du, dx. */
static void compare_row(const struct world *got, const struct world *want, int g, int r)
{
    const struct part *p = &want->parts[g];
    int in = want->in, out = want->out, rank = p->rank;
    const float *u = want->u + r * want->ldu, *du = want->du + r * want->ldu;
    double scale = (double)scale_of(p);
    for (int j = 0; j < rank; j++) {
        size_t at = (size_t)(r * want->ldu + j);
        double b = scale * bound(want->x + r * in, 1, want->a[g] + j * in, 1, in, 0);
        assert_near((double)got->u[at], (double)want->u[at], b, "u", at);
        b = scale * bound(want->dy + r * out, 1, want->b[g] + j, rank, out, 0);
        assert_near((double)got->du[at], (double)want->du[at], b, "du", at);
    }
    for (int o = 0; o < out; o++)
        assert_near((double)got->y[r * out + o], (double)want->y[r * out + o],
                    bound(u, 1, want->b[g] + o * rank, 1, rank, ROUNDING) +
                        kept(got->t.y, want->y[r * out + o]),
                    "y", (size_t)(r * out + o));
    for (int i = 0; i < in; i++)
        assert_near((double)got->dx[r * in + i], (double)want->dx[r * in + i],
                    bound(du, 1, want->a[g] + i, in, rank, ROUNDING) +
                        kept(got->t.dx, want->dx[r * in + i]),
                    "dx", (size_t)(r * in + i));
}

static void compare_gradients(const struct world *got, const struct world *want, int g)
{
    const struct part *p = &want->parts[g];
    int in = want->in, out = want->out, rank = p->rank, ldu = want->ldu;
    const float *x = want->x + p->row * in, *dy = want->dy + p->row * out;
    const float *u = want->u + p->row * ldu, *du = want->du + p->row * ldu;
    for (int j = 0; j < rank; j++)
        for (int i = 0; i < in; i++)
            assert_near((double)got->grad_a[g][j * in + i], (double)want->grad_a[g][j * in + i],
                        bound(du + j, ldu, x + i, in, p->rows, ROUNDING), "grad_a",
                        (size_t)(j * in + i));
    for (int o = 0; o < out; o++)
        for (int j = 0; j < rank; j++)
            assert_near((double)got->grad_b[g][o * rank + j], (double)want->grad_b[g][o * rank + j],
                        bound(dy + o, out, u + j, ldu, p->rows, ROUNDING), "grad_b",
                        (size_t)(o * rank + j));
}

static void assert_rest(const struct world *w, int row, int rows)
{
    struct world fresh = world_in(w->t, w->rows, w->in, w->out, w->ldu, NULL, 0, false);
    size_t at = (size_t)row, n = (size_t)rows, in = (size_t)w->in, out = (size_t)w->out;
    assert_same_bits(w->y + at * out, fresh.y + at * out, n * out);
    assert_same_bits(w->dx + at * in, fresh.dx + at * in, n * in);
    assert_same_bits(w->u + at * (size_t)w->ldu, fresh.u + at * (size_t)w->ldu, n * (size_t)w->ldu);
    world_free(&fresh);
}

static void agrees(struct types t, int rows, int in, int out, int ldu, const struct part *parts,
                   int count)
{
    struct world want = world_in(t, rows, in, out, ldu, parts, count, true);
    struct world got = world_in(t, rows, in, out, ldu, parts, count, true);
    struct side cpu = side_open(ops_cpu()), cuda = side_open(twin());
    run(&cpu, &want, 0, count);
    run(&cuda, &got, 0, count);
    for (int g = 0; g < count; g++) {
        for (int r = parts[g].row; r < parts[g].row + parts[g].rows; r++)
            compare_row(&got, &want, g, r);
        compare_gradients(&got, &want, g);
    }
    int end = parts[count - 1].row + parts[count - 1].rows;
    assert_rest(&got, 0, parts[0].row);
    assert_rest(&got, end, rows - end);
    world_free(&want), world_free(&got);
    side_close(&cpu), side_close(&cuda);
}

static const int odd_blocks[] = {5, 5 + 64, 5 + 65, 5 + 65 + 48, 5 + 130};

static void both_ways_agree_with_the_definition(void **state)
{
    static const struct part many[] = {
        {5, 130, 3, 1, odd_blocks}, {135, 1, 128, 2, NULL}, {136, 63, 8, 3, NULL},
        {199, 2, 1, 4, NULL},       {201, 65, 32, 5, NULL}, {266, 3, 100, 6, NULL}};
    static const struct part few[] = {{1, 1, 17, 1, NULL}, {2, 66, 64, 2, NULL}};
    static const struct types wide;
    agrees(wide, 272, 37, 51, 130, many, 6);
    agrees(narrow, 272, 37, 51, 130, many, 6);
    agrees(narrow, 70, 128, 64, 64, few, 2);
    agrees(wide, 70, 100, 130, 67, few, 2);
    agrees(narrow, 70, 1100, 30, 64, few, 2); /* three pieces of k, the way there ... */
    agrees(wide, 70, 20, 1028, 64, few, 2);   /* ... and the way back */
}

/* ------------------------------------------------------------------ bits */

static void assert_worlds(const struct world *a, const struct world *b)
{
    size_t rows = (size_t)a->rows;
    assert_same_bits(a->u, b->u, rows * (size_t)a->ldu);
    assert_same_bits(a->du, b->du, rows * (size_t)a->ldu);
    assert_same_bits(a->y, b->y, rows * (size_t)a->out);
    assert_same_bits(a->dx, b->dx, rows * (size_t)a->in);
}

static void assert_gradients(const struct world *a, int g, const struct world *b, int h)
{
    int rank = a->parts[g].rank;
    assert_same_bits(a->grad_a[g], b->grad_a[h], (size_t)(rank * a->in));
    assert_same_bits(a->grad_b[g], b->grad_b[h], (size_t)(rank * a->out));
}

static void group_alone(struct types t)
{
    static const struct part parts[] = {
        {2, 70, 5, 1, NULL}, {72, 1, 33, 2, NULL}, {73, 64, 8, 3, NULL}, {140, 5, 72, 4, NULL}};
    struct side s = side_open(twin());
    struct world all = world_in(t, 150, 516, 67, 73, parts, 4, false);
    struct world one = world_in(t, 150, 516, 67, 73, parts, 4, false);
    run(&s, &all, 0, 4);
    for (int g = 3; g >= 0; g--)
        run(&s, &one, g, 1);
    assert_worlds(&all, &one);
    for (int g = 0; g < 4; g++)
        assert_gradients(&all, g, &one, g);
    world_free(&all), world_free(&one);
    side_close(&s);
}

static void a_group_alone_has_the_bits_it_has_in_company(void **state)
{
    group_alone(some);
}

/* One adapter's rows as one group, and each as a group of its own: so many that all pieces of k are
 * walked by one CUDA block, where the one group has its pieces worked out apart. */
static void rows_grouped(struct types t)
{
    static const struct part whole = {0, 260, 7, 1, NULL};
    static struct part each[260];
    for (int r = 0; r < 260; r++)
        each[r] = (struct part){r, 1, 7, 1, NULL};
    struct side s = side_open(twin());
    struct world one = world_in(t, 260, 514, 516, 8, &whole, 1, false);
    struct world apart = world_in(t, 260, 514, 516, 8, each, 260, false);
    run(&s, &one, 0, 1);
    run(&s, &apart, 0, 260);
    assert_worlds(&one, &apart);
    world_free(&one), world_free(&apart);
    side_close(&s);
}

static void a_row_has_its_bits_however_rows_are_grouped(void **state)
{
    rows_grouped(some);
}

/* What is kept in bf16 is what it would be in fp32, rounded, from the same numbers. */
static void types_of_activations_round_and_change_nothing_else(void **state)
{
    static const struct part parts[] = {{1, 18, 7, 1, NULL}, {19, 1, 33, 2, NULL}};
    static const struct types types[] = {{OPS_BF16, OPS_BF16, OPS_BF16, OPS_BF16},
                                         {OPS_BF16, OPS_BF16, OPS_BF16, OPS_F32},
                                         {OPS_BF16, OPS_F32, OPS_F32, OPS_BF16},
                                         {OPS_F32, OPS_BF16, OPS_BF16, OPS_BF16}};
    static const int shapes[][2] = {{70, 30}, {516, 67}, {37, 520}}; /* in, out */
    enum { ROWS = 21 };
    struct side s = side_open(twin());
    for (int k = 0; k < 3; k++)
        for (int t = 0; t < 4; t++) {
            int in = shapes[k][0], out = shapes[k][1];
            struct world got = world_in(types[t], ROWS, in, out, 33, parts, 2, true);
            struct world want = world_in(types[t], ROWS, in, out, 33, parts, 2, true);
            want.t = (struct types){0};
            run(&s, &got, 0, 2);
            run(&s, &want, 0, 2);
            for (int i = 0; types[t].y == OPS_BF16 && i < ROWS * out; i++)
                want.y[i] = as_bf16(want.y[i]);
            for (int i = 0; types[t].dx == OPS_BF16 && i < ROWS * in; i++)
                want.dx[i] = as_bf16(want.dx[i]);
            assert_worlds(&got, &want);
            for (int g = 0; g < 2; g++)
                assert_gradients(&got, g, &want, g);
            world_free(&got), world_free(&want);
        }
    side_close(&s);
}

/* grad += the sum of a block, which begins from zero; block after block.  So the blocks' own sums,
 * made by themselves and added here, give the same bits. */
static void a_gradient_is_summed_block_by_block(void **state)
{
    static const struct part parts[] = {{5, 130, 9, 1, odd_blocks}};
    static const struct part blocks[] = {{5, 64, 9, 1, NULL},
                                         {5 + 64, 1, 9, 1, NULL},
                                         {5 + 65, 48, 9, 1, NULL},
                                         {5 + 65 + 48, 17, 9, 1, NULL}};
    struct side s = side_open(twin());
    struct world all = world_of(140, 70, 30, 9, parts, 1, false);
    struct world want = world_of(140, 70, 30, 9, parts, 1, false);
    struct world apart = world_of(140, 70, 30, 9, blocks, 4, false);
    run(&s, &all, 0, 1);
    for (int g = 0; g < 4; g++) {
        memset(apart.grad_a[g], 0, 9 * 70 * sizeof(float));
        memset(apart.grad_b[g], 0, 9 * 30 * sizeof(float));
    }
    run(&s, &apart, 0, 4);
    for (int g = 0; g < 4; g++) {
        for (int i = 0; i < 9 * 70; i++)
            want.grad_a[0][i] += apart.grad_a[g][i];
        for (int i = 0; i < 9 * 30; i++)
            want.grad_b[0][i] += apart.grad_b[g][i];
    }
    assert_gradients(&all, 0, &want, 0);
    world_free(&all), world_free(&want), world_free(&apart);
    side_close(&s);
}

static void numbers_are_rounded_to_bf16_first(void **state)
{
    static const struct part parts[] = {{0, 65, 6, 1, NULL}};
    struct side s = side_open(twin());
    struct world plain = world_of(65, 70, 30, 6, parts, 1, false);
    struct world bf16 = world_of(65, 70, 30, 6, parts, 1, true);
    run(&s, &plain, 0, 1);
    run(&s, &bf16, 0, 1);
    assert_worlds(&plain, &bf16);
    assert_gradients(&plain, 0, &bf16, 0);
    world_free(&plain), world_free(&bf16);
    side_close(&s);
}

/* Two projections of the same rows, over frozen weights, and the way back of one: as the frozen
 * products and then the low-rank ones by themselves.  The gradients do not need dx. */
static void projections_together(struct types t)
{
    static const struct part parts[] = {{3, 66, 6, 1, NULL}};
    enum { ROWS = 70, IN = 40, OUT = 52, LDU = 6 };
    struct side s = side_open(twin());
    struct err e = {0};
    struct world w = world_in(t, ROWS, IN, OUT, LDU, parts, 1, false);
    struct world want = world_in(t, ROWS, IN, OUT, LDU, parts, 1, false);
    struct lora_group group;
    int blocks[4];
    float *frozen = numbers(OUT * IN, 9);
    const struct ops_matrix m = {frozen, OPS_F32, OUT, IN};
    struct packed *ahead = s.ops->pack(s.d, &m, OPS_BF16, false, &e);
    struct packed *back = s.ops->pack(s.d, &m, OPS_BF16, true, &e);
    assert_true(ahead && back);
    groups_up(&s, &w, 0, 1, &group, blocks);
    struct act x = up_act(&s, w.x, ROWS * IN, t.x), dy = up_act(&s, w.dy, ROWS * OUT, t.dy);
    struct act y[2], dx = up_act(&s, w.dx, ROWS * IN, t.dx);
    float *u[2], *du = up(&s, w.du, ROWS * LDU);
    struct projection p[2];
    for (int i = 0; i < 2; i++) {
        y[i] = up_act(&s, w.y, ROWS * OUT, t.y), u[i] = up(&s, w.u, ROWS * LDU);
        p[i] = (struct projection){ahead, IN, OUT, y[i], i == 1, u[i], LDU, &group, 1};
    }
    s.ops->project(s.d, x, ROWS, p, 2);
    struct projection_back b = {back, IN, OUT, true, u[0], du, LDU, &group, 1, BACK_WHOLE};
    s.ops->project_back(s.d, dx, dy, x, ROWS, &b);
    bring_act(&s, w.dx, dx, ROWS * IN), bring(&s, w.du, du, ROWS * LDU);
    groups_down(&s, &w, 0, 1, &group);

    struct act plain = up_act(&s, want.dx, ROWS * IN, t.dx);
    float *got = zeros(ROWS * OUT);
    s.ops->gemm(s.d, plain, dy, ROWS, back, true);
    bring_act(&s, want.dx, plain, ROWS * IN);
    for (int i = 0; i < 2; i++) {
        float *before = numbers(ROWS * OUT, 3);
        plain = up_act(&s, before, ROWS * OUT, t.y);
        s.ops->gemm(s.d, plain, x, ROWS, ahead, i == 1);
        bring_act(&s, want.y, plain, ROWS * OUT);
        if (i == 1) run(&s, &want, 0, 1); /* all of it, to compare the way back too */
        else {
            struct world again = world_in(t, ROWS, IN, OUT, LDU, parts, 1, false);
            memcpy(again.y, want.y, ROWS * OUT * sizeof(float));
            run(&s, &again, 0, 1);
            memcpy(want.y, again.y, ROWS * OUT * sizeof(float));
            world_free(&again);
        }
        bring_act(&s, got, y[i], ROWS * OUT);
        assert_same_bits(got, want.y, ROWS * OUT);
        bring(&s, w.u, u[i], ROWS * LDU);
        free(before);
    }
    assert_same_bits(w.u, want.u, ROWS * LDU);
    assert_same_bits(w.du, want.du, ROWS * LDU);
    assert_same_bits(w.dx, want.dx, ROWS * IN);
    assert_gradients(&w, 0, &want, 0);
    drop_act(&s, x), drop_act(&s, dy);
    s.ops->packed_free(s.d, ahead), s.ops->packed_free(s.d, back);
    free(frozen), free(got);
    world_free(&w), world_free(&want);
    side_close(&s);
}

static void projections_together_are_the_sum_of_their_parts(void **state)
{
    projections_together((struct types){0});
    projections_together(narrow);
    projections_together((struct types){OPS_BF16, OPS_F32, OPS_BF16, OPS_F32});
}

/* The engine's first layer wants no dx: the gradients and du are the same without. */
static void gradients_do_not_need_dx(void **state)
{
    static const struct part parts[] = {{0, 65, 6, 1, NULL}};
    struct side s = side_open(twin());
    struct world want = world_of(65, 70, 30, 6, parts, 1, false);
    struct world w = world_of(65, 70, 30, 6, parts, 1, false);
    struct lora_group group;
    int blocks[4];
    run(&s, &want, 0, 1);
    groups_up(&s, &w, 0, 1, &group, blocks);
    float *x = up(&s, w.x, 65 * 70), *dy = up(&s, w.dy, 65 * 30), *u = up(&s, want.u, 65 * 6);
    float *du = up(&s, w.du, 65 * 6);
    struct projection_back b = {NULL, 70, 30, true, u, du, 6, &group, 1, BACK_WHOLE};
    s.ops->project_back(s.d, act_f32(NULL), act_f32(dy), act_f32(x), 65, &b);
    bring(&s, w.du, du, 65 * 6);
    groups_down(&s, &w, 0, 1, &group);
    assert_same_bits(w.du, want.du, 65 * 6);
    assert_gradients(&w, 0, &want, 0);
    drop(&s, x), drop(&s, dy), drop(&s, u);
    world_free(&w), world_free(&want);
    side_close(&s);
}

static void halves_and_whole(struct types t)
{
    static const struct part parts[] = {{0, 65, 6, 1, NULL}, {66, 3, 33, 2, NULL}};
    struct side s = side_open(twin());
    struct world whole = world_in(t, 70, 70, 130, 33, parts, 2, false);
    struct world halves = world_in(t, 70, 70, 130, 33, parts, 2, false);
    run(&s, &whole, 0, 2);
    run_as(&s, &halves, 0, 2, true);
    assert_worlds(&whole, &halves);
    for (int g = 0; g < 2; g++)
        assert_gradients(&whole, g, &halves, g);
    world_free(&whole), world_free(&halves);
    side_close(&s);
}

static void the_halves_have_the_bits_of_the_whole(void **state)
{
    halves_and_whole(some);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_ways_agree_with_the_definition),
        cmocka_unit_test(a_group_alone_has_the_bits_it_has_in_company),
        cmocka_unit_test(a_row_has_its_bits_however_rows_are_grouped),
        cmocka_unit_test(types_of_activations_round_and_change_nothing_else),
        cmocka_unit_test(a_gradient_is_summed_block_by_block),
        cmocka_unit_test(numbers_are_rounded_to_bf16_first),
        cmocka_unit_test(projections_together_are_the_sum_of_their_parts),
        cmocka_unit_test(gradients_do_not_need_dx),
        cmocka_unit_test(the_halves_have_the_bits_of_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
