/* named.c - see named.h. */
#include "api/named.h"

#include <string.h>

static const struct {
    const char *segment, *kind;
} kinds[] = {{"weights", "training"},
             {"sampler_weights", "sampler"},
             {"external_weights", "external"}};
#define KINDS (sizeof kinds / sizeof *kinds)

const char *named_kind_of(const char *segment)
{
    for (size_t i = 0; i < KINDS; i++)
        if (!strcmp(segment, kinds[i].segment)) return kinds[i].kind;
    return NULL;
}

static const char *same_word(const char *kind)
{
    for (size_t i = 0; i < KINDS; i++)
        if (!strcmp(kind, kinds[i].kind)) return kinds[i].kind;
    return NULL;
}

/* The only kind that has a checkpoint of that name; how many there are. */
static int kinds_of(struct call *c, struct named *out, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(c->db, &rows, e,
                      "SELECT DISTINCT kind FROM checkpoints WHERE run_id = $1 AND name = $2 AND "
                      "account_id = $3 AND ($4 = '' OR kind = $4)",
                      out->run, out->name, c->account, out->kind ? out->kind : "", NULL);
    if (n == 1) out->kind = same_word(db_text(rows, 0, 0));
    db_result_free(rows);
    return n;
}

enum step named_read(struct call *c, struct named *out)
{
    struct err e = {0};
    const char *first = http_star(c->r, 1), *second = http_star(c->r, 2);
    int n = 0;
    *out = (struct named){.run = http_star(c->r, 0), .name = second ? second : first};
    if (second) out->kind = named_kind_of(first);
    if (!second || out->kind) n = kinds_of(c, out, &e);
    if (n == 1) return STEP_ON;
    if (n < 0)
        call_fail(c, &e);
    else if (n == 0)
        call_not_found(c, "checkpoint", out->name);
    else
        http_answer_error(c->r, 400,
                          "run \"%s\" has checkpoints \"%s\" of several kinds, expected one of "
                          "weights/%s, sampler_weights/%s",
                          out->run, out->name, out->name, out->name);
    return STEP_ANSWERED;
}
