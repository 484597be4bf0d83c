/* bf16.c - y = x w^T with w kept in bf16: packing, and one task of a product.
 *
 * gemm.c cuts the tasks.  As there, a task goes through k in strips; sums wait in
 * scratch until their chain is finished, and the last strip puts them where they belong.  A strip's
 * rows are rounded once and serve all panels of the task; one row or a hundred are packed and
 * multiplied in the same way. */
#include "kernels/cpu/bf16_tile.h"

#include <assert.h>

#define SUMS_FLOATS (TASK_ROWS * TASK_PANELS * TILE_COLS)

_Static_assert(SUMS_FLOATS + TASK_ROWS * BF16_LD <= CPU_SCRATCH_FLOATS, "scratch of a task");
_Static_assert(TILE_COLS * BF16_STRIP <= 2 * CPU_SCRATCH_FLOATS, "scratch of packing");

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

static size_t panel_size(const struct packed *p)
{
    return packed_pairs(p) * 2;
}

/* ------------------------------------------------------------------ packing */

struct pack_arg {
    struct packed *packed;
    const struct ops_matrix *w;
    bool transpose;
    int tasks;
};

/* to[kk / 2][c][kk % 2] = block(c, kk), a column's k lying together; to is zero before. */
static void pairs_of_columns(uint16_t *to, const uint16_t *block, int cols, int k)
{
    for (int c = 0; c < cols; c++, block += k)
        for (int kk = 0; kk < k; kk++)
            to[(size_t)(kk / 2) * (TILE_COLS * 2) + (size_t)c * 2 + (size_t)(kk % 2)] = block[kk];
}

/* The same where a k's columns lie together. */
static void pairs_of_rows(uint16_t *to, const uint16_t *block, int cols, int k)
{
    for (int kk = 0; kk < k; kk++, block += cols) {
        uint16_t *row = to + (size_t)(kk / 2) * (TILE_COLS * 2) + kk % 2;
        for (int c = 0; c < cols; c++)
            row[c * 2] = block[c];
    }
}

static void pack_panel(const struct pack_arg *a, int panel, uint16_t *block)
{
    struct packed *p = a->packed;
    uint16_t *to = p->pairs + (size_t)panel * panel_size(p);
    int col = panel * TILE_COLS, cols = p->out - col < TILE_COLS ? p->out - col : TILE_COLS;
    for (int k0 = 0; k0 < p->in; k0 += BF16_STRIP, to += BF16_STRIP * TILE_COLS) {
        int k = p->in - k0 < BF16_STRIP ? p->in - k0 : BF16_STRIP;
        if (a->transpose) {
            cpu_block_bf16(block, a->w, k0, k, col, cols);
            pairs_of_rows(to, block, cols, k);
        } else {
            cpu_block_bf16(block, a->w, col, cols, k0, k);
            pairs_of_columns(to, block, cols, k);
        }
    }
}

static void pack_task(const void *arg, int task, float *scratch)
{
    const struct pack_arg *a = arg;
    size_t from, to;
    cpu_share((size_t)ceil_div(a->packed->out, TILE_COLS), a->tasks, task, &from, &to);
    for (size_t i = from; i < to; i++)
        pack_panel(a, (int)i, (uint16_t *)scratch);
}

int cpu_bf16_pack(struct device *d, struct packed *p, const struct ops_matrix *w, bool transpose,
                  struct err *e)
{
    size_t panels = (size_t)ceil_div(p->out, TILE_COLS);
    p->pairs = cpu_alloc(d, panels * panel_size(p) * sizeof *p->pairs, e);
    if (!p->pairs) return -1;
    int tasks = cpu_tasks_for(d, panels, panel_size(p));
    struct pack_arg arg = {p, w, transpose, tasks};
    cpu_run(d, pack_task, &arg, tasks, panels * panel_size(p));
    return 0;
}

/* ------------------------------------------------------------------ the product */

/* Into y from (row, col) on, where a tile could not do it itself. */
static void store(const struct gemm_job *j, int row, int rows, int col, const float *sums)
{
    int cols = j->out - col < TILE_COLS ? j->out - col : TILE_COLS;
    for (int r = 0; r < rows; r++, sums += TILE_COLS) {
        float *y = j->y + (size_t)(row + r) * (size_t)j->ldy + col;
        for (int c = 0; c < cols; c++)
            y[c] = j->add ? y[c] + sums[c] : sums[c];
    }
}

