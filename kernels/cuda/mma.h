/* mma.h - products of small bf16 tiles on tensor cores, and how tiles get into shared memory.
 *
 * A warp works together on C [16, 8] += A [16, 16] B [16, 8] with fp32 sums (mma.sync m16n8k16; PTX
 * ISA, "Matrix Fragments for mma.m16n8k16").  Lane l = 4 g + t, g in 0..7 and t in 0..3, holds of
 *   A: rows g and g + 8, columns 2 t, 2 t + 1 and 8 more: a[0] upper left, a[1] below it, a[2] to
 *      its right, a[3] below that, two numbers in each, the lower column in the lower half
 *   B: column g, rows 2 t, 2 t + 1 in b[0] and 8 more in b[1]
 *   C: rows g (c[0], c[1]) and g + 8 (c[2], c[3]), columns 2 t and 2 t + 1
 * so that two neighbouring C, rounded, are an A: that is how weights become the left side of the
 * next product without leaving their lanes.
 *
 * Under emulation plain code does what the three instructions here do with the lanes' registers, and
 * all else is the same.  What it cannot know is in which order and how exactly a tensor core adds
 * the 16 products and C; the kernels rely on no more than that it treats every row, and every
 * column, alike.
 *
 * Leading dimensions are multiples of 8 and 16 bytes past a multiple of 32, so that the eight rows
 * that ldmatrix reads at once lie in different banks. */
#ifndef KERNELS_CUDA_MMA_H
#define KERNELS_CUDA_MMA_H

#include "kernels/cuda/act.cuh"

#define TILE_PAD 8 /* numbers added to a row of a tile in shared memory */

/* Before a loop over numbers in registers: there is no register whose number is known only later. */
#ifdef CUDA_EMULATED
#define UNROLL
#else
#define UNROLL _Pragma("unroll")
#endif

/* Rounded to the nearest, ties to even; lo in the lower half. */
__device__ static inline uint32_t bf16_pair(float lo, float hi)
{
    __nv_bfloat162 both = __floats2bfloat162_rn(lo, hi);
    uint32_t bits;
    memcpy(&bits, &both, sizeof bits);
    return bits;
}

/* The rows of C that are this lane's: group and group + 8; and its columns: 2 pair, 2 pair + 1. */
__device__ static inline int lane_group(void)
{
    return threadIdx.x % WARP / 4;
}

__device__ static inline int lane_pair(void)
{
    return threadIdx.x % 4;
}

/* ------------------------------------------------------------------ instructions */

/* ldmatrix: four 8 x 8 matrices, lane l giving the address of row l % 8 of matrix l / 8; it gets of
 * each, in r[0..3], what is at row l / 4, columns 2 (l % 4) and 1 more, or turned, at these rows of
 * that column. */
#ifndef CUDA_EMULATED

__device__ static inline void ldmatrix(uint32_t r[4], const bf16 *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ static inline void ldmatrix_turned(uint32_t r[4], const bf16 *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* c += a b */
__device__ static inline void mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

struct ldmatrix_lane {
    uint32_t *r;
    const bf16 *row;
};

/* Number c of row r of matrix m. */
static inline uint32_t ldmatrix_at(void *const lanes[32], int m, int r, int c)
{
    return ((const ldmatrix_lane *)lanes[8 * m + r])->row[c].bits;
}

static inline void ldmatrix_together(unsigned, void *const lanes[32])
{
    for (int l = 0; l < 32; l++)
        for (int m = 0, r = l / 4, c = 2 * (l % 4); m < 4; m++)
            ((const ldmatrix_lane *)lanes[l])->r[m] =
                ldmatrix_at(lanes, m, r, c) | ldmatrix_at(lanes, m, r, c + 1) << 16;
}

static inline void ldmatrix_turned_together(unsigned, void *const lanes[32])
{
    for (int l = 0; l < 32; l++)
        for (int m = 0, r = 2 * (l % 4), c = l / 4; m < 4; m++)
            ((const ldmatrix_lane *)lanes[l])->r[m] =
                ldmatrix_at(lanes, m, r, c) | ldmatrix_at(lanes, m, r + 1, c) << 16;
}

static inline void ldmatrix_any(uint32_t r[4], const bf16 *row, emulate_together *fn,
                                const char *file, int line)
{
    ldmatrix_lane mine = {r, row};
    if ((uintptr_t)row % 16) __builtin_trap(); /* as on the device */
    emulate_warp(ALL_LANES, &mine, fn, file, line);
}

static inline void ldmatrix(uint32_t r[4], const bf16 *row, EMULATE_SITE)
{
    ldmatrix_any(r, row, ldmatrix_together, file, line);
}

static inline void ldmatrix_turned(uint32_t r[4], const bf16 *row, EMULATE_SITE)
{
    ldmatrix_any(r, row, ldmatrix_turned_together, file, line);
}

struct mma_lane {
    float *c;
    const uint32_t *a, *b;
};

static inline float half_of(uint32_t two, int which)
{
    return __uint_as_float(which ? two & 0xffff0000u : two << 16);
}

/* The fragments become matrices, and every sum takes its sixteen products in turn; they are exact,
 * so that it does not matter whether multiply and add are fused. */
static inline void mma_together(unsigned, void *const lanes[32])
{
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
        const mma_lane *m = (const mma_lane *)lanes[l];
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 8; i++)
            a[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] = half_of(m->a[i / 2], i % 2);
        for (int i = 0; i < 4; i++)
            b[2 * t + i / 2 * 8 + i % 2][g] = half_of(m->b[i / 2], i % 2);
    }
    for (int l = 0; l < 32; l++) {
        float *c = ((const mma_lane *)lanes[l])->c;
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 16; k++)
                c[i] += a[l / 4 + i / 2 * 8][k] * b[k][2 * (l % 4) + i % 2];
    }
}

