/* train.c - a train request as a value: made, checked and freed; train_pb.c and train_json.c read
 * it. */
#include "train.h"

#include <stdlib.h>
#include <string.h>
#include "wire/text.h"

enum input train_input_of(const char *name)
{
    static const char *const names[] = {"target_tokens",      "weights",
                                        "logprobs",           "advantages",
                                        "clip_low_threshold", "clip_high_threshold",
                                        "sequence_ratio_mask"};
    for (int i = 0; i < INPUT_IGNORED; i++)
        if (!strcmp(name, names[i])) return (enum input)i;
    return INPUT_IGNORED;
}

int train_set_count(struct train_request *r, size_t count, struct err *e)
{
    if (!count || count > DATUMS_MAX)
        return err_set(e, ERR_USER, "data has %zu datums, expected 1 to %d", count, DATUMS_MAX);
    r->datums = calloc(count, sizeof *r->datums);
    if (!r->datums) return err_set(e, ERR_RETRY, "out of memory for %zu datums", count);
    r->count = (int)count;
    return 0;
}

int train_set_length(struct train_request *r, struct train_datum *d, size_t n, struct err *e)
{
    if (!n || n > DATUM_TOKENS_MAX)
        return err_set(e, ERR_USER, "model_input has %zu tokens, expected 1 to %d", n,
                       DATUM_TOKENS_MAX);
    if (r->tokens + (int64_t)n > REQUEST_TOKENS_MAX)
        return err_set(e, ERR_USER, "the request has more than %d tokens", REQUEST_TOKENS_MAX);
    d->tokens = malloc(n * sizeof *d->tokens);
    if (!d->tokens) return err_set(e, ERR_RETRY, "out of memory for %zu tokens", n);
    d->n = (int)n;
    r->tokens += (int64_t)n;
    return 0;
}

int train_add_setting(struct train_request *r, const char *key, bool text, double number,
                      struct err *e)
{
    size_t size = strlen(key) + 1;
    if (size > sizeof r->settings->key)
        return err_set(e, ERR_USER, "loss_fn_config has a key of %zu bytes, expected at most %zu",
                       size - 1, sizeof r->settings->key - 1);
    if (r->setting_count == LOSS_SETTINGS_MAX)
        return err_set(e, ERR_USER, "loss_fn_config has more than %d entries", LOSS_SETTINGS_MAX);
    struct loss_setting *s = &r->settings[r->setting_count++];
    memcpy(s->key, key, size);
    s->text = text;
    s->number = text ? 0 : number;
    return 0;
}

int train_set_loss(struct train_request *r, const char *loss, struct err *e)
{
    size_t size = strlen(loss) + 1;
    if (size == 1 || size > sizeof r->loss)
        return err_set(e, ERR_USER, "loss_fn is \"%.60s\", expected the name of a loss", loss);
    memcpy(r->loss, loss, size);
    return 0;
}

int train_set_run(struct train_request *r, const char *run, int64_t seq, struct err *e)
{
    if (!text_is_id(run, sizeof r->run))
        return err_set(e, ERR_USER, "model_id is \"%.100s\", expected the id of a run", run);
    if (seq < 0) return err_set(e, ERR_USER, "seq_id is %lld, expected 1 or more", (long long)seq);
    memcpy(r->run, run, strlen(run) + 1);
    r->seq = seq;
    return 0;
}

struct train_request *train_request_decode(enum content content, const void *bytes, size_t size,
                                           bool *malformed, struct err *e)
{
    *malformed = false;
    if (size > JOB_PAYLOAD_MAX) {
        *malformed = true;
        err_set(e, ERR_USER, "a request of %zu bytes, expected at most %u", size, JOB_PAYLOAD_MAX);
        return NULL;
    }
    struct train_request *r = calloc(1, sizeof *r);
    if (!r) {
        err_set(e, ERR_RETRY, "out of memory for a request");
        return NULL;
    }
    int bad = content == CONTENT_PROTOBUF ? train_decode_pb(r, bytes, size, malformed, e)
                                          : train_decode_json(r, bytes, size, malformed, e);
    if (bad < 0) {
        train_request_free(r);
        return NULL;
    }
    return r;
}

void train_request_free(struct train_request *r)
{
    if (!r) return;
    for (int i = 0; i < r->count; i++) {
        struct train_datum *d = &r->datums[i];
        free(d->tokens);
        free(d->targets);
        free(d->weights);
        free(d->logprobs);
        free(d->advantages);
        free(d->clip_low);
        free(d->clip_high);
        free(d->sequence_ratio_mask);
    }
    free(r->datums);
    free(r);
}

int train_request_peek(enum content content, const void *bytes, size_t size,
                       struct train_request *out, struct err *e)
{
    *out = (struct train_request){0};
    if (size > JOB_PAYLOAD_MAX)
        return err_set(e, ERR_USER, "a request of %zu bytes, expected at most %u", size,
                       JOB_PAYLOAD_MAX);
    return content == CONTENT_PROTOBUF ? train_peek_pb(out, bytes, size, e)
                                       : train_peek_json(out, bytes, size, e);
}
