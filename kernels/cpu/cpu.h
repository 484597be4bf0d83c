/* cpu.h - inside the CPU kernels: names, the device, and the work loop.
 *
 * The files of arithmetic are compiled once per instruction set (CPU_ISA is the suffix); pool.c
 * and device.c only once.  The defines below give each function of the table its suffixed name, so
 * that the code can go by its plain one. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include <assert.h>
#include "kernels/ops.h"

/* Scratch of one thread, in floats; what each op needs of it is asserted there. */
#define CPU_SCRATCH_FLOATS ((size_t)160 * 1024)

struct device;

/* Work is cut into `tasks` numbered pieces; fn runs once for each, on any thread, with that
 * thread's scratch (CPU_SCRATCH_FLOATS, 64-byte aligned).  Returns when all are done.  steps: about
 * how many vector operations all of it takes; with few the caller does it alone. */
typedef void task_fn(const void *arg, int task, float *scratch);
void cpu_run(struct device *d, task_fn *fn, const void *arg, int tasks, size_t steps);
int cpu_threads(const struct device *d);
/* Another number each time. */
uint64_t cpu_serial(struct device *d);

/* Several such works in one go, as if the tasks of the second followed those of the first. */
struct cpu_set {
    task_fn *fn;
    const void *arg;
    int tasks;
    size_t steps;
};
void cpu_run_sets(struct device *d, const struct cpu_set *sets, int count);

/* How many tasks for `items` of `steps` each.  No bit depends on it. */
int cpu_tasks_for(const struct device *d, size_t items, size_t steps);
/* The share of task t out of tasks over items: [*from, *to). */
void cpu_share(size_t items, int tasks, int t, size_t *from, size_t *to);

struct device *cpu_open(int index, int threads, struct err *e);
void cpu_close(struct device *d);
const char *cpu_numerics(const struct device *d, enum ops_dtype weights);
void *cpu_alloc(struct device *d, size_t bytes, struct err *e);
void cpu_release(struct device *d, void *p);
int cpu_memory(struct device *d, size_t *free_bytes, size_t *total_bytes, struct err *e);
/* For any thread; cpu_copy is cpu_run() at work. */
void cpu_move(struct device *d, void *to, const void *from, size_t bytes);
void cpu_copy(struct device *d, void *to, const void *from, size_t bytes);
void cpu_zero(struct device *d, void *p, size_t bytes);
int cpu_sync(struct device *d, struct err *e);
enum ops_dtype cpu_act_dtype(enum ops_dtype weights);
void cpu_record_begin(struct device *d, uint64_t key);
void cpu_record_end(struct device *d);
struct ops_recorded cpu_recorded(const struct device *d);

/* The CPU knows activations in fp32 only. */
static inline float *cpu_f32(struct act a)
{
    assert(a.dtype == OPS_F32);
    return a.p;
}

#ifdef CPU_ISA

#define CPU_JOIN2(a, b) a##_##b
#define CPU_JOIN(a, b)  CPU_JOIN2(a, b)
#define CPU_OF(name)    CPU_JOIN(name, CPU_ISA)

#define cpu_tile_cols      CPU_OF(cpu_tile_cols)
#define cpu_tile_rows      CPU_OF(cpu_tile_rows)
#define cpu_tile_pieces    CPU_OF(cpu_tile_pieces)
#define cpu_pack           CPU_OF(cpu_pack)
#define cpu_pack_other_way CPU_OF(cpu_pack_other_way)
#define cpu_packed_free    CPU_OF(cpu_packed_free)
#define cpu_packed_bytes   CPU_OF(cpu_packed_bytes)
#define cpu_gemm           CPU_OF(cpu_gemm)
#define cpu_gemm_jobs      CPU_OF(cpu_gemm_jobs)
#define cpu_gemm_set       CPU_OF(cpu_gemm_set)
#define cpu_gemm_job       CPU_OF(cpu_gemm_job)
#define cpu_project        CPU_OF(cpu_project)
#define cpu_project_back   CPU_OF(cpu_project_back)
#define cpu_gather         CPU_OF(cpu_gather)
#define cpu_gather_bf16    CPU_OF(cpu_gather_bf16)
#define cpu_scatter        CPU_OF(cpu_scatter)
#define cpu_rms_norm       CPU_OF(cpu_rms_norm)
#define cpu_rms_norm_back  CPU_OF(cpu_rms_norm_back)
#define cpu_rope           CPU_OF(cpu_rope)
#define cpu_rope_back      CPU_OF(cpu_rope_back)
#define cpu_swiglu         CPU_OF(cpu_swiglu)
#define cpu_swiglu_back    CPU_OF(cpu_swiglu_back)
#define cpu_kv_floats      CPU_OF(cpu_kv_floats)
#define cpu_kv_write       CPU_OF(cpu_kv_write)
#define cpu_attention      CPU_OF(cpu_attention)
#define cpu_attention_back CPU_OF(cpu_attention_back)
#define cpu_logprob        CPU_OF(cpu_logprob)
#define cpu_logprob_back   CPU_OF(cpu_logprob_back)
#define cpu_pick           CPU_OF(cpu_pick)
#define cpu_sum_squares    CPU_OF(cpu_sum_squares)
#define cpu_adamw          CPU_OF(cpu_adamw)

