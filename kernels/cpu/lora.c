/* lora.c - projections: the frozen product and the low-rank ones, each group of rows with its own
 * matrices.
 *
 * What does not wait for each other runs together: the frozen product beside the way down to the
 * rank, then the way up; back again the frozen product beside du and the gradient of B, then the way
 * to dx beside the gradient of A.  So threads meet twice a projection.
 *
 * A and B change with every optimizer step, so they are taken as they lie.  The gradients are
 * outer products over rows: a task owns some elements of one gradient and walks the blocks of the
 * datum law in order, each block one chain from zero that is then added. */
#include "kernels/cpu/tile.h"

#include <assert.h>

#define JOBS        64 /* handed over at once */
#define TASK_HEIGHT (8 * TILE_ROWS)

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* ------------------------------------------------------------------ the way there */

/* Jobs that may run in any order, and do whenever there are enough of them. */
struct pile {
    struct device *d;
    int count;
    struct gemm_job jobs[JOBS];
};

static void pile_run(struct pile *p)
{
    if (p->count) cpu_gemm_jobs(p->d, p->jobs, p->count);
    p->count = 0;
}

static void pile_add(struct pile *p, struct gemm_job job)
{
    if (p->count == JOBS) pile_run(p);
    p->jobs[p->count++] = job;
}

/* to [rows, ld_to] (+)= scale from [rows, ld_from] w^T for the group's rows; the caller sets w. */
static struct gemm_job job_over(const struct lora_group *g, float *to, int ld_to, int out,
                                const float *from, int ld_from, int in)
{
    return (struct gemm_job){.y = to + (size_t)g->row * (size_t)ld_to,
                             .x = from + (size_t)g->row * (size_t)ld_from,
                             .ldy = ld_to,
                             .ldx = ld_from,
                             .rows = g->rows,
                             .in = in,
                             .out = out,
                             .scale = 1.0f};
}

static struct gemm_job x_to_u(const struct projection *p, const struct lora_group *g,
                              const float *x)
{
    struct gemm_job j = job_over(g, p->u, p->ldu, g->rank, x, p->in, p->in);
    j.plain = g->a;
    j.scale = g->scale;
    return j;
}

static struct gemm_job u_to_y(const struct projection *p, const struct lora_group *g)
{
    struct gemm_job j = job_over(g, cpu_f32(p->y), p->out, p->out, p->u, p->ldu, g->rank);
    j.plain = g->b;
    j.add = true;
    return j;
}

void cpu_project(struct device *d, struct act x, int rows, const struct projection *p, int count)
{
    const float *from = cpu_f32(x);
    struct pile pile = {.d = d};
    for (int i = 0; i < count; i++)
        for (int g = 0; g < p[i].count; g++)
            pile_add(&pile, x_to_u(&p[i], &p[i].groups[g], from));
    for (int i = 0; i < count; i++)
        if (p[i].w)
            pile_add(&pile, cpu_gemm_job(cpu_f32(p[i].y), from, rows, p[i].w, p[i].add));
    pile_run(&pile);
    for (int i = 0; i < count; i++)
        for (int g = 0; g < p[i].count; g++)
            pile_add(&pile, u_to_y(&p[i], &p[i].groups[g]));
    pile_run(&pile);
}

/* ------------------------------------------------------------------ gradients */

/* grad [height, width] += sum over blocks of left^T right, left [rows, ldl], right [rows, ldr] */
struct outer_job {
    const struct lora_group *group;
    float *grad;
    const float *left, *right;
    int ldl, ldr, height, width;
};

struct outer_arg {
    const struct outer_job *jobs;
};

static int outer_tasks(const struct outer_job *j)
{
    return ceil_div(j->height, TASK_HEIGHT) * ceil_div(j->width, TILE_COLS);
}

/* slab[r, c] = right[row + r, col + c], zero past the width */
static void slab_fill(float *slab, const struct outer_job *j, int row, int rows, int col, int cols)
{
    const float *from = j->right + (size_t)row * (size_t)j->ldr + col;
    if (cols < TILE_COLS) memset(slab, 0, (size_t)rows * TILE_COLS * sizeof *slab);
    for (int r = 0; r < rows; r++, from += j->ldr, slab += TILE_COLS)
        for (int c = 0; c < cols; c += 16)
            v_store(slab + c, v_load_n(from + c, cols - c < 16 ? cols - c : 16));
}

/* A tile's gradients come from memory while it is worked out. */
static void fetch_tile(const struct outer_job *j, int top, int n, int col)
{
    const float *g = j->grad + (size_t)top * (size_t)j->width + col;
    for (int r = 0; r < n; r++, g += j->width)
        for (int c = 0; c < TILE_COLS; c += 16)
            __builtin_prefetch(g + c, 1, 3);
}

static void add_tile(const struct outer_job *j, const float *tile, int top, int n, int col,
                     int cols)
{
    float *g = j->grad + (size_t)top * (size_t)j->width + col;
    for (int r = 0; r < n; r++, g += j->width, tile += TILE_COLS)
        for (int c = 0; c < cols; c += 16) {
            int some = cols - c < 16 ? cols - c : 16;
            v_store_n(g + c, v_add(v_load_n(g + c, some), v_load(tile + c)), some);
        }
}

