/* A record of a job or result topic.  The input: one byte that chooses, then headers as length (1
 * byte), name, length (2 bytes, little endian), value, until a name has no length; the rest is the record's
 * value.  A tw_digest of "=" stands for the right one, which no mutation would hit. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "fuzz/target.h"
#include "seal/seal.h"
#include "wire/result.h"

#define HEADERS_MAX 24
#define MODEL       "tinworks/tiny" /* what the seeds are of */

struct reader {
    const uint8_t *at, *end;
    char texts[HEADERS_MAX * 2][1024];
    struct header headers[HEADERS_MAX];
    int count;
};

/* size bytes as text; 0 when they are not there. */
static int take(struct reader *r, char *out, size_t size)
{
    if ((size_t)(r->end - r->at) < size || size >= sizeof r->texts[0]) return 0;
    memcpy(out, r->at, size);
    out[size] = '\0';
    r->at += size;
    return 1;
}

static void read_headers(struct reader *r)
{
    while (r->count < HEADERS_MAX && r->at < r->end && *r->at) {
        char *name = r->texts[r->count * 2], *value = r->texts[r->count * 2 + 1];
        size_t size = *r->at++;
        if (!take(r, name, size) || r->end - r->at < 2) return;
        size = r->at[0] | (size_t)r->at[1] << 8;
        r->at += 2;
        if (!take(r, value, size)) return;
        r->headers[r->count++] = (struct header){name, value};
    }
    if (r->at < r->end) r->at++;
}

static void set_digest(struct reader *r, char digest[SEAL_SHA256_HEX_SIZE])
{
    seal_sha256_hex(r->at, (size_t)(r->end - r->at), digest);
    for (int i = 0; i < r->count; i++)
        if (!strcmp(r->headers[i].name, "tw_digest") && !strcmp(r->headers[i].value, "="))
            r->headers[i].value = digest;
}

static void job(const struct reader *r, enum stream stream, struct err *e)
{
    struct job_scratch scratch;
    struct header h[WIRE_HEADERS_MAX];
    size_t size = (size_t)(r->end - r->at);
    struct job *j = job_decode(r->headers, r->count, r->at, size, stream, e);
    if (!j) {
        assert(e->text[0]);
        return;
    }
    int n = job_headers(j, &scratch, h);
    struct job *again = job_decode(h, n, j->payload, j->size, stream, e);
    assert(again && !strcmp(again->id, j->id) && again->seq == j->seq && again->kind == j->kind);
    job_free(again);
    job_free(j);
}

static void result(const struct reader *r, enum stream stream, struct err *e)
{
    struct result_scratch scratch;
    struct header h[WIRE_HEADERS_MAX];
    size_t size = (size_t)(r->end - r->at);
    struct result *x = result_decode(r->headers, r->count, r->at, size, MODEL, stream, e);
    if (!x) {
        assert(e->text[0]);
        return;
    }
    int n = result_headers(x, &scratch, h);
    struct result *again = result_decode(h, n, x->payload, x->size, MODEL, stream, e);
    assert(again && again->barrier == x->barrier && again->epoch == x->epoch);
    assert(again->status == x->status && again->usage.train == x->usage.train);
    result_free(again);
    result_free(x);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct err e = {0};
    char digest[SEAL_SHA256_HEX_SIZE];
    if (size < 1) return 0;
    struct reader *r = calloc(1, sizeof *r);
    if (!r) return 0;
    r->at = bytes + 1;
    r->end = bytes + size;
    read_headers(r);
    set_digest(r, digest);
    enum stream stream = bytes[0] & 1 ? STREAM_SAMPLE : STREAM_TRAIN;
    if (bytes[0] & 2)
        result(r, stream, &e);
    else
        job(r, stream, &e);
    free(r);
    return 0;
}