struct packed *cpu_pack(struct device *d, const struct ops_matrix *w, enum ops_dtype keep,
                        bool transpose, struct err *e);
struct packed *cpu_pack_other_way(struct device *d, const struct packed *w,
                                  const struct ops_matrix *m, struct err *e);
void cpu_packed_free(struct device *d, struct packed *w);
size_t cpu_packed_bytes(int out, int in, enum ops_dtype keep, bool transpose);
void cpu_gemm(struct device *d, struct act y, struct act x, int rows, const struct packed *w,
              bool add);

/* y [rows, ldy] (+)= scale x [rows, ldx] w^T, for w [out, in]: packed (w; then scale is 1), or as
 * it lies (plain), or lying transposed as [in, out] (turned).  Exactly one of the three is set. */
struct gemm_job {
    float *y;
    const float *x;
    const struct packed *w;
    const float *plain, *turned;
    int ldy, ldx, rows, in, out;
    float scale;
    bool add;
};
/* How jobs are cut into tasks; belongs to the set, as the jobs do. */
struct gemm_cut {
    const struct gemm_job *jobs;
    int panels;
    uint64_t serial; /* of the set */
};
struct gemm_job cpu_gemm_job(float *y, const float *x, int rows, const struct packed *w, bool add);
struct cpu_set cpu_gemm_set(struct device *d, struct gemm_cut *cut, const struct gemm_job *jobs,
                            int count);
void cpu_gemm_jobs(struct device *d, const struct gemm_job *jobs, int count);

void cpu_project(struct device *d, struct act x, int rows, const struct projection *p, int count);
void cpu_project_back(struct device *d, struct act dx, struct act dy, struct act x, int rows,
                      const struct projection_back *p);
void cpu_gather(struct device *d, struct act y, struct act table, const int32_t *ids, int rows,
                int width);
/* Its part for a table of bf16. */
void cpu_gather_bf16(struct device *d, float *y, const uint16_t *table, const int32_t *ids,
                     int rows, int width);
void cpu_scatter(struct device *d, float *y, const float *x, const int32_t *index, int rows,
                 int width);
void cpu_rms_norm(struct device *d, struct act y, struct act x, const float *gain, int rows,
                  int width, float eps);
void cpu_rms_norm_back(struct device *d, struct act dx, struct act dy, struct act x,
                       const float *gain, int rows, int width, float eps, bool add);
void cpu_rope(struct device *d, struct act x, const float *cosine, const float *sine,
              const struct kv_seg *segs, int seg_count, int heads, int head_dim);
void cpu_rope_back(struct device *d, struct act dx, const float *cosine, const float *sine,
                   const struct kv_seg *segs, int seg_count, int heads, int head_dim);
void cpu_swiglu(struct device *d, struct act y, struct act gate, struct act up, size_t count);
void cpu_swiglu_back(struct device *d, struct act dgate, struct act dup, struct act dy,
                     struct act gate, struct act up, size_t count);
size_t cpu_kv_floats(const struct attn_shape *shape);
void cpu_kv_write(struct device *d, struct act k, struct act v, const struct kv_seg *segs,
                  int seg_count, const struct attn_shape *shape);
void cpu_attention(struct device *d, struct act o, float *lse, struct act q,
                   const struct kv_seg *segs, int seg_count, const struct attn_shape *shape);
void cpu_attention_back(struct device *d, struct act dq, struct act dk, struct act dv,
                        struct act dout, struct act o, const float *lse, struct act q,
                        const struct kv_seg *segs, int seg_count, const struct attn_shape *shape);
void cpu_logprob(struct device *d, float *logprob, float *lse, const float *logits,
                 const int *first, const int32_t *ids, int rows, int vocab);
void cpu_logprob_back(struct device *d, float *logits, const float *lse, const float *g,
                      const int *first, const int32_t *ids, int rows, int vocab);
void cpu_pick(struct device *d, int32_t *ids, const float *logits, const struct pick *picks,
              int count, int vocab);
double cpu_sum_squares(struct device *d, const struct adam_tensor *tensors, int count);
void cpu_adamw(struct device *d, const struct adamw_step *step, const struct adam_tensor *tensors,
               int count);

#endif
#endif
