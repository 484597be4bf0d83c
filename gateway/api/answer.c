/* answer.c - see answer.h. */
#include "api/answer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/log.h"
#include "wire/ids.h"
#include "wire/json.h"
#include "wire/payload.h"

#define PENDING_MAX 1024

struct manner manner_of(const struct http_request *r)
{
    const char *agent = http_header(r, "User-Agent");
    bool hpcai = agent && (!strncmp(agent, "AsyncHpcAI/", 11) || !strncmp(agent, "HpcAI/", 6));
    return (struct manner){.protobuf = http_accepts(r, "application/x-protobuf"),
                           .pending_408 = agent && !strncmp(agent, "AsyncTinker/", 12),
                           .hpcai = hpcai};
}

/* tinker repeats a poll at once after a 5xx and backs off after 429; hpcai is the other way round.
 */
void answer_busy(struct http_request *r, struct manner m, const char *why)
{
    http_answer_retry(r, m.hpcai ? 503 : 429, 1, "%s", why);
}

static void out_of_memory(struct http_request *r, struct manner m)
{
    answer_busy(r, m, "no memory for the answer now");
}

void answer_failed(struct http_request *r, const char *category, const char *text)
{
    size_t size;
    char *body =
        wire_json_write(json_pack("{s:s, s:s}", "error", text, "category", category), &size, NULL);
    if (body)
        http_answer(r, 200, "application/json", body, size);
    else
        out_of_memory(r, manner_of(r));
}

void answer_pending(struct http_request *r, struct manner m, const char *id,
                    const struct queue_state *q)
{
    struct err e = {0};
    struct buf b;
    size_t size;
    bool paused = *q->reason != '\0';
    bool in_line = m.hpcai && !strcmp(q->state, "paused_capacity"); /* its own word */
    buf_init(&b, PENDING_MAX);
    int rc = buf_printf(&b, &e,
                        "{\"type\": \"try_again\", \"request_id\": \"%s\", \"queue_state\": "
                        "\"%s\"",
                        id, in_line ? "in_queue" : q->state);
    if (rc == 0 && paused) rc = buf_printf(&b, &e, ", \"queue_state_reason\": \"%s\"", q->reason);
    if (rc == 0) rc = buf_printf(&b, &e, "}");
    char *body = rc == 0 ? buf_take(&b, &size) : NULL;
    buf_clear(&b);
    if (body)
        http_answer(r, m.pending_408 ? 408 : 200, "application/json", body, size);
    else
        out_of_memory(r, m);
}

static char *copy_of(const char *bytes, size_t size)
{
    char *copy = malloc(size + 1);
    if (copy) memcpy(copy, bytes, size);
    return copy;
}

void answer_settled(struct http_request *r, struct manner m, const char *id, enum job_kind kind,
                    const struct future *f)
{
    bool protobuf = !strcmp(f->content_type, "application/x-protobuf");
    struct err e = {0};
    size_t size = f->size;
    char *body;

    if (!protobuf || m.protobuf)
        body = copy_of(f->payload, size);
    else if (job_kind_is_train(kind))
        body = train_output_to_json(f->payload, f->size, &size, &e);
    else
        body = sample_output_to_json(f->payload, f->size, &size, &e);
    if (body && size) {
        int status = m.direct && strcmp(f->status, "ok") != 0 ? 400 : 200;
        bool as_protobuf = protobuf && m.protobuf;
        http_answer(r, status, as_protobuf ? "application/x-protobuf" : "application/json", body,
                    size);
        return;
    }
    if (!body && (e.kind == ERR_NONE || e.kind == ERR_RETRY)) {
        out_of_memory(r, m);
        return;
    }
    free(body);
    log_error("gateway.answer", "job=%s text=\"%s\"", id, e.kind ? e.text : "the result is empty");
    answer_failed(r, "server", "the result cannot be shown");
}
