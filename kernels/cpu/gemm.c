/* gemm.c - y = x w^T, with w packed once or taken as it lies.
 *
 * The output is cut into tasks of some rows by some panels (a panel is TILE_COLS outputs).  A task
 * has x's rows copied into the tile's order, and finds the panels packed or copies them into scratch
 * strip by strip of k.  A chain that a strip does not finish waits in scratch; only a finished one is
 * stored or added: so neither strips nor tasks show in the bits.
 *
 * Copying rows takes a tenth of the time of a few panels.  So a thread's next task of the same set
 * looks whether they are still there: q, k and v, or gate and up, share theirs.
 *
 * Weights kept in bf16 are cut in the same way; bf16.c does their tasks.  With BF16_WIDENS it does
 * those of one tile only: with more of them the panels are widened into scratch here, and are then
 * as fast as fp32.
 *
 * With few rows the product is as fast as memory gives the panels, so those are fetched ahead; a
 * row alone goes through the very same chain as a row among many. */
#include "kernels/cpu/bf16_tile.h"

#include <assert.h>
#include <stdlib.h>

#define STRIP       512 /* of k, in a panel that is copied and in rows that do not fit otherwise */
#define WIDENED     128 /* of k: so much of a widened panel stays in the first cache */
#define AHEAD       64  /* of k: about what memory needs to answer, at the speed of one row */

/* A thread's scratch: sums that wait, a panel, rows, and at its end which rows they are. */
#define SUMS_FLOATS  ((size_t)TASK_ROWS * TASK_PANELS * TILE_COLS)
#define PANEL_FLOATS ((size_t)STRIP * TILE_COLS)
#define KEPT_FLOATS  ((size_t)32)
#define ROWS_FLOATS  (CPU_SCRATCH_FLOATS - SUMS_FLOATS - PANEL_FLOATS - KEPT_FLOATS)

struct kept {
    uint64_t serial; /* of the set; 0: none */
    const float *x;
    int ldx, row, rows, k0, k, range;
    bool rounded;
};

_Static_assert((size_t)TASK_ROWS * STRIP <= ROWS_FLOATS, "scratch of a thread");
_Static_assert(sizeof(struct kept) <= KEPT_FLOATS * sizeof(float), "scratch of a thread");
_Static_assert(PANEL_FLOATS <= CPU_SCRATCH_FLOATS, "scratch of packing");

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* panel[kk, c] = w[c, kk] for kk in from_k .. k - 1 */
static void fill_plainly(float *panel, const float *w, size_t ld, int cols, int from_k, int k)
{
    for (int kk = from_k; kk < k; kk++)
        for (int c = 0; c < cols; c++)
            panel[(size_t)kk * TILE_COLS + (size_t)c] = w[(size_t)c * ld + (size_t)kk];
}

/* panel[kk, c] = w(col + c, k0 + kk); columns past the matrix are zero.  k_major: w lies [in, out]
 * with ld floats a row, otherwise [out, in]. */
static void panel_fill(float *panel, const float *w, size_t ld, bool k_major, int col, int cols,
                       int k0, int k)
{
    if (cols < TILE_COLS) memset(panel, 0, (size_t)k * TILE_COLS * sizeof *panel);
    if (k_major) {
        for (int kk = 0; kk < k; kk++)
            memcpy(panel + (size_t)kk * TILE_COLS, w + (size_t)(k0 + kk) * ld + col,
                   (size_t)cols * sizeof *panel);
        return;
    }
    int c = 0;
    for (; c + VX_LANES <= cols; c += VX_LANES) {
        const float *from = w + (size_t)(col + c) * ld + k0;
        int kk = 0;
        for (; kk + VX_LANES <= k; kk += VX_LANES) {
            for (int r = 0; r < VX_LANES; r++)
                __builtin_prefetch(from + (size_t)r * ld + kk + AHEAD);
            vx_turn(panel + (size_t)kk * TILE_COLS + c, TILE_COLS, from + kk, ld);
        }
        fill_plainly(panel + c, from, ld, VX_LANES, kk, k);
    }
    fill_plainly(panel + c, w + (size_t)(col + c) * ld + k0, ld, cols - c, 0, k);
}

/* ------------------------------------------------------------------ packing */

