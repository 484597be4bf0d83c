/* batch.c - see batch.h. */
#include "wire/batch.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "wire/json.h"
#include "wire/text.h"

/* Two ids and four numbers an entry, with room for JSON's own. */
#define BATCH_BYTES_MAX (BATCH_JOBS_MAX * (2 * ID_SIZE + 256))

struct batch *batch_create(int64_t plan, int count, struct err *e)
{
    if (count < 0 || count > BATCH_JOBS_MAX) {
        err_set(e, ERR_USER, "a plan of %d jobs, expected at most %d", count, BATCH_JOBS_MAX);
        return NULL;
    }
    struct batch *b = calloc(1, sizeof *b);
    if (b) b->entries = calloc((size_t)count + 1, sizeof *b->entries);
    if (!b || !b->entries) {
        free(b);
        err_set(e, ERR_RETRY, "out of memory for a plan of %d jobs", count);
        return NULL;
    }
    b->plan = plan;
    b->count = count;
    return b;
}

void batch_free(struct batch *b)
{
    if (!b) return;
    free(b->entries);
    free(b);
}

char *batch_encode(const struct batch *b, size_t *size, struct err *e)
{
    json_t *jobs = json_array();
    for (int i = 0; i < b->count; i++) {
        const struct batch_entry *it = &b->entries[i];
        json_t *j =
            json_pack("{s:s, s:i, s:I, s:s, s:s, s:I}", "stream", stream_name(it->stream),
                      "partition", it->partition, "offset", (json_int_t)it->offset, "job_id",
                      it->job_id, "run", it->run, "tokens", (json_int_t)it->tokens);
        if (json_array_append_new(jobs, j) < 0) {
            json_decref(jobs);
            err_set(e, ERR_RETRY, "out of memory for a plan of %d jobs", b->count);
            return NULL;
        }
    }
    return wire_json_write(json_pack("{s:I, s:o}", "plan", (json_int_t)b->plan, "jobs", jobs), size,
                           e);
}

static int entry_decode(struct batch_entry *out, const json_t *j, struct err *e)
{
    char stream[16] = "";
    json_int_t partition = 0, offset = 0, tokens = 0;
    if (!json_is_object(j))
        return err_set(e, ERR_USER, "%s, expected an object", wire_json_type(j));
    if (wire_json_text(j, "", "stream", true, stream, sizeof stream, e) < 0 ||
        wire_json_int(j, "", "partition", true, 0, INT_MAX, &partition, e) < 0 ||
        wire_json_int(j, "", "offset", true, 0, INT64_MAX, &offset, e) < 0 ||
        wire_json_int(j, "", "tokens", true, 0, INT64_MAX, &tokens, e) < 0 ||
        wire_json_text(j, "", "job_id", true, out->job_id, sizeof out->job_id, e) < 0 ||
        wire_json_text(j, "", "run", true, out->run, sizeof out->run, e) < 0)
        return -1;
    if (!strcmp(stream, stream_name(STREAM_SAMPLE)))
        out->stream = STREAM_SAMPLE;
    else if (!strcmp(stream, stream_name(STREAM_TRAIN)))
        out->stream = STREAM_TRAIN;
    else
        return err_set(e, ERR_USER, "stream is \"%s\", expected train or sample", stream);
    out->partition = (int)partition;
    out->offset = offset;
    out->tokens = tokens;
    return 0;
}

struct batch *batch_decode(const char *bytes, size_t size, struct err *e)
{
    struct batch *b = NULL;
    json_int_t plan = 0;
    if (size > BATCH_BYTES_MAX) {
        err_set(e, ERR_USER, "a plan of %zu bytes, expected at most %d", size, BATCH_BYTES_MAX);
        return NULL;
    }
    json_t *root = wire_json_read(bytes, size, e);
    if (!root) return NULL;
    const json_t *jobs = json_object_get(root, "jobs");
    if (wire_json_int(root, "", "plan", true, 0, INT64_MAX, &plan, e) < 0) goto fail;
    if (!json_is_array(jobs) || json_array_size(jobs) > BATCH_JOBS_MAX) {
        err_set(e, ERR_USER, "jobs is not a list of at most %d", BATCH_JOBS_MAX);
        goto fail;
    }
    b = batch_create(plan, (int)json_array_size(jobs), e);
    if (!b) goto fail;
    for (int i = 0; i < b->count; i++) {
        if (entry_decode(&b->entries[i], json_array_get(jobs, (size_t)i), e) < 0) {
            err_prefix(e, "job %d of plan %lld", i, (long long)plan);
            goto fail;
        }
    }
    json_decref(root);
    return b;
fail:
    json_decref(root);
    batch_free(b);
    return NULL;
}
