/* sample_out.c - a sample result as protobuf: SampleResponse. */
#include <stdlib.h>
#include <string.h>
#include "pb.h"
#include "tinker.pb-c.h"
#include "wire/payload.h"

typedef TinkerPublic__SampleResponse response_pb;
typedef TinkerPublic__SampledSequence sequence_pb;
typedef TinkerPublic__TopkLogprobs topk_pb;
typedef TinkerPublic__Tensor tensor_pb;

/* Borrows: packing only reads. */
static ProtobufCBinaryData bytes_of(const void *values, size_t n, size_t each)
{
    return (ProtobufCBinaryData){.len = n * each, .data = (uint8_t *)values};
}

static topk_pb topk_of(const struct sample_top *top, int positions)
{
    topk_pb m = TINKER_PUBLIC__TOPK_LOGPROBS__INIT;
    size_t count = (size_t)positions * (size_t)top->k;
    m.token_ids = bytes_of(top->ids, count, 4);
    m.logprobs = bytes_of(top->logprobs, count, 4);
    m.k = (uint32_t)top->k;
    m.length = (uint32_t)positions;
    return m;
}

static sequence_pb sequence_of(const struct sample_sequence *from, topk_pb *top)
{
    sequence_pb m = TINKER_PUBLIC__SAMPLED_SEQUENCE__INIT;
    if (!from->stopped) m.stop_reason = TINKER_PUBLIC__STOP_REASON__STOP_REASON_LENGTH;
    m.tokens = bytes_of(from->tokens, (size_t)from->n, 4);
    if (from->logprobs) {
        m.has_logprobs_case = TINKER_PUBLIC__SAMPLED_SEQUENCE__HAS_LOGPROBS_LOGPROBS;
        m.logprobs = bytes_of(from->logprobs, (size_t)from->n, 4);
    }
    if (from->top.k) {
        *top = topk_of(&from->top, from->n);
        m.topk_sampled_logprobs = top;
    }
    return m;
}

/* ---------------------------------------------------------------- tensors */

static tensor_pb tensor_of(const void *values, int64_t shape[2], bool wide)
{
    tensor_pb m = TINKER_PUBLIC__TENSOR__INIT;
    m.encoding_case = TINKER_PUBLIC__TENSOR__ENCODING_DENSE;
    m.dense = bytes_of(values, (size_t)(shape[0] * shape[1]), wide ? 8 : 4);
    m.dtype = wide ? TINKER_PUBLIC__DTYPE__DTYPE_INT64 : TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32;
    m.n_shape = 2;
    m.shape = shape;
    return m;
}

/* What the message points to and the caller does not have in that form. */
struct parts {
    int64_t *alt_ids, *crow;
    int64_t alt_shape[2], target_shape[2];
    topk_pb prompt_top;
    TinkerPublic__PromptAltTokens alt;
    tensor_pb alt_tokens, alt_logprobs, targets;
    TinkerPublic__SparseCsr csr;
};

static int put_alt(response_pb *m, const struct sample_output *o, struct parts *p, struct err *e)
{
    size_t rows = (size_t)o->prompt_count - 1, count = rows * (size_t)o->alt.k;
    if (!o->alt.k) return 0;
    p->alt_ids = malloc((count + 1) * sizeof *p->alt_ids);
    if (!p->alt_ids) return err_set(e, ERR_RETRY, "out of memory for %zu ids", count);
    for (size_t i = 0; i < count; i++)
        p->alt_ids[i] = o->alt.ids[i];
    p->alt_shape[0] = (int64_t)rows;
    p->alt_shape[1] = o->alt.k;
    p->alt_tokens = tensor_of(p->alt_ids, p->alt_shape, true);
    p->alt_logprobs = tensor_of(o->alt.logprobs, p->alt_shape, false);
    TinkerPublic__PromptAltTokens alt = TINKER_PUBLIC__PROMPT_ALT_TOKENS__INIT;
    p->alt = alt;
    p->alt.tokens = &p->alt_tokens;
    p->alt.logprobs = &p->alt_logprobs;
    m->prompt_alt_tokens = &p->alt;
    return 0;
}

