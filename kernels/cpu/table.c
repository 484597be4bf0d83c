/* table.c - the CPU's table of operations, one per instruction set. */
#include "kernels/cpu/cpu.h"

#define cpu_table CPU_OF(cpu_table)
extern const struct ops cpu_table;

const struct ops cpu_table = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .numerics = cpu_numerics,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .upload = cpu_move,
    .download = cpu_move,
    .copy = cpu_copy,
    .zero = cpu_zero,
    .spread = cpu_spread,
    .sync = cpu_sync,
    .pack = cpu_pack,
    .packed_free = cpu_packed_free,
    .packed_bytes = cpu_packed_bytes,
    .gemm = cpu_gemm,
    .project = cpu_project,
    .project_back = cpu_project_back,
    .gather = cpu_gather,
    .gather_bf16 = cpu_gather_bf16,
    .scatter = cpu_scatter,
    .rms_norm = cpu_rms_norm,
    .rms_norm_back = cpu_rms_norm_back,
    .rope = cpu_rope,
    .rope_back = cpu_rope_back,
    .swiglu = cpu_swiglu,
    .swiglu_back = cpu_swiglu_back,
    .kv_floats = cpu_kv_floats,
    .kv_write = cpu_kv_write,
    .attention = cpu_attention,
    .attention_back = cpu_attention_back,
    .logprob = cpu_logprob,
    .logprob_back = cpu_logprob_back,
    .sum_squares = cpu_sum_squares,
    .adamw = cpu_adamw,
};
