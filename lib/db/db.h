/* db.h - Postgres: one connection, parameters never text in SQL, transactions whose end is known.
 *
 * One thread at a time.  It reconnects by itself outside transactions: a call on a lost connection makes one
 * new attempt to connect; failing that, or inside a transaction, it returns ERR_RETRY.  Statements are prepared once
 * per connection, by their text.  Serialization failures and deadlocks are ERR_RETRY too; a broken rule of ours
 * (syntax, unknown table) is ERR_BUG; a violated constraint is ERR_USER with the constraint's name in the text. */
#ifndef DB_DB_H
#define DB_DB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

struct db;

/* conninfo as libpq reads it.  Connects at first use.  application shows in pg_stat_activity. */
struct db *db_create(const char *conninfo, const char *application, struct err *e);
void db_free(struct db *db); /* NULL is fine; rolls back */

/* For whoever must not wait long: from its next connection on a statement may take wait_ms, and a server that is frozen, or
 * cut off without an end of the connection, a second more to say anything.  Then the connection is given up and the call
 * returns ERR_RETRY, as do all calls of the next wait_ms, at once.  (Without: the server's own statement_timeout of a minute,
 * and no bound on its silence.)  Call it before the first statement.  db_copy() is not bounded by it. */
void db_set_patience(struct db *db, int wait_ms);

struct db_result; /* rows, owned by the caller */

/* Text parameters ($1 ...); NULL is SQL NULL.  *out may be NULL when rows are not wanted.
 * Returns the number of rows returned, or affected when the statement returns none; -1 on failure. */
int db_query(struct db *db, const char *sql, const char *const *params, int count, struct db_result **out,
             struct err *e) WARN_UNUSED;
/* The same with a NULL-terminated list of (const char *): cannot pass SQL NULL. */
int db_queryf(struct db *db, struct db_result **out, struct err *e, const char *sql, ...) WARN_UNUSED
    __attribute__((sentinel));

/* Several statements without parameters (migrations). */
int db_script(struct db *db, const char *sql, struct err *e) WARN_UNUSED;

int db_begin(struct db *db, struct err *e) WARN_UNUSED;
/* 0 committed; -1 ERR_RETRY and *unknown true: the answer to COMMIT was lost, look before doing it again. */
int db_commit(struct db *db, bool *unknown, struct err *e) WARN_UNUSED;
void db_rollback(struct db *db); /* fine when there is no transaction */

int db_rows(const struct db_result *r);
const char *db_text(const struct db_result *r, int row, int column); /* "" for NULL; lives as long as r */
bool db_is_null(const struct db_result *r, int row, int column);
int64_t db_int(const struct db_result *r, int row, int column);
bool db_bool(const struct db_result *r, int row, int column);
void db_result_free(struct db_result *r); /* NULL is fine */

/* COPY FROM STDIN: sql is "COPY t (..) FROM STDIN"; text is whole lines in COPY's text format. */
int db_copy(struct db *db, const char *sql, const char *text, size_t size, struct err *e) WARN_UNUSED;
/* Appends s to a COPY line, escaped; out has size bytes; returns the length or -1 when it does not fit. */
int db_copy_escape(const char *s, char *out, size_t size);

#endif
