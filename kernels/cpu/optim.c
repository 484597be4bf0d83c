/* optim.c - the norm of a gradient, and AdamW.
 *
 * Both go over all tensors of an adapter in one run, cut into pieces, so that threads meet once and
 * not once a tensor. */
#include <string.h>
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#define LANES   8
#define STRETCH ((size_t)1 << 16) /* numbers of one partial sum */
#define PIECE   ((size_t)1 << 14) /* numbers of a task of AdamW; no bit depends on it */
#define PARTS   256               /* partial sums at a time */
#define AHEAD   ((size_t)1 << 9)  /* numbers that are fetched before they are needed */
#define LINE    ((size_t)16)      /* numbers that memory gives at once */

static int pieces_of(const struct adam_tensor *t, size_t size)
{
    return (int)((t->count + size - 1) / size);
}

/* Piece number `piece` of all tensors cut into pieces of `size`: [*from, *to) of the tensor that is
 * returned. */
static const struct adam_tensor *piece_find(const struct adam_tensor *t, int piece, size_t size,
                                            size_t *from, size_t *to)
{
    for (int n; piece >= (n = pieces_of(t, size)); t++)
        piece -= n;
    *from = (size_t)piece * size;
    *to = t->count - *from < size ? t->count : *from + size;
    return t;
}

/* ------------------------------------------------------------------ the norm */

/* Written as vectors, because the compiler leaves the loop over lanes as it stands. */
typedef float vf8 __attribute__((vector_size(4 * LANES)));
typedef double vd8 __attribute__((vector_size(8 * LANES)));

struct sum_arg {
    const struct adam_tensor *tensors;
    int first; /* stretch of task 0 */
    double *parts;
};

static void sum_task(const void *p, int task, float *scratch)
{
    const struct sum_arg *a = p;
    size_t i, to;
    const float *x = piece_find(a->tensors, a->first + task, STRETCH, &i, &to)->grad;
    vd8 lane = {0};
    for (; i + LANES <= to; i += LANES) {
        vf8 eight;
        __builtin_prefetch(x + i + AHEAD);
        memcpy(&eight, x + i, sizeof eight);
        vd8 wide = __builtin_convertvector(eight, vd8);
        lane += wide * wide;
    }
    for (int l = 0; i < to; i++, l++)
        lane[l] += (double)x[i] * (double)x[i];
    a->parts[task] =
        ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* A walk over the stretches of all tensors, PARTS of which are summed at a time. */
struct sum_walk {
    struct device *d;
    struct sum_arg arg;
    int next, end, all;
    double parts[PARTS];
};

static double next_part(struct sum_walk *w)
{
    if (w->next == w->end) {
        w->arg.first = w->next;
        w->end = w->all - w->next < PARTS ? w->all : w->next + PARTS;
        cpu_run(w->d, sum_task, &w->arg, w->end - w->next,
                (size_t)(w->end - w->next) * (STRETCH / LANES));
    }
    return w->parts[w->next++ - w->arg.first];
}

double cpu_sum_squares(struct device *d, const struct adam_tensor *tensors, int count)
{
    struct sum_walk w = {.d = d, .arg = {.tensors = tensors}};
    double sum = 0;
    w.arg.parts = w.parts;
    for (int i = 0; i < count; i++)
        w.all += pieces_of(&tensors[i], STRETCH);
    for (int i = 0; i < count; i++) {
        double of_tensor = 0;
        for (int n = pieces_of(&tensors[i], STRETCH); n > 0; n--)
            of_tensor += next_part(&w);
        sum += of_tensor;
    }
    return sum;
}

/* ------------------------------------------------------------------ the step */

struct adamw_arg {
    struct adamw_step s;
    const struct adam_tensor *tensors;
};

static inline void adamw_numbers(const struct adamw_step *s, float *restrict w, float *restrict m,
                                 float *restrict v, float *restrict grad, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float g = grad[i] * s->grad_scale;
        w[i] *= s->decay;
        m[i] += (g - m[i]) * s->one_minus_beta1;
        v[i] = v[i] * s->beta2 + g * g * s->one_minus_beta2;
        w[i] -= s->step_size * (m[i] / (sqrtf(v[i]) / s->bias2_sqrt + s->eps));
        grad[i] = 0;
    }
}

static void adamw_task(const void *p, int task, float *scratch)
{
    const struct adamw_arg *a = p;
    const struct adamw_step s = a->s;
    size_t i, to;
    const struct adam_tensor *t = piece_find(a->tensors, task, PIECE, &i, &to);
    for (; i + LINE <= to; i += LINE) {
        float *const of[] = {t->w + i, t->m + i, t->v + i, t->grad + i};
        for (int k = 0; k < 4; k++)
            __builtin_prefetch(of[k] + AHEAD, 1);
        adamw_numbers(&s, of[0], of[1], of[2], of[3], LINE);
    }
    adamw_numbers(&s, t->w + i, t->m + i, t->v + i, t->grad + i, to - i);
}

void cpu_adamw(struct device *d, const struct adamw_step *step, const struct adam_tensor *tensors,
               int count)
{
    struct adamw_arg a = {*step, tensors};
    int tasks = 0;
    size_t steps = 0;
    for (int i = 0; i < count; i++) {
        tasks += pieces_of(&tensors[i], PIECE);
        steps += tensors[i].count;
    }
    cpu_run(d, adamw_task, &a, tasks, steps);
}
