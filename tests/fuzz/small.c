/* The small JSON payloads, and a batch plan.  The first byte chooses.  What was decoded must come back
 * from its own encoding. */
#include <assert.h>
#include <stdlib.h>
#include "fuzz/target.h"
#include "wire/batch.h"
#include "wire/payload.h"

static void create(const uint8_t *bytes, size_t size, struct err *e)
{
    size_t length;
    struct create_request *r = create_request_decode(bytes, size, e);
    if (!r) return;
    char *text = create_request_encode(r, &length, e);
    struct create_request *again = text ? create_request_decode(text, length, e) : NULL;
    assert(again && again->rank == r->rank && again->seed == r->seed);
    free(text);
    free(again);
    free(r);
}

static void save(const uint8_t *bytes, size_t size, struct err *e)
{
    size_t length;
    struct save_request r = {0}, again = {0};
    if (save_request_decode(bytes, size, &r, e) == 0) {
        char *text = save_request_encode(&r, &length, e);
        assert(text && save_request_decode(text, length, &again, e) == 0);
        assert(again.ttl_seconds == r.ttl_seconds && again.overwrite == r.overwrite);
        save_request_clear(&again);
        free(text);
    }
    save_request_clear(&r);
}

static void load(const uint8_t *bytes, size_t size, struct err *e)
{
    size_t length;
    struct load_request r = {0}, again = {0};
    if (load_request_decode(bytes, size, &r, e) < 0) return;
    char *text = load_request_encode(&r, &length, e);
    assert(text && load_request_decode(text, length, &again, e) == 0);
    assert(again.checkpoint.seq == r.checkpoint.seq && again.with_optimizer == r.with_optimizer);
    free(text);
}

static void plan(const uint8_t *bytes, size_t size, struct err *e)
{
    size_t length;
    struct batch *b = batch_decode((const char *)bytes, size, e);
    if (!b) return;
    assert(b->count >= 0 && b->count <= BATCH_JOBS_MAX);
    char *text = batch_encode(b, &length, e);
    assert(text);
    free(text);
    batch_free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct err e = {0};
    struct optim_request optim;
    char *text = NULL;
    if (size < 1) return 0;
    switch (bytes[0] % 6) {
    case 0: create(bytes + 1, size - 1, &e); break;
    case 1: save(bytes + 1, size - 1, &e); break;
    case 2: load(bytes + 1, size - 1, &e); break;
    case 3: plan(bytes + 1, size - 1, &e); break;
    case 4:
        if (optim_request_decode(bytes + 1, size - 1, &optim, &e) < 0) assert(e.text[0]);
        break;
    default:
        if (reject_decode(bytes + 1, size - 1, &text, &e) == 0) free(text);
    }
    return 0;
}