static void outer_block(const struct outer_job *j, int row, int rows, int top, int bottom, int col,
                        float *scratch)
{
    float *slab = scratch, *tile = scratch + OPS_KV_BLOCK * TILE_COLS;
    int cols = j->width - col < TILE_COLS ? j->width - col : TILE_COLS;
    slab_fill(slab, j, row, rows, col, cols);
    for (int m = top; m < bottom; m += TILE_ROWS) {
        int n = bottom - m < TILE_ROWS ? bottom - m : TILE_ROWS;
        fetch_tile(j, m, n, col);
        cpu_tile_cols(n, TILE_VECS, tile, TILE_COLS, false,
                      j->left + (size_t)row * (size_t)j->ldl + m, (size_t)j->ldl, slab, TILE_COLS,
                      rows);
        add_tile(j, tile, m, n, col, cols);
    }
}

static void outer_task(const void *p, int task, float *scratch)
{
    const struct outer_job *j = ((const struct outer_arg *)p)->jobs;
    for (int n; task >= (n = outer_tasks(j)); j++)
        task -= n;
    int across = ceil_div(j->width, TILE_COLS);
    int top = task / across * TASK_HEIGHT, col = task % across * TILE_COLS;
    int bottom = j->height - top < TASK_HEIGHT ? j->height : top + TASK_HEIGHT;
    const struct lora_group *g = j->group;
    for (int b = 0; b < g->block_count; b++) {
        int row = g->blocks[b], rows = g->blocks[b + 1] - row;
        assert(rows >= 0 && rows <= OPS_KV_BLOCK);
        outer_block(j, row, rows, top, bottom, col, scratch);
    }
}

static struct cpu_set outer_set(const struct outer_arg *arg, int count)
{
    struct cpu_set set = {.fn = outer_task, .arg = arg};
    for (int i = 0; i < count; i++) {
        const struct outer_job *j = &arg->jobs[i];
        set.tasks += outer_tasks(j);
        set.steps += (size_t)j->group->rows * (size_t)j->height * (size_t)j->width / 16;
    }
    return set;
}

/* ------------------------------------------------------------------ the way back */

static struct gemm_job dy_to_du(const struct projection_back *p, const struct lora_group *g,
                                const float *dy)
{
    struct gemm_job j = job_over(g, p->du, p->ldu, g->rank, dy, p->out, p->out);
    j.turned = g->b;
    j.scale = g->scale;
    return j;
}

static struct gemm_job du_to_dx(const struct projection_back *p, const struct lora_group *g,
                                float *dx)
{
    struct gemm_job j = job_over(g, dx, p->in, p->in, p->du, p->ldu, g->rank);
    j.turned = g->a;
    j.add = true;
    return j;
}

/* Which half of the way back was asked for (enum back_part). */
static bool wants_dx(const struct projection_back *p)
{
    return p->part != BACK_GRADS;
}

static bool wants_grads(const struct projection_back *p)
{
    return p->part != BACK_DX;
}

/* du of up to JOBS groups, the gradients of their B, and beside the first of them the frozen
 * product.  The gradients are small tasks and come last, so that threads end together. */
static void to_du(struct device *d, float *dx, const float *dy, int rows,
                  const struct projection_back *p, int first, int count)
{
    struct gemm_job jobs[JOBS + 1] = {{0}};
    struct outer_job outers[JOBS];
    struct gemm_cut cut;
    struct outer_arg arg = {outers};
    struct cpu_set sets[2];
    int n = 0;
    for (int i = 0; i < count; i++) {
        const struct lora_group *g = &p->groups[first + i];
        if (wants_dx(p)) jobs[n++] = dy_to_du(p, g, dy);
        outers[i] =
            (struct outer_job){g, g->grad_b, dy, p->u, p->out, p->ldu, p->out, g->rank};
    }
    if (first == 0 && dx && p->w && wants_dx(p))
        jobs[n++] = cpu_gemm_job(dx, dy, rows, p->w, p->add);
    sets[0] = cpu_gemm_set(d, &cut, jobs, n);
    sets[1] = outer_set(&arg, wants_grads(p) ? count : 0);
    cpu_run_sets(d, sets, 2);
}

/* Once du is there: dx += du A and the gradients of A of up to JOBS groups. */
static void from_du(struct device *d, float *dx, const float *x, const struct projection_back *p,
                    const struct lora_group *groups, int count)
{
    struct outer_job outers[JOBS];
    struct gemm_job jobs[JOBS] = {{0}};
    struct gemm_cut cut;
    struct outer_arg arg = {outers};
    struct cpu_set sets[2];
    bool ahead = dx && wants_dx(p);
    for (int i = 0; i < count; i++) {
        const struct lora_group *g = &groups[i];
        outers[i] = (struct outer_job){g, g->grad_a, p->du, x, p->ldu, p->in, g->rank, p->in};
        if (ahead) jobs[i] = du_to_dx(p, g, dx);
    }
    sets[0] = cpu_gemm_set(d, &cut, jobs, ahead ? count : 0);
    sets[1] = outer_set(&arg, wants_grads(p) ? count : 0);
    cpu_run_sets(d, sets, 2);
}

static int some(int left)
{
    return left < JOBS ? left : JOBS;
}

void cpu_project_back(struct device *d, struct act dx, struct act dy, struct act x, int rows,
                      const struct projection_back *p)
{
    for (int g = 0; g == 0 || g < p->count; g += JOBS)
        to_du(d, cpu_f32(dx), cpu_f32(dy), rows, p, g, some(p->count - g));
    for (int g = 0; g < p->count; g += JOBS)
        from_du(d, cpu_f32(dx), cpu_f32(x), p, &p->groups[g], some(p->count - g));
}
