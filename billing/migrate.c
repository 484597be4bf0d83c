/* migrate.c - the database's history: files NNNN_name.sql, applied in order, each once, never back.
 *
 * A file and its row in schema_migrations are one transaction under one lock, so two that migrate
 * at once wait for each other and a failure leaves the file wholly undone.  A file that changed
 * after it was applied is an error: what a database looks like must follow from its list of
 * versions. */
#include "commands.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "seal/seal.h"

#define FILES_MAX    1000
#define SQL_SIZE_MAX (4u << 20)
#define NAME_SIZE    128

struct migration {
    int version;
    char name[NAME_SIZE]; /* the file's */
    char path[512];
    char sha256[SEAL_SHA256_HEX_SIZE];
};

static int by_version(const void *a, const void *b)
{
    const struct migration *x = a, *y = b;
    return x->version - y->version;
}

/* "0001_init.sql" -> 1 */
static int read_name(const char *file, int *version, struct err *e)
{
    size_t n = strlen(file);
    bool good = n > 9 && n < NAME_SIZE && file[4] == '_' && strspn(file, "0123456789") == 4;
    *version = good ? atoi(file) : 0;
    if (*version) return 0;
    return err_set(e, ERR_USER, "migration \"%s\", expected a name like 0001_init.sql", file);
}

static bool is_sql(const char *file)
{
    size_t n = strlen(file);
    return n > 4 && !strcmp(file + n - 4, ".sql");
}

static int read_folder(const char *dir, struct migration *out, struct err *e)
{
    int count = 0;
    DIR *d = opendir(dir);
    if (!d)
        return err_set(e, ERR_USER, "could not open the migrations' folder \"%s\": %s", dir,
                       strerror(errno));
    for (struct dirent *it; (it = readdir(d));) {
        if (!is_sql(it->d_name)) continue;
        struct migration *m = &out[count++];
        if (count == FILES_MAX) {
            count = err_set(e, ERR_USER, "more than %d migrations in \"%s\"", FILES_MAX - 1, dir);
            break;
        }
        if (read_name(it->d_name, &m->version, e) < 0) {
            count = -1;
            break;
        }
        memcpy(m->name, it->d_name, strlen(it->d_name) + 1);
        snprintf(m->path, sizeof m->path, "%s/%s", dir, m->name);
        if (seal_sha256_file(m->path, m->sha256, e) < 0) {
            count = -1;
            break;
        }
    }
    closedir(d);
    if (count < 0) return -1;
    qsort(out, (size_t)count, sizeof *out, by_version);
    for (int i = 0; i < count; i++)
        if (out[i].version != i + 1)
            return err_set(e, ERR_USER, "migration \"%s\" comes as number %d of \"%s\"",
                           out[i].name, i + 1, dir);
    if (!count) return err_set(e, ERR_USER, "there is no migration in \"%s\"", dir);
    return count;
}

static char *read_sql(const struct migration *m, struct err *e)
{
    struct buf text;
    size_t size;
    buf_init(&text, SQL_SIZE_MAX);
    FILE *f = fopen(m->path, "re");
    if (!f) {
        err_set(e, ERR_USER, "could not open \"%s\": %s", m->path, strerror(errno));
        return NULL;
    }
    char piece[4096];
    for (size_t n; (n = fread(piece, 1, sizeof piece, f)) > 0;)
        if (buf_append(&text, piece, n, e) < 0) break;
    bool bad = ferror(f) || text.size == 0;
    fclose(f);
    char now[SEAL_SHA256_HEX_SIZE] = "";
    if (!bad) seal_sha256_hex(text.data, text.size, now);
    if (strcmp(now, m->sha256)) {
        err_set(e, ERR_USER, "could not read \"%s\" whole", m->path);
        buf_clear(&text);
        return NULL;
    }
    return buf_take(&text, &size);
}

/* What was applied must be what lies in the folder. */
static int compare(const struct migration *files, int count, const struct db_result *applied,
                   struct err *e)
{
    for (int i = 0; i < db_rows(applied); i++) {
        int version = (int)db_int(applied, i, 0);
        if (version > count)
            return err_set(
                e, ERR_USER,
                "the database has migration %d (\"%s\"), which this program does not know", version,
                db_text(applied, i, 1));
        const struct migration *m = &files[version - 1];
        if (strcmp(m->sha256, db_text(applied, i, 2)))
            return err_set(
                e, ERR_USER,
                "migration \"%s\" has changed since it was applied (then %.12s, now %.12s)",
                m->name, db_text(applied, i, 2), m->sha256);
    }
    return 0;
}

static int lock_and_compare(struct db *db, const struct migration *files, int count, int *done,
                            struct err *e)
{
    struct db_result *rows = NULL;
    if (db_script(db,
                  "SET LOCAL statement_timeout = 0;"
                  "SELECT pg_advisory_xact_lock(8387794);" /* any number that stays the same */
                  "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY, "
                  "name text NOT NULL, sha256 text NOT NULL, "
                  "applied_at timestamptz NOT NULL DEFAULT now())",
                  e) < 0)
        return -1;
    *done = db_queryf(db, &rows, e,
                      "SELECT version, name, sha256 FROM schema_migrations ORDER BY version", NULL);
    if (*done < 0) return -1;
    int rc = compare(files, count, rows, e);
    db_result_free(rows);
    return rc;
}

static int apply(struct db *db, const struct migration *m, struct err *e)
{
    char version[16];
    char *sql = read_sql(m, e);
    if (!sql) return -1;
    int rc = db_script(db, sql, e);
    free(sql);
    if (rc < 0) return err_prefix(e, "migration \"%s\"", m->name);
    snprintf(version, sizeof version, "%d", m->version);
    return db_queryf(db, NULL, e,
                     "INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3)",
                     version, m->name, m->sha256, NULL);
}

/* Applies the next one.  Returns 1 when it did, 0 when none was left. */
static int step(struct db *db, const struct migration *files, int count, struct err *e)
{
    int done;
    if (db_begin(db, e) < 0) return -1;
    if (lock_and_compare(db, files, count, &done, e) < 0) goto undo;
    if (done < count && apply(db, &files[done], e) < 0) goto undo;
    if (db_commit(db, NULL, e) < 0) return -1; /* unknown: run it again, it looks first */
    if (done == count) return 0;
    printf("applied %s\n", files[done].name);
    return 1;
undo:
    db_rollback(db);
    return -1;
}

int migrate_command(const struct command_input *in, struct err *e)
{
    int rc = -1;
    struct migration *files = calloc(FILES_MAX, sizeof *files);
    if (!files) return err_set(e, ERR_RETRY, "out of memory for the migrations");
    int count = read_folder(in->settings->migrations_dir, files, e);
    if (count < 0) goto out;
    while ((rc = step(in->db, files, count, e)) > 0)
        ;
    if (!rc) printf("the database is at version %d\n", count);
out:
    free(files);
    return rc;
}
