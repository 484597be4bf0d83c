/* db.c - see db.h.
 *
 * A statement is never run a second time on its own: if the connection breaks while one is on its
 * way, nobody knows whether it took effect, so that is the caller's to find out (ERR_RETRY).  What
 * is repaired silently is a connection that was already dead before the call; a look at the socket
 * tells. */
#include "db/db.h"

#include <libpq-fe.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"

#define STATEMENTS_MAX                                                                             \
    256 /* prepared ones a connection; what comes after is sent whole each time */
#define PARAMS_MAX    64
#define COPY_PIECE    (1 << 20)
#define STATEMENT_MS  60000
#define CONNECT_S     5
#define CONNECT_MIN_S 2    /* libpq's */
#define SILENCE_MS    1000 /* more than a statement may take, so that the server speaks first */
#define LOOK_MS       100  /* TLS may hold bytes that the socket does not show */

struct statement {
    char *sql;
    char name[16];
};

struct db {
    char *conninfo;
    char application[64];
    PGconn *conn;
    bool in_tx, tx_lost;
    int patience_ms;  /* 0: none was set */
    bool silent;      /* the server has not answered in that time */
    int64_t again_ms; /* not before: it was silent */
    struct statement statements[STATEMENTS_MAX];
    int statement_count;
};

struct db_result {
    PGresult *pg;
};

struct db *db_create(const char *conninfo, const char *application, struct err *e)
{
    struct db *db = calloc(1, sizeof *db);
    if (db) db->conninfo = strdup(conninfo);
    if (!db || !db->conninfo) {
        free(db);
        err_set(e, ERR_RETRY, "out of memory for a database connection");
        return NULL;
    }
    snprintf(db->application, sizeof db->application, "%s", application);
    return db;
}

static void disconnect(struct db *db)
{
    PQfinish(db->conn);
    db->conn = NULL;
    while (db->statement_count)
        free(db->statements[--db->statement_count].sql);
}

void db_free(struct db *db)
{
    if (!db) return;
    disconnect(db); /* the server rolls back */
    explicit_bzero(db->conninfo, strlen(db->conninfo));
    free(db->conninfo);
    free(db);
}

void db_set_patience(struct db *db, int wait_ms)
{
    db->patience_ms = wait_ms;
}

/* ---------------------------------------------------------------- errors */

/* libpq's texts end in line feeds. */
static int fail(struct err *e, enum err_kind kind, const char *what, const char *text)
{
    size_t n = strlen(text);
    while (n && text[n - 1] == '\n')
        n--;
    return err_set(e, kind, "%s: %.*s", what, (int)n, text);
}

/* By the first letters of SQLSTATE; the first row that fits counts. */
static enum err_kind kind_of(const char *state)
{
    static const struct {
        const char *prefix;
        enum err_kind kind;
    } rules[] = {
        {"08", ERR_RETRY},    /* connection */
        {"40001", ERR_RETRY}, /* serialization failure */
        {"40P01", ERR_RETRY}, /* deadlock */
        {"40003", ERR_RETRY}, /* completion unknown */
        {"53", ERR_RETRY},    /* too many connections, disk full */
        {"55P03", ERR_RETRY}, /* lock not available */
        {"57P0", ERR_RETRY},  /* shutdown, crash, starting up */
        {"57014", ERR_RETRY}, /* statement timeout */
        {"25006", ERR_RETRY}, /* read-only: a standby that is being promoted */
        {"0A000", ERR_RETRY}, /* a cached plan after a migration, see run() */
        {"26000", ERR_RETRY}, /* a prepared statement that is gone, see run() */
        {"22", ERR_USER},     /* a value that does not fit its type */
        {"23", ERR_USER},     /* a constraint */
        {"P0001", ERR_USER},  /* raised by a function */
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!strncmp(state, rules[i].prefix, strlen(rules[i].prefix))) return rules[i].kind;
    return ERR_BUG;
}

static const char *field(const PGresult *r, int code)
{
    const char *s = PQresultErrorField(r, code);
    return s ? s : "";
}

/* The server's primary message only: its detail quotes whole rows. */
static int fail_result(struct db *db, const PGresult *r, struct err *e)
{
    const char *state = field(r, PG_DIAG_SQLSTATE);
    const char *constraint = field(r, PG_DIAG_CONSTRAINT_NAME);
    const char *text = field(r, PG_DIAG_MESSAGE_PRIMARY);
    if (PQstatus(db->conn) == CONNECTION_BAD || !*state) {
        const char *why = db->silent ? "it does not answer"
                          : *text    ? text
                                     : PQerrorMessage(db->conn);
        if (db->in_tx) db->tx_lost = true;
        fail(e, ERR_RETRY, "the connection to Postgres was lost", why);
        disconnect(db);
        return -1;
    }
    if (!strcmp(state, "0A000") || !strcmp(state, "26000")) {
        if (db->in_tx) db->tx_lost = true;
        err_set(e, ERR_RETRY, "postgres %s: %s", state, text);
        disconnect(db); /* forgets what was prepared */
        return -1;
    }
    if (*constraint)
        return err_set(e, kind_of(state), "postgres %s: %s (constraint %s)", state, text,
                       constraint);
    return err_set(e, kind_of(state), "postgres %s: %s", state, text);
}