struct pack_arg {
    struct packed *packed;
    const struct ops_matrix *w;
    bool transpose;
    int tasks;
};

static void pack_strip(const struct pack_arg *a, float *panel, int col, int cols, int k0,
                       float *block)
{
    int k = a->packed->in - k0 < STRIP ? a->packed->in - k0 : STRIP;
    if (a->transpose)
        cpu_block_f32(block, a->w, k0, k, col, cols);
    else
        cpu_block_f32(block, a->w, col, cols, k0, k);
    panel_fill(panel + (size_t)k0 * TILE_COLS, block, (size_t)(a->transpose ? cols : k),
               a->transpose, 0, cols, 0, k);
}

static void pack_task(const void *p, int task, float *scratch)
{
    const struct pack_arg *a = p;
    struct packed *w = a->packed;
    size_t from, to;
    cpu_share((size_t)ceil_div(w->out, TILE_COLS), a->tasks, task, &from, &to);
    for (size_t i = from; i < to; i++) {
        int col = (int)i * TILE_COLS;
        int cols = w->out - col < TILE_COLS ? w->out - col : TILE_COLS;
        for (int k0 = 0; k0 < w->in; k0 += STRIP)
            pack_strip(a, w->panels + i * TILE_COLS * (size_t)w->in, col, cols, k0, scratch);
    }
}

size_t cpu_packed_bytes(int out, int in, enum ops_dtype keep, bool transpose)
{
    int cols = transpose ? in : out, steps = transpose ? out : in;
    size_t wide = (size_t)ceil_div(cols, TILE_COLS) * TILE_COLS;
    if (keep == OPS_BF16) return wide * (size_t)ceil_div(steps, 2) * 2 * sizeof(uint16_t);
    return wide * (size_t)steps * sizeof(float);
}

static int pack_f32(struct device *d, struct packed *p, const struct ops_matrix *w, bool transpose,
                    struct err *e)
{
    size_t panels = (size_t)ceil_div(p->out, TILE_COLS);
    p->panels = cpu_alloc(d, panels * TILE_COLS * (size_t)p->in * sizeof(float), e);
    if (!p->panels) return -1;
    size_t steps = (size_t)p->in * TILE_COLS;
    int tasks = cpu_tasks_for(d, panels, steps);
    struct pack_arg arg = {p, w, transpose, tasks};
    cpu_run(d, pack_task, &arg, tasks, panels * steps);
    return 0;
}

struct packed *cpu_pack(struct device *d, const struct ops_matrix *w, enum ops_dtype keep,
                        bool transpose, struct err *e)
{
    assert(keep == OPS_F32 || keep == OPS_BF16);
    struct packed *p = calloc(1, sizeof *p);
    if (!p) {
        err_set(e, ERR_RETRY, "out of memory for packed weights");
        return NULL;
    }
    p->dtype = keep;
    p->turned = transpose;
    p->out = transpose ? w->cols : w->rows;
    p->in = transpose ? w->rows : w->cols;
    if ((keep == OPS_BF16 ? cpu_bf16_pack : pack_f32)(d, p, w, transpose, e) == 0) return p;
    free(p);
    return NULL;
}

/* Panels follow the outputs, so each way has its own. */
struct packed *cpu_pack_other_way(struct device *d, const struct packed *w,
                                  const struct ops_matrix *m, struct err *e)
{
    return cpu_pack(d, m, w->dtype, !w->turned, e);
}

void cpu_packed_free(struct device *d, struct packed *w)
{
    if (!w) return;
    cpu_release(d, w->panels);
    cpu_release(d, w->pairs);
    free(w);
}

/* ------------------------------------------------------------------ the product */

/* A part whose panels are widened here. */
static bool is_widened(const struct gemm_part *part)
{
    return BF16_WIDENS && part->job->w && part->job->w->dtype == OPS_BF16;
}

static void pack_row(float *pieces, const float *x, int k)
{
    int kk = 0;
    for (; kk + TILE_PIECE <= k; kk += TILE_PIECE, pieces += TILE_ROWS * TILE_PIECE)
        v_store(pieces, v_load(x + kk));
    if (kk < k) memcpy(pieces, x + kk, (size_t)(k - kk) * sizeof *pieces);
}

static int tiles_of(const struct gemm_part *part)
{
    return ceil_div(part->rows, TILE_ROWS);
}

