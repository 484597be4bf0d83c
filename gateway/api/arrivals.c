/* arrivals.c - see arrivals.h. */
#include "api/arrivals.h"

#include <stdio.h>
#include <string.h>

#include "seal/seal.h"

#define TRIES_MAX 3

/* The row of runs is locked while its counter moves, so two calls cannot get one number; two copies
 * of one call collide in run_arrivals, and the one that lost reads what the other got. */
#define SQL_NUMBER                                                                                 \
    "WITH known AS (SELECT seq FROM run_arrivals WHERE run_id = $1 AND idempotency = $2), "        \
    "next AS (UPDATE runs SET next_seq = next_seq + 1 WHERE id = $1 AND NOT EXISTS "               \
    "(SELECT 1 FROM known) RETURNING next_seq - 1 AS seq), "                                       \
    "kept AS (INSERT INTO run_arrivals (run_id, idempotency, seq) SELECT $1, $2, seq FROM next) "  \
    "SELECT seq FROM known UNION ALL SELECT seq FROM next"

int arrivals_key(struct call *c, char key[ARRIVAL_KEY_MAX + 1], struct err *e)
{
    const char *given = http_header(c->r, "X-Idempotency-Key");
    uint8_t random[16];
    if (given && strlen(given) > ARRIVAL_KEY_MAX)
        return err_set(e, ERR_USER, "X-Idempotency-Key has %zu bytes, expected at most %d",
                       strlen(given), ARRIVAL_KEY_MAX);
    if (given && *given) {
        strcpy(key, given);
        return 0;
    }
    seal_random(random, sizeof random);
    strcpy(key, "none:");
    seal_hex(random, sizeof random, key + 5);
    return 0;
}

static int ask(struct call *c, const char *run, const char *key, int64_t *seq, struct err *e)
{
    struct db_result *rows = NULL;
    int n = db_queryf(c->db, &rows, e, SQL_NUMBER, run, key, NULL);
    if (n == 1) *seq = db_int(rows, 0, 0);
    db_result_free(rows);
    if (n == 0) return err_set(e, ERR_BUG, "run \"%s\" has no counter", run);
    return n < 0 ? -1 : 0;
}

enum step arrivals_number(struct call *c, const char *run, int64_t *seq)
{
    char key[ARRIVAL_KEY_MAX + 1];
    struct err e = {0};
    int rc = -1;
    if (!c->db) return STEP_WORKER;
    if (arrivals_key(c, key, &e) < 0) {
        call_fail(c, &e);
        return STEP_ANSWERED;
    }
    for (int i = 0; i < TRIES_MAX && rc < 0; i++) {
        err_clear(&e);
        rc = ask(c, run, key, seq, &e);
        if (rc < 0 && e.kind != ERR_USER) break; /* a constraint: the other copy was faster */
    }
    if (rc == 0) return STEP_ON;
    if (e.kind == ERR_USER) err_set(&e, ERR_RETRY, "two copies of one call met too often");
    call_fail(c, &e);
    return STEP_ANSWERED;
}
