/* sample_json.c - a SampleResponse as JSON text, for clients that asked for JSON.
 *
 * The message comes from the log, so its pieces are checked against each other before they are read
 * together.  Keys of what was not asked for are left out: old clients know only the first two. */
#include <stdlib.h>
#include <string.h>
#include "numbers.h"
#include "pb.h"
#include "tinker.pb-c.h"
#include "wire/payload.h"

#define NO_LOGPROB (-99999.0f)

typedef TinkerPublic__SampleResponse response_pb;
typedef TinkerPublic__SampledSequence sequence_pb;
typedef TinkerPublic__TopkLogprobs topk_pb;
typedef TinkerPublic__Tensor tensor_pb;

static int text(struct buf *b, const char *s, struct err *e)
{
    return buf_append(b, s, strlen(s), e);
}

/* ---------------------------------------------------------------- top k */

/* [[id, logprob], ..] of a position without its filler; null when it is all filler. */
static int add_position(struct buf *b, const char *ids, const char *logprobs, uint32_t k,
                        struct err *e)
{
    uint32_t n = k;
    for (; n > 0; n--) {
        float logprob;
        int32_t id;
        memcpy(&id, ids + 4 * (size_t)(n - 1), 4);
        memcpy(&logprob, logprobs + 4 * (size_t)(n - 1), 4);
        if (id || logprob != NO_LOGPROB) break;
    }
    if (n == 0) return text(b, "null", e);
    for (uint32_t j = 0; j < n; j++) {
        int32_t id;
        memcpy(&id, ids + 4 * (size_t)j, 4);
        if (buf_printf(b, e, "%s[%d,", j ? "," : "[", id) < 0 ||
            numbers_add_float(b, logprobs + 4 * (size_t)j, e) < 0 || text(b, "]", e) < 0)
            return -1;
    }
    return text(b, "]", e);
}

static int add_topk(struct buf *b, const topk_pb *m, struct err *e)
{
    uint64_t count = (uint64_t)m->k * m->length;
    if (m->token_ids.len != m->logprobs.len || m->token_ids.len % 4 ||
        m->token_ids.len / 4 != count || (!m->k && m->length))
        return err_set(e, ERR_USER, "a sample result has %zu bytes for the top %u of %u positions",
                       m->token_ids.len, m->k, m->length);
    if (text(b, "[", e) < 0) return -1;
    for (size_t i = 0; i < m->length; i++) {
        size_t at = 4 * i * m->k;
        if ((i && text(b, ",", e) < 0) ||
            add_position(b, (const char *)m->token_ids.data + at,
                         (const char *)m->logprobs.data + at, m->k, e) < 0)
            return -1;
    }
    return text(b, "]", e);
}

/* ---------------------------------------------------------------- tensors */

static int bad_tensor(const tensor_pb *m, struct err *e)
{
    return err_set(e, ERR_USER, "a sample result has a tensor of type %d and %zu dimensions",
                   (int)m->dtype, m->n_shape);
}

static int add_values(struct buf *b, const ProtobufCBinaryData *values, bool wide, struct err *e)
{
    if (text(b, "{\"data\":", e) < 0) return -1;
    return wide ? numbers_add_int64s(b, values->data, values->len / 8, e)
                : numbers_add_floats(b, values->data, values->len / 4, e);
}

static int add_sparse(struct buf *b, const TinkerPublic__SparseCsr *m, struct err *e)
{
    if (!m || m->crow_indices.len % 8 || m->col_indices.len % 8)
        return err_set(e, ERR_USER, "a sample result has a damaged sparse tensor");
    if (text(b, ",\"sparse_crow_indices\":", e) < 0 ||
        numbers_add_int64s(b, m->crow_indices.data, m->crow_indices.len / 8, e) < 0 ||
        text(b, ",\"sparse_col_indices\":", e) < 0)
        return -1;
    return numbers_add_int64s(b, m->col_indices.data, m->col_indices.len / 8, e);
}

static int add_tensor(struct buf *b, const tensor_pb *m, struct err *e)
{
    if (!m) return text(b, "null", e);
    bool wide = m->dtype == TINKER_PUBLIC__DTYPE__DTYPE_INT64;
    bool sparse = m->encoding_case == TINKER_PUBLIC__TENSOR__ENCODING_SPARSE_CSR && m->sparse_csr;
    const ProtobufCBinaryData *values = sparse ? &m->sparse_csr->values : &m->dense;
    if ((!wide && m->dtype != TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32) ||
        (!sparse && m->encoding_case != TINKER_PUBLIC__TENSOR__ENCODING_DENSE) ||
        values->len % (wide ? 8 : 4))
        return bad_tensor(m, e);
    if (add_values(b, values, wide, e) < 0 ||
        buf_printf(b, e, ",\"dtype\":\"%s\",\"shape\":", wide ? "int64" : "float32") < 0 ||
        numbers_add_int64s(b, m->shape, m->n_shape, e) < 0)
        return -1;
    if (sparse && add_sparse(b, m->sparse_csr, e) < 0) return -1;
    return text(b, "}", e);
}