/* Rows of tile t: [*top, *top + what is returned).  Tiles are about as high as each other, as one of
 * a few rows has too few chains under way: 64 rows are 11 and 10, not 12 and 4. */
static int tile_of(const struct gemm_part *part, int t, int *top)
{
    size_t from, to;
    cpu_share((size_t)part->rows, tiles_of(part), t, &from, &to);
    *top = (int)from;
    return (int)(to - from);
}

/* x's rows in the tiles' order of pieces; tiles are `range` of k long. */
static void pack_rows(float *to, const struct gemm_part *part, int k0, int k, int range)
{
    const struct gemm_job *j = part->job;
    for (int t = 0, top; t < tiles_of(part); t++, to += (size_t)TILE_ROWS * (size_t)range) {
        int n = tile_of(part, t, &top);
        for (int r = 0; r < n; r++) {
            const float *x = j->x + (size_t)(part->row + top + r) * (size_t)j->ldx + k0;
            (is_widened(part) ? cpu_bf16_round : pack_row)(to + r * TILE_PIECE, x, k);
        }
    }
}

/* The same unless this thread's last task of the set has left them.  Sets of a run are taken in
 * order, so that between two tasks of a set nothing else uses the scratch. */
static void have_rows(float *to, struct kept *kept, const struct gemm_part *part, int k0, int k,
                      int range)
{
    const struct gemm_job *j = part->job;
    bool there = kept->serial == part->serial && kept->x == j->x && kept->ldx == j->ldx &&
                 kept->row == part->row && kept->rows == part->rows && kept->k0 == k0 &&
                 kept->k == k && kept->range == range && kept->rounded == is_widened(part);
    if (there) return;
    pack_rows(to, part, k0, k, range);
    *kept = (struct kept){part->serial, j->x, j->ldx, part->row,       part->rows,
                          k0,           k,    range,  is_widened(part)};
}

static const uint16_t *pairs_of(const struct gemm_part *part, int p, int k0)
{
    const struct packed *w = part->job->w;
    size_t panel = (size_t)(part->col / TILE_COLS + p);
    return w->pairs + 2 * packed_pairs(w) * panel + (size_t)k0 * TILE_COLS;
}

static const float *panel_of(const struct gemm_part *part, int p, int k0, int k, float *scratch)
{
    const struct gemm_job *j = part->job;
    int col = part->col + p * TILE_COLS;
    if (is_widened(part)) {
        cpu_bf16_widen(scratch, pairs_of(part, p, k0), ceil_div(k, 2));
        return scratch;
    }
    if (j->w) return j->w->panels + (size_t)col * (size_t)j->in + (size_t)k0 * TILE_COLS;
    int cols = j->out - col < TILE_COLS ? j->out - col : TILE_COLS;
    if (j->plain)
        panel_fill(scratch, j->plain, (size_t)j->in, false, col, cols, k0, k);
    else
        panel_fill(scratch, j->turned, (size_t)j->out, true, col, cols, k0, k);
    return scratch;
}

/* Full panels go straight to y with the last strip; others wait in scratch for store_row, as does
 * what must not be added in BF16_MODE. */
static bool is_direct(const struct gemm_part *part, int p)
{
    const struct gemm_job *j = part->job;
    if (is_widened(part) && j->add) return false;
    return j->scale == 1.0f && j->out - (part->col + p * TILE_COLS) >= TILE_COLS;
}

static struct tile_ends ends_of(const struct gemm_part *part, int p, int t, int k0, int k,
                                float *sums)
{
    const struct gemm_job *j = part->job;
    float *wait = sums + ((size_t)p * TASK_ROWS + (size_t)t) * TILE_COLS;
    struct tile_ends ends = {.from = k0 > 0 ? wait : NULL, .y = wait, .ldy = TILE_COLS};
    if (k0 + k < j->in || !is_direct(part, p)) return ends;
    ends.y = j->y + (size_t)(part->row + t) * (size_t)j->ldy + part->col + p * TILE_COLS;
    ends.ldy = (size_t)j->ldy;
    ends.add = j->add;
    return ends;
}

/* What is fetched while a panel's tiles work: the panel after it, in pieces of one tile each, so
 * that memory is asked evenly.  One tile alone reads as fast as memory gives and looks ahead in what
 * it reads. */
