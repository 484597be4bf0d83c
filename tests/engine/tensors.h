/* tensors.h - for tests: whole tensors of a safetensors file in one call. */
#ifndef TESTS_ENGINE_TENSORS_H
#define TESTS_ENGINE_TENSORS_H

#include "engine/safetensors.h"

/* Each tensor's bytes are at its data. */
static inline int tensors_write(const char *path, const struct safetensors_tensor *tensors,
                                int count, struct err *e)
{
    struct safetensors_writer *w = safetensors_writer_begin(path, tensors, count, e);
    if (!w) return -1;
    for (int i = 0; i < count; i++) {
        size_t size = safetensors_dtype_size(tensors[i].dtype);
        for (int d = 0; d < tensors[i].rank; d++)
            size *= (size_t)tensors[i].shape[d];
        if (safetensors_writer_put(w, tensors[i].data, size, e) == 0) continue;
        safetensors_writer_abort(w);
        return -1;
    }
    return safetensors_writer_finish(w, e);
}

/* Checks t as readers do, and widens all of it into out. */
static inline int tensor_widen(const struct safetensors_tensor *t, int64_t rows, int64_t cols,
                               float *out, struct err *e)
{
    if (safetensors_check_shape(t, rows, cols, e) < 0 || safetensors_check_values(t, false, e) < 0)
        return -1;
    safetensors_read(t, 0, t->count, out);
    return 0;
}

#endif