/* ---------------------------------------------------------------- connection */

/* The server said nothing in its time; the next calls need not find that out again. */
static void was_silent(struct db *db)
{
    db->silent = true;
    db->again_ms = clock_mono_ms() + db->patience_ms;
}

static void on_notice(void *arg, const char *text)
{
    log_debug("db.notice", "text=\"%s\"", text);
}

static int connect_now(struct db *db, struct err *e)
{
    /* What stands before dbname may be overruled by the caller's conninfo, what stands after may
     * not. */
    const char *const names[] = {"connect_timeout",  "tcp_user_timeout", "options", "dbname",
                                 "application_name", "client_encoding",  NULL};
    char connect_s[16], options[48];
    int wait_s = db->patience_ms ? (db->patience_ms + 999) / 1000 : CONNECT_S;
    snprintf(connect_s, sizeof connect_s, "%d", wait_s < CONNECT_MIN_S ? CONNECT_MIN_S : wait_s);
    snprintf(options, sizeof options, "-c statement_timeout=%d",
             db->patience_ms ? db->patience_ms : STATEMENT_MS);
    const char *const values[] = {connect_s,       "20000", options, db->conninfo,
                                  db->application, "UTF8",  NULL};
    int64_t began_ms = clock_mono_ms();
    disconnect(db);
    db->silent = false;
    if (began_ms < db->again_ms)
        return err_set(e, ERR_RETRY, "Postgres did not answer a moment ago");
    db->conn = PQconnectdbParams(names, values, 1);
    if (PQstatus(db->conn) != CONNECTION_OK) {
        if (db->patience_ms && clock_mono_ms() - began_ms >= wait_s * 1000) was_silent(db);
        fail(e, ERR_RETRY, "cannot connect to Postgres",
             db->conn ? PQerrorMessage(db->conn) : "out of memory");
        disconnect(db);
        return -1;
    }
    PQsetNoticeProcessor(db->conn, on_notice, NULL);
    if (db->patience_ms) PQsetnonblocking(db->conn, 1);
    return 0;
}

/* Nothing is asked and nobody listens for notifications, so what can be read here is the server's
 * farewell, and the end of the connection behind it.  (A changed server setting is told this way
 * too: a new connection is cheap.) */
static bool is_alive(struct db *db)
{
    struct pollfd fd = {.fd = PQsocket(db->conn), .events = POLLIN};
    return PQstatus(db->conn) == CONNECTION_OK && poll(&fd, 1, 0) == 0;
}

/* A connection for the next statement, or -1. */
static int ready(struct db *db, struct err *e)
{
    if (db->in_tx) {
        if (!db->tx_lost) return 0;
        return err_set(e, ERR_RETRY, "the transaction was lost with its connection");
    }
    if (db->conn && is_alive(db)) return 0;
    return connect_now(db, e);
}

/* ---------------------------------------------------------------- answers */

/* Until PQgetResult() would not block, or until patience ends. */
static bool is_answered(struct db *db, int64_t until_ms)
{
    while (PQisBusy(db->conn)) {
        int64_t left_ms = until_ms - clock_mono_ms();
        struct pollfd fd = {.fd = PQsocket(db->conn), .events = POLLIN};
        if (left_ms <= 0) return false;
        if (PQflush(db->conn) > 0) fd.events |= POLLOUT;
        poll(&fd, 1, left_ms < LOOK_MS ? (int)left_ms : LOOK_MS);
        if (!PQconsumeInput(db->conn)) return true; /* the result says why */
    }
    return true;
}

/* The last result of what was sent, as PQexec() has it; NULL: it could not be sent, or there was no
 * answer. */
static PGresult *answer(struct db *db, int sent)
{
    int64_t until_ms = clock_mono_ms() + db->patience_ms + SILENCE_MS;
    PGresult *last = NULL;
    while (sent) {
        if (db->patience_ms && !is_answered(db, until_ms)) {
            was_silent(db);
            PQclear(last);
            return NULL;
        }
        PGresult *r = PQgetResult(db->conn);
        if (!r) break;
        PQclear(last);
        last = r;
        ExecStatusType status = PQresultStatus(r);
        if (status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH ||
            PQstatus(db->conn) == CONNECTION_BAD)
            break;
    }
    return last;
}