struct ahead {
    const float *at;
    int step; /* for each k, in floats */
    int turn; /* for each tile; of a matrix that lies [in, out] all tiles ask for the same */
};

static struct ahead ahead_of(const struct gemm_part *part, int p, int k0, int k, const float *b)
{
    const struct gemm_job *j = part->job;
    int tiles = tiles_of(part), step = ceil_div(TILE_COLS, tiles);
    int next = part->col + (p + 1) * TILE_COLS;
    if (is_widened(part)) {
        step = ceil_div(TILE_COLS / 2, tiles);
        return (struct ahead){(const float *)pairs_of(part, p + 1, k0), step, k * step};
    }
    if (j->turned)
        return (struct ahead){j->turned + (size_t)k0 * (size_t)j->out + next, j->out, 0};
    if (j->plain)
        return (struct ahead){j->plain + (size_t)next * (size_t)j->in + (size_t)k0 * TILE_COLS, step,
                              k * step};
    size_t steps = tiles > 1 ? (size_t)j->in : AHEAD;
    return (struct ahead){b + steps * TILE_COLS, step, k * step};
}

/* A panel's turn: its tiles work on b, k0 .. k0 + k of the whole; rows begin at k0. */
static void run_tiles(const struct gemm_part *part, int p, int k0, int k, const float *b,
                      const float *rows, int range, float *sums)
{
    struct ahead ahead = ahead_of(part, p, k0, k, b);
    int steps = is_widened(part) ? ceil_div(k, 2) * 2 : k;
    unsigned before = is_widened(part) ? cpu_bf16_begin() : 0;
    for (int t = 0, top; t < tiles_of(part); t++, ahead.at += ahead.turn) {
        int n = tile_of(part, t, &top);
        struct tile_ends ends = ends_of(part, p, top, k0, k, sums);
        cpu_tile_pieces(n, &ends, rows, b, steps, ahead.at, ahead.step);
        rows += (size_t)TILE_ROWS * (size_t)range;
    }
    if (is_widened(part)) cpu_bf16_end(before);
}

/* How much of k a panel gives at once: all of it, or what the panel's scratch holds. */
static int strip_of(const struct gemm_part *part, int k)
{
    if (is_widened(part)) return WIDENED;
    return part->job->w ? k : STRIP;
}

static void run_range(const struct gemm_part *part, int k0, int k, int range, float *sums,
                      const float *rows, float *panel)
{
    int strip = strip_of(part, k);
    for (int p = 0; p < part->panels; p++)
        for (int i = 0; i < k; i += strip) {
            int n = k - i < strip ? k - i : strip;
            run_tiles(part, p, k0 + i, n, panel_of(part, p, k0 + i, n, panel),
                      rows + (size_t)i * TILE_ROWS, range, sums);
        }
}

/* How much of k the rows are packed for at once: all of it while that fits, so that a panel is read
 * in one go. */
static int range_of(const struct gemm_part *part)
{
    int all = ceil_div(part->job->in, TILE_PIECE) * TILE_PIECE;
    return (size_t)tiles_of(part) * TILE_ROWS * (size_t)all <= ROWS_FLOATS ? all : STRIP;
}

static void store_row(float *y, const float *sums, int n, float scale, bool add)
{
    if (add)
        for (int i = 0; i < n; i++)
            y[i] += scale * sums[i];
    else
        for (int i = 0; i < n; i++)
            y[i] = scale * sums[i];
}

static struct kept *kept_of(float *scratch)
{
    return (struct kept *)(scratch + CPU_SCRATCH_FLOATS - KEPT_FLOATS);
}

static void run_part(const struct gemm_part *part, float *scratch)
{
    const struct gemm_job *j = part->job;
    float *sums = scratch, *panel = sums + SUMS_FLOATS, *rows = panel + PANEL_FLOATS;
    int range = range_of(part);
    for (int k0 = 0; k0 < j->in; k0 += range) {
        int k = j->in - k0 < range ? j->in - k0 : range;
        have_rows(rows, kept_of(scratch), part, k0, k, range);
        run_range(part, k0, k, range, sums, rows, panel);
    }
    for (int p = 0; p < part->panels; p++) {
        if (is_direct(part, p)) continue;
        for (int r = 0; r < part->rows; r++) {
            int col = part->col + p * TILE_COLS;
            int cols = j->out - col < TILE_COLS ? j->out - col : TILE_COLS;
            store_row(j->y + (size_t)(part->row + r) * (size_t)j->ldy + col,
                      sums + ((size_t)p * TASK_ROWS + (size_t)r) * TILE_COLS, cols, j->scale,
                      j->add);
        }
    }
}

