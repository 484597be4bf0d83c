/* A safetensors file in memory.  Of what is accepted, every value is read. */
#include <assert.h>
#include <stdlib.h>
#include "engine/tensors.h"
#include "fuzz/target.h"

static void read_all(const struct safetensors *st)
{
    struct err e = {0};
    size_t end = 0;
    for (int i = 0; i < safetensors_count(st); i++) {
        const struct safetensors_tensor *t = safetensors_at(st, i);
        assert(t->dtype == DTYPE_UNKNOWN || t->count * safetensors_dtype_size(t->dtype) == t->size);
        assert(safetensors_find(st, t->name) == t);
        end += t->size;
        if (t->rank != 2 || safetensors_check_shape(t, t->shape[0], t->shape[1], &e) < 0) continue;
        float *values = malloc((t->count + 1) * sizeof *values);
        if (values && tensor_widen(t, t->shape[0], t->shape[1], values, &e) < 0)
            assert(e.text[0]);
        free(values);
    }
    size_t size;
    safetensors_bytes(st, &size);
    assert(end <= size);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct err e = {0};
    struct safetensors *st = safetensors_parse(bytes, size, "the input", &e);
    if (st)
        read_all(st);
    else
        assert(e.kind == ERR_USER && e.text[0]);
    safetensors_close(st);
    return 0;
}