static inline void mma(float c[4], const uint32_t a[4], const uint32_t b[2], EMULATE_SITE)
{
    mma_lane mine = {c, a, b};
    emulate_warp(ALL_LANES, &mine, mma_together, file, line);
}

#endif

/* ------------------------------------------------------------------ fragments */

/* The lane's row for ldmatrix where matrices 0 and 1 lie below each other, 2 and 3 beside them ... */
__device__ static inline const bf16 *row_down(const bf16 *p, int ld)
{
    int lane = threadIdx.x % WARP;
    return p + lane % 16 * ld + lane / 16 * 8;
}

/* ... and where they lie beside each other, 2 and 3 below. */
__device__ static inline const bf16 *row_across(const bf16 *p, int ld)
{
    int lane = threadIdx.x % WARP;
    return p + (lane % 8 + lane / 16 * 8) * ld + lane / 8 % 2 * 8;
}

/* A from p [16 rows, ld]. */
__device__ static inline void tile_a(uint32_t a[4], const bf16 *p, int ld)
{
    ldmatrix(a, row_down(p, ld));
}

/* A from its transpose, p [16 columns of A, ld]. */
__device__ static inline void tile_a_turned(uint32_t a[4], const bf16 *p, int ld)
{
    ldmatrix_turned(a, row_across(p, ld));
}

/* Two B side by side, b[0..1] and b[2..3], from their transposes, p [16 columns of B, ld]. */
__device__ static inline void tile_b(uint32_t b[4], const bf16 *p, int ld)
{
    ldmatrix(b, row_across(p, ld));
}

/* One B, and the one 16 further down in k, from their transposes, p [8 columns of B, ld]. */
__device__ static inline void tile_b_on(uint32_t b[2], uint32_t on[2], const bf16 *p, int ld)
{
    int lane = threadIdx.x % WARP;
    uint32_t r[4];
    ldmatrix(r, p + lane % 8 * ld + lane / 8 * 8);
    b[0] = r[0], b[1] = r[1], on[0] = r[2], on[1] = r[3];
}

/* Two B side by side from p [16 rows, ld]. */
__device__ static inline void tile_b_turned(uint32_t b[4], const bf16 *p, int ld)
{
    ldmatrix_turned(b, row_down(p, ld));
}

/* ------------------------------------------------------------------ from memory to tiles */

/* Copies 16 bytes from device memory to shared memory, both aligned to 16, some time before a
 * copy_wait() returns that covers them; copies belong to the group that the thread commits next.
 * copy_wait<n>() waits for all but the last n groups of this thread, and others see what came after
 * the next barrier.  (cp.async.)  Emulated, a copy is made as late as it may be. */
#ifndef CUDA_EMULATED

__device__ static inline void copy_16(bf16 *to, const bf16 *from)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

__device__ static inline void copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ static inline void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

#define COPIES_MAX 512

struct copies {
    int group, count;
    struct {
        bf16 *to;
        const bf16 *from;
        int group;
    } list[COPIES_MAX];
};
inline struct copies emulated_copies[256]; /* of each thread of a block */

static inline void copy_16(bf16 *to, const bf16 *from)
{
    struct copies *c = &emulated_copies[threadIdx.x];
    if (c->count == COPIES_MAX) __builtin_trap();
    c->list[c->count].to = to, c->list[c->count].from = from;
    c->list[c->count++].group = c->group;
}

static inline void copy_commit(void)
{
    emulated_copies[threadIdx.x].group++;
}

template <int N> static inline void copy_wait(void)
{
    struct copies *c = &emulated_copies[threadIdx.x];
    int done = 0;
    while (done < c->count && c->list[done].group < c->group - N)
        memcpy(c->list[done].to, c->list[done].from, 16), done++;
    memmove(c->list, c->list + done, (size_t)(c->count - done) * sizeof c->list[0]);
    c->count -= done;
}

#endif

/* To shared memory, 8-byte aligned, rounded to bf16. */
__device__ static inline void put_4(bf16 *to, float4 v)
{
    *(uint2 *)to = make_uint2(bf16_pair(v.x, v.y), bf16_pair(v.z, v.w));
}

#endif
