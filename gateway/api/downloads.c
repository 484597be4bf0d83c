/* downloads.c - checkpoints as files: their addresses, the files behind them, and archives.
 *
 * Only the adapter is given out, in PEFT's form; optimizer state stays here. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/archive.h"
#include "api/endpoints.h"
#include "api/named.h"
#include "api/signed.h"
#include "api/sql.h"
#include "base/blobs.h"
#include "base/clock.h"
#include "base/log.h"
#include "http/range.h"
#include "seal/seal.h"
#include "wire/json.h"

#define DIR_SIZE     1024
#define ARCHIVE_FILE "checkpoint.tar" /* made when it is asked for */

static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
#define FILES (sizeof files / sizeof *files)

/* One version of a checkpoint that may be read. */
struct version {
    char run[ID_SIZE], dir[DIR_SIZE];
    int64_t seq, epoch;
};

/* ---------------------------------------------------------------- addresses */

/* What the request's path names: one's own, or published.  STEP_ON or answered. */
static enum step find(struct call *c, struct version *v)
{
    struct db_result *rows = NULL;
    struct err e = {0};
    const char *first = http_star(c->r, 1), *second = http_star(c->r, 2);
    const char *kind = second ? named_kind_of(first) : "", *name = second ? second : first;
    int n = 0;
    snprintf(v->run, sizeof v->run, "%s", http_star(c->r, 0));
    if (kind)
        n = db_queryf(c->db, &rows, &e,
                      "SELECT k.seq, k.epoch, k.dir FROM checkpoints k WHERE k.run_id = $1 AND "
                      "k.name = $2 AND ($3 = '' OR k.kind = $3) AND (k.account_id = $4 OR "
                      "k.published_at IS NOT NULL) AND " SQL_CHECKPOINT_LIVES,
                      http_star(c->r, 0), name, kind, c->account, NULL);
    if (n == 1) {
        v->seq = db_int(rows, 0, 0);
        v->epoch = db_int(rows, 0, 1);
        snprintf(v->dir, sizeof v->dir, "%s", db_text(rows, 0, 2));
    }
    db_result_free(rows);
    if (n == 1) return STEP_ON;
    if (n < 0)
        call_fail(c, &e);
    else if (n == 0)
        call_not_found(c, "checkpoint", name);
    else
        http_answer_error(c->r, 400, "several checkpoints are called \"%s\", name the kind too",
                          name);
    return STEP_ANSWERED;
}

/* Adds what is there to *urls; takes none of it. */
static int add_url(struct call *c, const struct version *v, const char *file, int64_t expires_s,
                   json_t *urls, struct err *e)
{
    char url[SIGNED_URL_SIZE];
    struct signed_file f = {c->account, v->run, v->seq, v->epoch, file, expires_s};
    if (signed_url(c, &f, url, e) < 0) return -1;
    if (json_object_set_new(urls, file, json_string(url)) < 0)
        return err_set(e, ERR_RETRY, "out of memory");
    return 0;
}

enum http_verdict api_weights_urls(struct call *c)
{
    struct version v;
    struct err e = {0};
    char when[32];
    int64_t expires_s = clock_wall_ms() / 1000 + c->g->conf.url_s;
    if (find(c, &v) != STEP_ON) return HTTP_TAKEN;
    json_t *urls = json_object();
    for (size_t i = 0; i < FILES && !e.kind; i++)
        if (add_url(c, &v, files[i], expires_s, urls, &e) < 0) break;
    if (e.kind) {
        json_decref(urls);
        return call_fail(c, &e);
    }
    return call_answer(c, 200,
                       json_pack("{s:o, s:s}", "urls", urls, "expires",
                                 clock_rfc3339(expires_s * 1000, when)));
}

/* ---------------------------------------------------------------- archives */

static long read_archive(void *arg, uint64_t pos, char *out, size_t max)
{
    (void)pos; /* it goes on where it was */
    return archive_read(arg, out, max);
}

static void end_archive(void *arg)
{
    archive_free(arg);
}

static struct archive *open_archive(struct call *c, const char *dir, bool gzip, struct err *e)
{
    struct archive *a = archive_create(gzip, e);
    int rc = a ? 0 : -1;
    for (size_t i = 0; i < FILES && rc == 0; i++) {
        int64_t size = 0;
        int fd = blobs_open(c->g->conf.data, dir, files[i], &size, e);
        rc = fd < 0 ? -1 : archive_add(a, files[i], fd, size, e);
    }
    if (rc == 0) rc = archive_add(a, "checkpoint_complete", -1, 0, e);
    if (rc == 0) return a;
    archive_free(a);
    return NULL;
}

static enum http_verdict answer_archive(struct call *c, const char *dir, bool gzip)
{
    struct err e = {0};
    struct archive *a = open_archive(c, dir, gzip, &e);
    if (!a) {
        if (e.kind == ERR_USER) return call_not_found(c, "checkpoint", http_star(c->r, 0));
        return call_fail(c, &e);
    }
    struct http_source source = {.arg = a, .read = read_archive, .done = end_archive};
    http_answer_stream(c->r, 200, gzip ? "application/gzip" : "application/x-tar", archive_size(a),
                       &source);
    return HTTP_TAKEN;
}