/* ---------------------------------------------------------------- statements */

/* The name under which sql is prepared, "" when the table is full, NULL on failure. */
static const char *prepare(struct db *db, const char *sql, struct err *e)
{
    for (int i = 0; i < db->statement_count; i++)
        if (!strcmp(db->statements[i].sql, sql)) return db->statements[i].name;
    if (db->statement_count == STATEMENTS_MAX) return "";
    struct statement *s = &db->statements[db->statement_count];
    s->sql = strdup(sql);
    if (!s->sql) {
        err_set(e, ERR_RETRY, "out of memory for a statement");
        return NULL;
    }
    snprintf(s->name, sizeof s->name, "s%d", db->statement_count);
    PGresult *r = answer(db, PQsendPrepare(db->conn, s->name, sql, 0, NULL));
    if (PQresultStatus(r) == PGRES_COMMAND_OK) {
        PQclear(r);
        db->statement_count++;
        return s->name;
    }
    free(s->sql);
    fail_result(db, r, e);
    PQclear(r);
    return NULL;
}

static PGresult *run(struct db *db, const char *sql, const char *const *params, int count,
                     struct err *e)
{
    if (ready(db, e) < 0) return NULL;
    const char *name = prepare(db, sql, e);
    if (!name) return NULL;
    PGresult *r = answer(
        db, *name ? PQsendQueryPrepared(db->conn, name, count, params, NULL, NULL, 0)
                  : PQsendQueryParams(db->conn, sql, count, NULL, params, NULL, NULL, 0));
    ExecStatusType status = PQresultStatus(r);
    if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK) return r;
    if (status == PGRES_COPY_IN || status == PGRES_COPY_OUT) {
        err_set(e, ERR_BUG, "COPY is not for db_query");
        disconnect(db);
        if (db->in_tx) db->tx_lost = true;
    } else {
        fail_result(db, r, e);
    }
    PQclear(r);
    return NULL;
}

int db_query(struct db *db, const char *sql, const char *const *params, int count,
             struct db_result **out, struct err *e)
{
    if (out) *out = NULL;
    if (count < 0 || count > PARAMS_MAX)
        return err_set(e, ERR_BUG, "%d parameters, expected at most %d", count, PARAMS_MAX);
    struct db_result *kept = out ? malloc(sizeof *kept) : NULL;
    if (out && !kept) return err_set(e, ERR_RETRY, "out of memory for a result");
    PGresult *r = run(db, sql, params, count, e);
    if (!r) {
        free(kept);
        return -1;
    }
    int rows = PQresultStatus(r) == PGRES_TUPLES_OK ? PQntuples(r) : atoi(PQcmdTuples(r));
    if (out) {
        kept->pg = r;
        *out = kept;
    } else {
        PQclear(r);
    }
    return rows;
}

int db_queryf(struct db *db, struct db_result **out, struct err *e, const char *sql, ...)
{
    const char *params[PARAMS_MAX];
    int count = 0;
    va_list va;
    va_start(va, sql);
    for (const char *p; (p = va_arg(va, const char *)); count++)
        if (count < PARAMS_MAX) params[count] = p;
    va_end(va);
    return db_query(db, sql, params, count, out, e);
}

/* One text without parameters and without rows. */
static int command(struct db *db, const char *sql, struct err *e)
{
    PGresult *r = answer(db, PQsendQuery(db->conn, sql));
    ExecStatusType status = PQresultStatus(r);
    int result = 0;
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && status != PGRES_EMPTY_QUERY)
        result = fail_result(db, r, e);
    PQclear(r);
    return result;
}

int db_script(struct db *db, const char *sql, struct err *e)
{
    if (ready(db, e) < 0) return -1;
    return command(db, sql, e);
}

/* ---------------------------------------------------------------- transactions */

int db_begin(struct db *db, struct err *e)
{
    if (db->in_tx) return err_set(e, ERR_BUG, "a transaction inside a transaction");
    if (ready(db, e) < 0 || command(db, "BEGIN", e) < 0) return -1;
    db->in_tx = true;
    return 0;
}

/* In a test: something in the transaction has failed and nobody noticed, so that COMMIT is answered
 * ROLLBACK. */
static void spoil(struct db *db)
{
    if (failpoint("db.spoil", db->application, NULL) < 0) PQclear(PQexec(db->conn, "SELECT 1 / 0"));
}