/* A job's cut: each task has up to `panels` panels. */
static int job_tasks(const struct gemm_job *j, int panels)
{
    return ceil_div(j->rows, TASK_ROWS) * ceil_div(ceil_div(j->out, TILE_COLS), panels);
}

static void gemm_task(const void *p, int task, float *scratch)
{
    const struct gemm_cut *a = p;
    const struct gemm_job *j = a->jobs;
    for (int n; task >= (n = job_tasks(j, a->panels)); j++)
        task -= n;
    int all = ceil_div(j->out, TILE_COLS), groups = ceil_div(all, a->panels);
    int first = task % groups * a->panels;
    size_t from, to; /* tiles, so that all tasks are about as long */
    cpu_share((size_t)ceil_div(j->rows, TILE_ROWS), ceil_div(j->rows, TASK_ROWS), task / groups,
              &from, &to);
    int row = (int)from * TILE_ROWS, end = (int)to * TILE_ROWS;
    struct gemm_part part = {
        .job = j,
        .row = row,
        .rows = (end < j->rows ? end : j->rows) - row,
        .col = first * TILE_COLS,
        .panels = all - first < a->panels ? all - first : a->panels,
        .serial = a->serial,
    };
    if (j->w && j->w->dtype == OPS_BF16 && !(BF16_WIDENS && part.rows > TILE_ROWS)) {
        kept_of(scratch)->serial = 0; /* it lays out scratch in its own way */
        cpu_bf16_part(&part, scratch);
    } else {
        run_part(&part, scratch);
    }
}

/* About the arithmetic, and what memory takes to give a matrix that has to be turned. */
static size_t job_steps(const struct gemm_job *j)
{
    size_t size = (size_t)j->in * (size_t)j->out;
    return (size_t)j->rows * size / 16 + (j->w ? 0 : size / 2);
}

/* Full tasks while there are enough of them for every thread; thinner ones otherwise.  With few
 * rows a task has hardly anything to prepare, so that there may be more. */
struct cpu_set cpu_gemm_set(struct device *d, struct gemm_cut *cut, const struct gemm_job *jobs,
                            int count)
{
    int rows = 0, enough;
    struct cpu_set set = {.fn = gemm_task, .arg = cut};
    *cut = (struct gemm_cut){jobs, 2 * TASK_PANELS, cpu_serial(d)};
    for (int i = 0; i < count; i++) {
        set.steps += job_steps(&jobs[i]);
        rows = jobs[i].rows > rows ? jobs[i].rows : rows;
    }
    enough = (rows > TILE_ROWS ? 2 : 6) * cpu_threads(d);
    while (cut->panels > 1 && set.tasks < enough) {
        cut->panels /= 2;
        set.tasks = 0;
        for (int i = 0; i < count; i++)
            set.tasks += job_tasks(&jobs[i], cut->panels);
    }
    return set;
}

void cpu_gemm_jobs(struct device *d, const struct gemm_job *jobs, int count)
{
    struct gemm_cut cut;
    struct cpu_set set = cpu_gemm_set(d, &cut, jobs, count);
    cpu_run(d, set.fn, set.arg, set.tasks, set.steps);
}

struct gemm_job cpu_gemm_job(float *y, const float *x, int rows, const struct packed *w, bool add)
{
    return (struct gemm_job){.y = y,
                             .x = x,
                             .w = w,
                             .ldy = w->out,
                             .ldx = w->in,
                             .rows = rows,
                             .in = w->in,
                             .out = w->out,
                             .scale = 1.0f,
                             .add = add};
}

void cpu_gemm(struct device *d, struct act y, struct act x, int rows, const struct packed *w,
              bool add)
{
    struct gemm_job job = cpu_gemm_job(cpu_f32(y), cpu_f32(x), rows, w, add);
    cpu_gemm_jobs(d, &job, 1);
}
