/* A train request.  The first byte chooses the encoding. */
#include <assert.h>
#include "fuzz/target.h"
#include "wire/payload.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct err e = {0};
    struct train_request peeked = {0};
    bool malformed = false;
    if (size < 1) return 0;
    enum content content = bytes[0] & 1 ? CONTENT_PROTOBUF : CONTENT_JSON;
    int peek = train_request_peek(content, bytes + 1, size - 1, &peeked, &e);
    err_clear(&e);
    struct train_request *r = train_request_decode(content, bytes + 1, size - 1, &malformed, &e);
    if (r) { /* admission and worker see the same request */
        assert(peek == 0);
        assert(peeked.seq == r->seq && peeked.forward_only == r->forward_only);
        assert(peeked.tokens == r->tokens);
        assert(r->count > 0 && r->count <= DATUMS_MAX && r->tokens <= REQUEST_TOKENS_MAX);
    } else {
        assert(e.kind != ERR_NONE && e.text[0]);
    }
    train_request_free(r);
    return 0;
}