/* COMMIT, with a place to die between the question and its answer. */
static PGresult *commit_result(struct db *db)
{
    if (!PQsendQuery(db->conn, "COMMIT")) return NULL;
    PQflush(db->conn);
    failpoint_pass("db.commit_sent", db->application);
    return answer(db, 1);
}

int db_commit(struct db *db, bool *unknown, struct err *e)
{
    bool ignored;
    if (!unknown) unknown = &ignored;
    *unknown = false;
    if (!db->in_tx) return err_set(e, ERR_BUG, "COMMIT without a transaction");
    bool lost = db->tx_lost;
    db->in_tx = db->tx_lost = false;
    if (lost) return err_set(e, ERR_RETRY, "the transaction was lost with its connection");
    spoil(db);
    PGresult *r = commit_result(db);
    int result = 0;
    if (PQresultStatus(r) != PGRES_COMMAND_OK) {
        const char *state = field(r, PG_DIAG_SQLSTATE);
        *unknown = !*state || !strncmp(state, "08", 2) || !strncmp(state, "57", 2) ||
                   !strcmp(state, "40003") || PQstatus(db->conn) == CONNECTION_BAD;
        result = fail_result(db, r, e);
        if (*unknown && e) e->kind = ERR_RETRY;
    } else if (!strcmp(PQcmdStatus(r), "ROLLBACK")) {
        result = err_set(e, ERR_RETRY, "the transaction had failed and was rolled back");
    }
    PQclear(r);
    return result;
}

void db_rollback(struct db *db)
{
    struct err e = {0};
    if (!db->in_tx) return;
    bool lost = db->tx_lost;
    db->in_tx = db->tx_lost = false;
    if (lost) return;
    if (command(db, "ROLLBACK", &e) < 0) disconnect(db); /* the server does it then */
}

/* ---------------------------------------------------------------- rows */

int db_rows(const struct db_result *r)
{
    return PQntuples(r->pg);
}

const char *db_text(const struct db_result *r, int row, int column)
{
    return PQgetvalue(r->pg, row, column);
}

bool db_is_null(const struct db_result *r, int row, int column)
{
    return PQgetisnull(r->pg, row, column);
}

int64_t db_int(const struct db_result *r, int row, int column)
{
    return strtoll(PQgetvalue(r->pg, row, column), NULL, 10);
}

bool db_bool(const struct db_result *r, int row, int column)
{
    return PQgetvalue(r->pg, row, column)[0] == 't';
}

void db_result_free(struct db_result *r)
{
    if (!r) return;
    PQclear(r->pg);
    free(r);
}

/* ---------------------------------------------------------------- copy */

static bool send_copy(PGconn *conn, const char *text, size_t size)
{
    while (size) {
        int piece = size < COPY_PIECE ? (int)size : COPY_PIECE;
        if (PQputCopyData(conn, text, piece) != 1) return false;
        text += piece;
        size -= (size_t)piece;
    }
    return PQputCopyEnd(conn, NULL) == 1;
}

int db_copy(struct db *db, const char *sql, const char *text, size_t size, struct err *e)
{
    int result = 0;
    if (ready(db, e) < 0) return -1;
    PQsetnonblocking(db->conn, 0); /* the whole text is ours to wait for */
    PGresult *r = PQexec(db->conn, sql);
    ExecStatusType status = PQresultStatus(r);
    if (status != PGRES_COPY_IN) {
        result = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_COPY_OUT
                     ? err_set(e, ERR_BUG, "\"%.60s\" is not COPY ... FROM STDIN", sql)
                     : fail_result(db, r, e);
        PQclear(r);
        if (status == PGRES_COPY_OUT) {
            if (db->in_tx) db->tx_lost = true;
            disconnect(db);
        }
        return result;
    }
    PQclear(r);
    bool sent = send_copy(db->conn, text, size);
    while ((r = PQgetResult(db->conn))) {
        if (PQresultStatus(r) != PGRES_COMMAND_OK && !result) result = fail_result(db, r, e);
        PQclear(r);
        if (!db->conn) return -1;
    }
    if (!sent && !result) {
        if (db->in_tx) db->tx_lost = true;
        result =
            fail(e, ERR_RETRY, "the connection to Postgres was lost", PQerrorMessage(db->conn));
        disconnect(db);
    }
    return result;
}

int db_copy_escape(const char *s, char *out, size_t size)
{
    static const char special[] = "\b\f\n\r\t\v\\";
    static const char letters[] = "bfnrtv\\";
    size_t at = 0;
    for (; *s; s++) {
        const char *found = strchr(special, *s);
        if (at + (found ? 2 : 1) >= size) return -1;
        if (found) out[at++] = '\\';
        out[at++] = found ? letters[found - special] : *s;
    }
    if (at >= size) return -1;
    out[at] = '\0';
    return (int)at;
}