/* hpcai takes the archive itself; older tinker clients take an address of it. */
enum http_verdict api_archive(struct call *c)
{
    struct version v;
    struct err e = {0};
    char url[SIGNED_URL_SIZE], when[32];
    int64_t expires_s = clock_wall_ms() / 1000 + c->g->conf.url_s;
    if (find(c, &v) != STEP_ON) return HTTP_TAKEN;
    if (call_is_hpcai(c) || http_accepts(c->r, "gzip")) return answer_archive(c, v.dir, true);
    struct signed_file f = {c->account, v.run, v.seq, v.epoch, ARCHIVE_FILE, expires_s};
    if (signed_url(c, &f, url, &e) < 0) return call_fail(c, &e);
    return call_answer(c, 200,
                       json_pack("{s:s, s:s}", "url", url, "expires",
                                 clock_rfc3339(expires_s * 1000, when)));
}

/* ---------------------------------------------------------------- files */

static bool read_count(const char *text, int64_t *out)
{
    if (!text || !*text || strlen(text) > 18 || strspn(text, "0123456789") != strlen(text))
        return false;
    *out = strtoll(text, NULL, 10);
    return true;
}

/* Whether the address is one of ours, unchanged. */
static bool genuine(struct call *c, struct signed_file *f)
{
    char expected[SIGNED_HEX_SIZE];
    const char *given = http_query(c->r, "signature");
    f->account = http_query(c->r, "account");
    f->run = http_star(c->r, 0);
    f->file = http_star(c->r, 3);
    if (!given || !f->account || strlen(given) != sizeof expected - 1) return false;
    if (!read_count(http_star(c->r, 1), &f->seq) || !read_count(http_star(c->r, 2), &f->epoch) ||
        !read_count(http_query(c->r, "expires"), &f->expires_s))
        return false;
    signed_make(&c->g->secret, f, expected);
    return seal_equal(given, expected, sizeof expected - 1);
}

/* It may have been deleted, or taken back, since the address was given out. */
static int still_there(struct call *c, const struct signed_file *f, char dir[DIR_SIZE],
                       struct err *e)
{
    struct db_result *rows = NULL;
    char seq[24], epoch[24];
    snprintf(seq, sizeof seq, "%" PRId64, f->seq);
    snprintf(epoch, sizeof epoch, "%" PRId64, f->epoch);
    int n = db_queryf(c->db, &rows, e,
                      "SELECT dir FROM checkpoints WHERE run_id = $1 AND seq = $2::bigint AND "
                      "epoch = $3::bigint AND deleted_at IS NULL AND (expires_at IS NULL OR "
                      "expires_at > now()) AND (account_id = $4 OR published_at IS NOT NULL)",
                      f->run, seq, epoch, f->account, NULL);
    if (n == 1) snprintf(dir, DIR_SIZE, "%s", db_text(rows, 0, 0));
    db_result_free(rows);
    return n;
}

static enum http_verdict answer_file(struct call *c, const char *dir, const char *file)
{
    struct err e = {0};
    int64_t size = 0;
    uint64_t first = 0, count = 0;
    char range[80];
    int fd = blobs_open(c->g->conf.data, dir, file, &size, &e);
    if (fd < 0)
        return e.kind == ERR_USER ? call_not_found(c, "file", file) : call_fail(c, &e);
    enum range_verdict v =
        range_read(http_header(c->r, "Range"), (uint64_t)size, &first, &count);
    http_set_header(c->r, "Accept-Ranges", "bytes");
    if (v == RANGE_NONE) {
        close(fd);
        snprintf(range, sizeof range, "bytes */%" PRId64, size);
        http_set_header(c->r, "Content-Range", range);
        http_answer_error(c->r, 416, "the file has %" PRId64 " bytes", size);
        return HTTP_TAKEN;
    }
    if (v == RANGE_PART) {
        snprintf(range, sizeof range, "bytes %" PRIu64 "-%" PRIu64 "/%" PRId64, first,
                 first + count - 1, size);
        http_set_header(c->r, "Content-Range", range);
    }
    http_answer_file(c->r, v == RANGE_PART ? 206 : 200,
                     strstr(file, ".json") ? "application/json" : "application/octet-stream", fd,
                     first, count);
    return HTTP_TAKEN;
}

enum http_verdict api_file(struct call *c)
{
    struct signed_file f;
    struct err e = {0};
    char dir[DIR_SIZE];
    if (!genuine(c, &f)) {
        http_answer_error(c->r, 403, "this is not an address that was given out here");
        return HTTP_TAKEN;
    }
    if (clock_wall_ms() / 1000 >= f.expires_s) {
        http_answer_error(c->r, 403, "this address has expired, ask for a new one");
        return HTTP_TAKEN;
    }
    if (!c->db) return HTTP_WORKER; /* only for an address that is one of ours */
    int n = still_there(c, &f, dir, &e);
    if (n < 0) return call_fail(c, &e);
    if (n == 0) return call_not_found(c, "file", f.file);
    bool archive = !strcmp(f.file, ARCHIVE_FILE);
    return archive ? answer_archive(c, dir, false) : answer_file(c, dir, f.file);
}