/* A tile's rows by one panel, over k0 .. k0 + k; their sums wait at `sums`. */
static void tile(const struct gemm_job *j, int row, int rows, int col, int k0, int k, float *sums,
                 const bf16_row *a)
{
    size_t ldy = (size_t)j->ldy;
    bool last = k0 + k == j->in, by_itself = j->out - col >= TILE_COLS;
    if (BF16_MODE && j->add) by_itself = false;
    struct bf16_out to = {.from = k0 ? sums : NULL, .y = sums, .ldy = TILE_COLS};
    if (last && by_itself) {
        to.y = j->y + (size_t)row * ldy + col;
        to.ldy = ldy;
        to.add = j->add;
    }
    const uint16_t *panel = j->w->pairs + (size_t)(col / TILE_COLS) * panel_size(j->w);
    unsigned before = cpu_bf16_begin();
    cpu_bf16_tile(rows, &to, a, panel + (size_t)k0 * TILE_COLS, ceil_div(k, 2));
    cpu_bf16_end(before);
    if (last && !by_itself) store(j, row, rows, col, sums);
}

/* Strips from k0 to k1: rows are rounded once, then each panel is read from k0 to k1. */
static void round_of_strips(const struct gemm_part *part, int k0, int k1, float *sums,
                            bf16_row *rows)
{
    const struct gemm_job *j = part->job;
    size_t ldx = (size_t)j->ldx, strip = (size_t)part->rows * BF16_LD;
    const float *x = j->x + (size_t)part->row * ldx;
    for (int k = k0; k < k1; k += BF16_STRIP)
        cpu_bf16_rows(rows + (size_t)((k - k0) / BF16_STRIP) * strip, x + k, ldx, part->rows,
                      k1 - k < BF16_STRIP ? k1 - k : BF16_STRIP);
    for (int p = 0; p < part->panels; p++)
        for (int k = k0; k < k1; k += BF16_STRIP)
            for (int t = 0; t < part->rows; t += TILE_ROWS)
                tile(j, part->row + t, part->rows - t < TILE_ROWS ? part->rows - t : TILE_ROWS,
                     part->col + p * TILE_COLS, k, k1 - k < BF16_STRIP ? k1 - k : BF16_STRIP,
                     sums + (p * TASK_ROWS + t) * TILE_COLS,
                     rows + (size_t)((k - k0) / BF16_STRIP) * strip + (size_t)t * BF16_LD);
}

/* The fewer the rows, the more strips of them fit: a row alone then reads its weights in one go,
 * at the speed of memory. */
void cpu_bf16_part(const struct gemm_part *part, float *scratch)
{
    int step = TASK_ROWS / part->rows * BF16_STRIP, in = part->job->in;
    for (int k0 = 0, k1; k0 < in; k0 = k1) {
        k1 = in - k0 < step ? in : k0 + step;
        round_of_strips(part, k0, k1, scratch, (bf16_row *)(scratch + SUMS_FLOATS));
    }
}

/* ------------------------------------------------------------------ rows of a table */

struct gather_arg {
    float *y;
    const uint16_t *table;
    const int32_t *ids;
    int rows, width, tasks;
};

static void gather_task(const void *arg, int task, float *scratch)
{
    const struct gather_arg *a = arg;
    size_t from, to, width = (size_t)a->width;
    cpu_share((size_t)a->rows, a->tasks, task, &from, &to);
    for (size_t i = from; i < to; i++) {
        const uint16_t *row = a->table + (size_t)a->ids[i] * width;
        for (size_t c = 0; c < width; c++)
            a->y[i * width + c] = bf16_wide(row[c]);
    }
}

void cpu_gather_bf16(struct device *d, float *y, const uint16_t *table, const int32_t *ids,
                     int rows, int width)
{
    size_t steps = (size_t)width / 16 + 1;
    int tasks = cpu_tasks_for(d, (size_t)rows, steps);
    struct gather_arg a = {y, table, ids, rows, width, tasks};
    cpu_run(d, gather_task, &a, tasks, (size_t)rows * steps);
}