/* ---------------------------------------------------------------- the whole */

static int add_sequence(struct buf *b, const sequence_pb *s, struct err *e)
{
    bool has = s->has_logprobs_case == TINKER_PUBLIC__SAMPLED_SEQUENCE__HAS_LOGPROBS_LOGPROBS;
    bool stopped = s->stop_reason == TINKER_PUBLIC__STOP_REASON__STOP_REASON_STOP;
    if (s->tokens.len % 4 || (has && s->logprobs.len != s->tokens.len))
        return err_set(e, ERR_USER, "a sample result has %zu bytes of tokens", s->tokens.len);
    if (buf_printf(b, e, "{\"stop_reason\":\"%s\",\"tokens\":", stopped ? "stop" : "length") < 0 ||
        numbers_add_int32s(b, s->tokens.data, s->tokens.len / 4, e) < 0 ||
        text(b, ",\"logprobs\":", e) < 0)
        return -1;
    int bad = has ? numbers_add_floats(b, s->logprobs.data, s->logprobs.len / 4, e)
                  : text(b, "null", e);
    if (bad < 0) return -1;
    if (s->topk_sampled_logprobs && (text(b, ",\"topk_logprobs\":", e) < 0 ||
                                     add_topk(b, s->topk_sampled_logprobs, e) < 0))
        return -1;
    return text(b, "}", e);
}

static int add_prompt(struct buf *b, const response_pb *m, struct err *e)
{
    bool has = m->has_prompt_logprobs_case ==
               TINKER_PUBLIC__SAMPLE_RESPONSE__HAS_PROMPT_LOGPROBS_PROMPT_LOGPROBS;
    if (has && m->prompt_logprobs.len % 4)
        return err_set(e, ERR_USER, "a sample result has %zu bytes of prompt_logprobs",
                       m->prompt_logprobs.len);
    if (text(b, ",\"prompt_logprobs\":", e) < 0) return -1;
    return has ? numbers_add_floats(b, m->prompt_logprobs.data, m->prompt_logprobs.len / 4, e)
               : text(b, "null", e);
}

static int add_scores(struct buf *b, const response_pb *m, struct err *e)
{
    if (m->topk_prompt_logprobs && (text(b, ",\"topk_prompt_logprobs\":", e) < 0 ||
                                    add_topk(b, m->topk_prompt_logprobs, e) < 0))
        return -1;
    if (m->target_prompt_logprobs && (text(b, ",\"target_prompt_logprobs\":", e) < 0 ||
                                      add_tensor(b, m->target_prompt_logprobs, e) < 0))
        return -1;
    if (!m->prompt_alt_tokens) return 0;
    if (text(b, ",\"prompt_alt_tokens\":{\"tokens\":", e) < 0 ||
        add_tensor(b, m->prompt_alt_tokens->tokens, e) < 0 || text(b, ",\"logprobs\":", e) < 0 ||
        add_tensor(b, m->prompt_alt_tokens->logprobs, e) < 0)
        return -1;
    return text(b, "}", e);
}

static int add_response(struct buf *b, const response_pb *m, struct err *e)
{
    if (text(b, "{\"sequences\":[", e) < 0) return -1;
    for (size_t i = 0; i < m->n_sequences; i++)
        if ((i && text(b, ",", e) < 0) || add_sequence(b, m->sequences[i], e) < 0) return -1;
    if (text(b, "]", e) < 0 || add_prompt(b, m, e) < 0 || add_scores(b, m, e) < 0) return -1;
    return text(b, "}", e);
}

char *sample_output_to_json(const void *bytes, size_t size, size_t *json_size, struct err *e)
{
    struct pb_heap heap;
    struct buf b;
    char *json = NULL;
    pb_heap_init(&heap);
    buf_init(&b, NUMBERS_JSON_MAX);
    const response_pb *m =
        pb_unpack(&heap, &tinker_public__sample_response__descriptor, bytes, size, e);
    if (m && add_response(&b, m, e) == 0) json = buf_take(&b, json_size);
    buf_clear(&b);
    pb_heap_clear(&heap);
    return json;
}
