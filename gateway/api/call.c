/* call.c - what every endpoint does: read the body, answer, complain. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "api/answer.h"
#include "api/gateway.h"
#include "base/log.h"
#include "wire/json.h"

enum http_verdict step_verdict(enum step s)
{
    assert(s != STEP_ON);
    return s == STEP_WORKER ? HTTP_WORKER : HTTP_TAKEN;
}

bool call_is_hpcai(const struct call *c)
{
    return manner_of(c->r).hpcai;
}

json_t *call_body(struct call *c)
{
    struct err e = {0};
    size_t size;
    const char *bytes = http_body(c->r, &size);
    json_t *body = wire_json_read(bytes, size, &e);
    if (!body) call_fail(c, &e);
    return body;
}

enum http_verdict call_fail(struct call *c, const struct err *e)
{
    switch (e->kind) {
    case ERR_USER:
        http_answer_error(c->r, 400, "%s", e->text);
        break;
    case ERR_RETRY:
        log_warn("gateway.retry", "text=\"%s\"", e->text);
        if (c->poll)
            answer_busy(c->r, manner_of(c->r), "not now, try again");
        else
            http_answer_retry(c->r, 503, 1, "not now, try again");
        break;
    default:
        log_err("gateway.call", e);
        http_answer_error(c->r, 500, "the service has failed; this was recorded");
    }
    return HTTP_TAKEN;
}

enum http_verdict call_not_found(struct call *c, const char *what, const char *id)
{
    http_answer_error(c->r, 404, "%s \"%s\" not found", what, id);
    return HTTP_TAKEN;
}

enum http_verdict call_answer(struct call *c, int status, json_t *take)
{
    struct err e = {0};
    size_t size = 0;
    char *text = wire_json_write(take, &size, &e);
    if (!text) return call_fail(c, &e);
    http_answer(c->r, status, "application/json", text, size);
    return HTTP_TAKEN;
}

enum http_verdict call_answer_text(struct call *c, const char *text)
{
    struct err e = {0};
    char *copy = strdup(text);
    if (!copy) {
        err_set(&e, ERR_RETRY, "out of memory");
        return call_fail(c, &e);
    }
    http_answer(c->r, 200, "application/json", copy, strlen(copy));
    return HTTP_TAKEN;
}

enum http_verdict call_answer_row(struct call *c, int n, struct db_result *take_rows,
                                  const char *what, const char *id, const struct err *e)
{
    enum http_verdict v;
    if (n < 0)
        v = call_fail(c, e);
    else if (n == 0)
        v = call_not_found(c, what, id);
    else
        v = call_answer_text(c, db_text(take_rows, 0, 0));
    db_result_free(take_rows);
    return v;
}

enum http_verdict call_done(struct call *c)
{
    http_answer(c->r, 204, NULL, NULL, 0);
    return HTTP_TAKEN;
}