static int put_sparse(const struct sample_output *o, struct parts *p, struct err *e)
{
    const struct sample_targets *t = o->targets;
    size_t rows = (size_t)o->prompt_count - 1, count = (size_t)t->first[rows];
    p->crow = malloc((rows + 1) * sizeof *p->crow);
    if (!p->crow) return err_set(e, ERR_RETRY, "out of memory for %zu rows", rows);
    for (size_t i = 0; i <= rows; i++)
        p->crow[i] = t->first[i];
    TinkerPublic__SparseCsr csr = TINKER_PUBLIC__SPARSE_CSR__INIT;
    p->csr = csr;
    p->csr.values = bytes_of(o->target_logprobs, count, 4);
    p->csr.crow_indices = bytes_of(p->crow, rows + 1, 8);
    p->csr.col_indices = bytes_of(t->column_of, count, 8);
    p->targets.encoding_case = TINKER_PUBLIC__TENSOR__ENCODING_SPARSE_CSR;
    p->targets.sparse_csr = &p->csr;
    return 0;
}

/* The answer has the shape and the layout of what was asked. */
static int put_targets(response_pb *m, const struct sample_output *o, struct parts *p,
                       struct err *e)
{
    const struct sample_targets *t = o->targets;
    if (!t || !t->first) return 0;
    p->target_shape[0] = o->prompt_count - 1;
    p->target_shape[1] = t->columns;
    m->target_prompt_logprobs = &p->targets;
    if (!t->column_of) {
        p->targets = tensor_of(o->target_logprobs, p->target_shape, false);
        return 0;
    }
    tensor_pb none = TINKER_PUBLIC__TENSOR__INIT;
    p->targets = none;
    p->targets.dtype = TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32;
    p->targets.n_shape = 2;
    p->targets.shape = p->target_shape;
    return put_sparse(o, p, e);
}

/* ---------------------------------------------------------------- the whole */

static int put_prompt(response_pb *m, const struct sample_output *o, struct parts *p, struct err *e)
{
    if (o->prompt_logprobs) {
        m->has_prompt_logprobs_case =
            TINKER_PUBLIC__SAMPLE_RESPONSE__HAS_PROMPT_LOGPROBS_PROMPT_LOGPROBS;
        m->prompt_logprobs = bytes_of(o->prompt_logprobs, (size_t)o->prompt_count, 4);
    }
    if (o->prompt_top.k) {
        p->prompt_top = topk_of(&o->prompt_top, o->prompt_count);
        m->topk_prompt_logprobs = &p->prompt_top;
    }
    if (put_alt(m, o, p, e) < 0) return -1;
    return put_targets(m, o, p, e);
}

char *sample_output_encode(const struct sample_output *o, size_t *size, struct err *e)
{
    sequence_pb entries[NUM_SAMPLES_MAX], *pointers[NUM_SAMPLES_MAX];
    topk_pb tops[NUM_SAMPLES_MAX];
    response_pb m = TINKER_PUBLIC__SAMPLE_RESPONSE__INIT;
    struct parts parts = {0};
    char *bytes = NULL;
    if (o->count < 0 || o->count > NUM_SAMPLES_MAX || o->prompt_count < 1) {
        err_set(e, ERR_BUG, "a sample result of %d sequences and %d prompt tokens", o->count,
                o->prompt_count);
        return NULL;
    }
    for (int i = 0; i < o->count; i++) {
        entries[i] = sequence_of(&o->sequences[i], &tops[i]);
        pointers[i] = &entries[i];
    }
    m.n_sequences = (size_t)o->count;
    m.sequences = pointers;
    if (put_prompt(&m, o, &parts, e) == 0) bytes = pb_pack(&m.base, JOB_PAYLOAD_MAX, size, e);
    free(parts.alt_ids);
    free(parts.crow);
    return bytes;
}
