/* store.c - see store.h.
 *
 * One rule keeps answers and questions together: a connection on which anything went wrong (a
 * timeout above all) is closed, so a late answer can never be taken for the answer to a later
 * command. */
#include "store/store.h"

#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#define DONE_KEPT        "100000"
#define COUNTERS_TTL_S   "30"
#define COUNTERS_MAX     256
#define SETTLE_MAX       4096
#define WAIT_ENTRIES_MAX "1000"
#define KEY_SIZE         384
#define VALUE_HEAD_SIZE  80

struct script {
    const char *text;
    char sha[48]; /* empty: not loaded yet */
};

struct store {
    char *host, *user, *password; /* host: an address or, for a Unix socket, its path */
    bool unix_socket;
    int port, db;
    char prefix[128];
    int timeout_ms;
    redisContext *redis;
    int socket_timeout_ms; /* what the socket has now */
    struct script settle, counters, share;
};

#define TEXT_OF_(x) #x
#define TEXT_OF(x)  TEXT_OF_(x)

static const char settle_text[] =
    "local have = redis.call('HMGET', KEYS[1], 'offset', 'epoch')\n"
    "if have[1] then\n"
    "  if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] then return 0 end\n"
    "elseif ARGV[3] ~= '1' then return 0\n"
    "else redis.call('HSET', KEYS[1], 'since', ARGV[1]) end\n"
    "for i = 3, #KEYS do\n"
    "  local a = 4 * i - 5\n"
    "  redis.call('SET', KEYS[i], ARGV[a], 'NX', 'EX', ARGV[6])\n"
    "  redis.call('XADD', KEYS[2], 'MAXLEN', '~', " DONE_KEPT ", '*', 'id', ARGV[a + 1])\n"
    "  if ARGV[a + 2] ~= '' then\n"
    "    local member = string.match(ARGV[a], '^%S+') .. ' ' .. ARGV[a + 1]\n"
    "    redis.call('ZADD', ARGV[a + 2], ARGV[a + 3], member)\n"
    "    redis.call('ZREMRANGEBYRANK', ARGV[a + 2], 0, -" TEXT_OF(GROUP_KEPT) " - 1)\n"
    "    redis.call('EXPIRE', ARGV[a + 2], ARGV[6])\n"
    "  end\n"
    "end\n"
    "redis.call('HSET', KEYS[1], 'offset', ARGV[4], 'epoch', ARGV[5])\n"
    "return 1\n";

static const char counters_text[] =
    "redis.call('DEL', KEYS[1])\n"
    "for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end\n"
    "redis.call('EXPIRE', KEYS[1], " COUNTERS_TTL_S ")\n"
    "return 1\n";

/* Times are microseconds, which a Lua number holds exactly for centuries, and are written without an
 * exponent. */
static const char share_text[] =
    "local clock = redis.call('TIME')\n"
    "local now = clock[1] * 1000000 + clock[2]\n"
    "local mine = 'tokens:' .. ARGV[1]\n"
    "local out = {}\n"
    "for i = 1, #KEYS do\n"
    "  local a = 3 * i\n"
    "  local even = tonumber(redis.call('HGET', KEYS[i], 'even') or now)\n"
    "  if even < now then even = now end\n"
    "  even = even + ARGV[a] * ARGV[a + 1]\n"
    "  redis.call('HSET', KEYS[i], 'even', string.format('%.0f', even),\n"
    "             mine, string.format('%s %.0f', ARGV[a + 2], now))\n"
    "  local elsewhere = 0\n"
    "  local all = redis.call('HGETALL', KEYS[i])\n"
    "  for f = 1, #all, 2 do\n"
    "    local tokens, at = string.match(all[f + 1], '^(%d+) (%d+)$')\n"
    "    if tokens and now - at > tonumber(ARGV[2]) then redis.call('HDEL', KEYS[i], all[f])\n"
    "    elseif tokens and all[f] ~= mine then elsewhere = elsewhere + tokens end\n"
    "  end\n"
    "  redis.call('EXPIRE', KEYS[i], math.ceil((even - now) / 1000000) + 60)\n"
    "  out[2 * i - 1] = even - now\n"
    "  out[2 * i] = elsewhere\n"
    "end\n"
    "return out\n";

/* ---------------------------------------------------------------- url */

static int parse_number(const char *text, int max, int *out)
{
    char *end;
    long n = strtol(text, &end, 10);
    if (end == text || *end || n < 0 || n > max) return -1;
    *out = (int)n;
    return 0;
}

/* [user:password@]host[:port][/db]; rest is cut up in place. */
static int parse_tcp(struct store *s, char *rest)
{
    char *at = strrchr(rest, '@'), *slash, *colon;
    if (at) {
        *at = '\0';
        colon = strchr(rest, ':');
        if (!colon) return -1;
        *colon = '\0';
        if (*rest && !(s->user = strdup(rest))) return -1;
        if (!(s->password = strdup(colon + 1))) return -1;
        rest = at + 1;
    }
    if ((slash = strchr(rest, '/'))) {
        *slash = '\0';
        if (slash[1] && parse_number(slash + 1, 1023, &s->db) < 0) return -1;
    }
    if ((colon = strrchr(rest, ':'))) {
        *colon = '\0';
        if (parse_number(colon + 1, 65535, &s->port) < 0) return -1;
    }
    return *rest && (s->host = strdup(rest)) ? 0 : -1;
}

static int parse_url(struct store *s, const char *url)
{
    static const char tcp[] = "redis://", local[] = "unix://";
    s->port = 6379;
    if (!strncmp(url, local, strlen(local))) {
        s->unix_socket = true;
        s->host = strdup(url + strlen(local));
        return s->host && s->host[0] == '/' ? 0 : -1;
    }
    if (strncmp(url, tcp, strlen(tcp))) return -1;
    char *rest = strdup(url + strlen(tcp));
    int result = rest ? parse_tcp(s, rest) : -1;
    free(rest);
    return result;
}

struct store *store_create(const char *url, const char *prefix, int timeout_ms, struct err *e)
{
    struct store *s = calloc(1, sizeof *s);
    if (!s) {
        err_set(e, ERR_RETRY, "out of memory for a Redis connection");
        return NULL;
    }
    s->timeout_ms = timeout_ms;
    s->settle.text = settle_text;
    s->counters.text = counters_text;
    s->share.text = share_text;
    /* The url may hold a password, so the text does not quote it. */
    if (parse_url(s, url) < 0) {
        err_set(e, ERR_USER,
                "cannot read the Redis url, expected redis://[:password@]host:port/db or "
                "unix:///path");
        goto fail;
    }
    if (timeout_ms < 1 || strlen(prefix) >= sizeof s->prefix) {
        err_set(e, ERR_USER,
                "Redis prefix \"%.40s\" and timeout %d ms, expected a short prefix and "
                "1 ms or more",
                prefix, timeout_ms);
        goto fail;
    }
    snprintf(s->prefix, sizeof s->prefix, "%s", prefix);
    return s;
fail:
    store_free(s);
    return NULL;
}

static void disconnect(struct store *s)
{
    if (s->redis) redisFree(s->redis);
    s->redis = NULL;
    s->settle.sha[0] = '\0';
    s->counters.sha[0] = '\0';
    s->share.sha[0] = '\0';
}

void store_free(struct store *s)
{
    if (!s) return;
    disconnect(s);
    if (s->password) explicit_bzero(s->password, strlen(s->password));
    free(s->password);
    free(s->user);
    free(s->host);
    free(s);
}

/* ---------------------------------------------------------------- commands */

/* Closes the connection and says why it had to be. */
static int lost(struct store *s, struct err *e)
{
    err_set(e, ERR_RETRY, "the connection to Redis was lost: %s", s->redis->errstr);
    disconnect(s);
    return -1;
}

static enum err_kind kind_of(const char *text)
{
    static const char *const passing[] = {"LOADING",  "READONLY",   "OOM",
                                          "BUSY",     "MASTERDOWN", "CLUSTERDOWN",
                                          "TRYAGAIN", "NOREPLICAS", "MISCONF"};
    static const char *const refused[] = {"NOAUTH", "WRONGPASS", "NOPERM"};
    for (size_t i = 0; i < sizeof passing / sizeof *passing; i++) {
        /* An error from inside a script names the command's error later in its text in older
         * servers. */
        const char *found = strstr(text, passing[i]);
        if (found && (found == text || found[-1] == '-')) return ERR_RETRY;
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (!strncmp(text, refused[i], strlen(refused[i]))) return ERR_USER;
    return ERR_BUG;
}

static int set_socket_timeout(struct store *s, int ms)
{
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    if (s->socket_timeout_ms == ms) return 0;
    if (redisSetTimeout(s->redis, tv) != REDIS_OK) return -1;
    s->socket_timeout_ms = ms;
    return 0;
}

static redisReply *ask(struct store *s, int argc, const char **argv, const size_t *sizes,
                       struct err *e);

/* The first words on a new connection: AUTH and SELECT. */
static int greet(struct store *s, struct err *e)
{
    char db[16];
    snprintf(db, sizeof db, "%d", s->db);
    const char *auth[] = {"AUTH", s->user ? s->user : s->password, s->password};
    const char *select[] = {"SELECT", db};
    if (s->password) {
        redisReply *r = ask(s, s->user ? 3 : 2, auth, NULL, e);
        if (!r) return -1;
        freeReplyObject(r);
    }
    if (s->db) {
        redisReply *r = ask(s, 2, select, NULL, e);
        if (!r) return -1;
        freeReplyObject(r);
    }
    return 0;
}

static int connect_now(struct store *s, struct err *e)
{
    struct timeval tv = {.tv_sec = s->timeout_ms / 1000, .tv_usec = s->timeout_ms % 1000 * 1000};
    s->redis = s->unix_socket ? redisConnectUnixWithTimeout(s->host, tv)
                              : redisConnectWithTimeout(s->host, s->port, tv);
    if (!s->redis || s->redis->err) {
        err_set(e, ERR_RETRY, "cannot connect to Redis at %s: %s", s->host,
                s->redis ? s->redis->errstr : "out of memory");
        disconnect(s);
        return -1;
    }
    s->socket_timeout_ms = -1;
    if (set_socket_timeout(s, s->timeout_ms) < 0) return lost(s, e);
    redisEnableKeepAlive(s->redis);
    if (greet(s, e) < 0) {
        disconnect(s);
        return -1;
    }
    return 0;
}

/* One command and its answer; NULL when there is none or it is an error.  sizes NULL: argv are
 * texts. */
static redisReply *ask(struct store *s, int argc, const char **argv, const size_t *sizes,
                       struct err *e)
{
    if (!s->redis && connect_now(s, e) < 0) return NULL;
    redisReply *r = redisCommandArgv(s->redis, argc, argv, sizes);
    if (!r) {
        lost(s, e);
        return NULL;
    }
    if (r->type != REDIS_REPLY_ERROR) return r;
    err_set(e, kind_of(r->str), "redis: %s", r->str);
    freeReplyObject(r);
    return NULL;
}

static int unexpected(const char *command, redisReply *r, struct err *e)
{
    err_set(e, ERR_BUG, "unexpected answer of type %d to %s", r->type, command);
    freeReplyObject(r);
    return -1;
}

/* The three parts follow the prefix as they are. */
static int key_make(const struct store *s, char out[KEY_SIZE], const char *a, const char *b,
                    const char *c, struct err *e)
{
    int n = snprintf(out, KEY_SIZE, "%s%s%s%s", s->prefix, a, b, c);
    if (n < 0 || n >= KEY_SIZE)
        return err_set(e, ERR_USER, "id \"%.100s\" is too long for Redis", b);
    return n;
}

int store_ping(struct store *s, struct err *e)
{
    const char *argv[] = {"PING"};
    redisReply *r = ask(s, 1, argv, NULL, e);
    if (!r) return -1;
    freeReplyObject(r);
    return 0;
}

/* "name:123\r\n" in the text of INFO. */
static int info_number(const char *info, const char *name, int64_t *out, struct err *e)
{
    const char *at = strstr(info, name);
    if (!at) return err_set(e, ERR_BUG, "Redis does not say %s", name);
    *out = strtoll(at + strlen(name), NULL, 10);
    return 0;
}

int store_memory(struct store *s, int64_t *used, int64_t *max, struct err *e)
{
    const char *argv[] = {"INFO", "memory"};
    redisReply *r = ask(s, 2, argv, NULL, e);
    if (!r) return -1;
    if (r->type != REDIS_REPLY_STRING) return unexpected("INFO", r, e);
    int rc = info_number(r->str, "\nused_memory:", used, e);
    if (rc == 0) rc = info_number(r->str, "\nmaxmemory:", max, e);
    freeReplyObject(r);
    return rc;
}

/* ---------------------------------------------------------------- scripts */

static int script_load(struct store *s, struct script *script, struct err *e)
{
    const char *argv[] = {"SCRIPT", "LOAD", script->text};
    redisReply *r = ask(s, 3, argv, NULL, e);
    if (!r) return -1;
    if (r->type != REDIS_REPLY_STRING || (size_t)r->len >= sizeof script->sha)
        return unexpected("SCRIPT LOAD", r, e);
    memcpy(script->sha, r->str, (size_t)r->len + 1);
    freeReplyObject(r);
    return 0;
}

/* argv[0] and argv[1] are filled here.  A server that was restarted or flushed has forgotten the
 * script: load it again, once. */
static redisReply *script_run(struct store *s, struct script *script, int argc, const char **argv,
                              size_t *sizes, struct err *e)
{
    for (int attempt = 0;; attempt++) {
        struct err why = {0};
        if (!s->redis && connect_now(s, e) < 0) return NULL;
        if (!script->sha[0] && script_load(s, script, e) < 0) return NULL;
        argv[0] = "EVALSHA";
        argv[1] = script->sha;
        sizes[0] = strlen(argv[0]);
        sizes[1] = strlen(argv[1]);
        redisReply *r = ask(s, argc, argv, sizes, &why);
        if (r) return r;
        if (attempt || !strstr(why.text, "NOSCRIPT")) {
            if (e) *e = why;
            return NULL;
        }
        script->sha[0] = '\0';
    }
}

/* ---------------------------------------------------------------- futures */

void future_clear(struct future *f)
{
    free(f->payload);
    *f = (struct future){0};
}

/* status SP content-type LF payload */
static char *value_make(const struct future *f, size_t *size, struct err *e)
{
    char head[VALUE_HEAD_SIZE];
    int n = snprintf(head, sizeof head, "%s %s\n", f->status, f->content_type);
    if (!f->status[0] || !f->content_type[0] || strpbrk(f->status, " \n") ||
        strchr(f->content_type, '\n') || n >= (int)sizeof head) {
        err_set(e, ERR_BUG, "a future with status \"%s\" and content type \"%s\"", f->status,
                f->content_type);
        return NULL;
    }
    char *value = malloc((size_t)n + f->size);
    if (!value) {
        err_set(e, ERR_RETRY, "out of memory for a future of %zu bytes", f->size);
        return NULL;
    }
    memcpy(value, head, (size_t)n);
    if (f->size) memcpy(value + n, f->payload, f->size);
    *size = (size_t)n + f->size;
    return value;
}

static int value_read(const char *value, size_t size, struct future *out, struct err *e)
{
    *out = (struct future){0};
    const char *end = memchr(value, '\n', size);
    const char *space = end ? memchr(value, ' ', (size_t)(end - value)) : NULL;
    if (!space || (size_t)(space - value) >= sizeof out->status ||
        (size_t)(end - space - 1) >= sizeof out->content_type)
        return err_set(e, ERR_BUG, "a future in Redis has no first line");
    memcpy(out->status, value, (size_t)(space - value));
    memcpy(out->content_type, space + 1, (size_t)(end - space - 1));
    out->size = size - (size_t)(end + 1 - value);
    out->payload = malloc(out->size + 1);
    if (!out->payload)
        return err_set(e, ERR_RETRY, "out of memory for a future of %zu bytes", out->size);
    memcpy(out->payload, end + 1, out->size);
    out->payload[out->size] = '\0';
    return 0;
}

int store_future_get(struct store *s, const char *id, struct future *out, struct err *e)
{
    char key[KEY_SIZE];
    const char *argv[] = {"GET", key};
    if (key_make(s, key, "future:", id, "", e) < 0) return -1;
    redisReply *r = ask(s, 2, argv, NULL, e);
    if (!r) return -1;
    if (r->type != REDIS_REPLY_NIL && r->type != REDIS_REPLY_STRING) return unexpected("GET", r, e);
    int result = 0;
    if (r->type == REDIS_REPLY_STRING)
        result = value_read(r->str, (size_t)r->len, out, e) < 0 ? -1 : 1;
    freeReplyObject(r);
    return result;
}

int store_future_put(struct store *s, const char *id, const struct future *f, int ttl_s,
                     struct err *e)
{
    char key[KEY_SIZE], ttl[16];
    size_t size = 0;
    int n = key_make(s, key, "future:", id, "", e);
    char *value = n < 0 ? NULL : value_make(f, &size, e);
    if (!value) return -1;
    snprintf(ttl, sizeof ttl, "%d", ttl_s);
    const char *argv[] = {"SET", key, value, "NX", "EX", ttl};
    const size_t sizes[] = {3, (size_t)n, size, 2, 2, strlen(ttl)};
    redisReply *r = ask(s, 6, argv, sizes, e);
    free(value);
    if (!r) return -1;
    freeReplyObject(r);
    return 0;
}

/* ---------------------------------------------------------------- resolver */

static int cursor_key(const struct store *s, char key[KEY_SIZE], const char *topic, int partition,
                      struct err *e)
{
    char number[24];
    snprintf(number, sizeof number, ":%d", partition);
    return key_make(s, key, "resolver:", topic, number, e);
}

static bool reply_number(const redisReply *r, int64_t *out)
{
    char *end;
    if (r->type != REDIS_REPLY_STRING || !r->len) return false;
    *out = strtoll(r->str, &end, 10);
    return !*end;
}

int store_cursor_get(struct store *s, const char *topic, int partition, struct cursor *out,
                     struct err *e)
{
    char key[KEY_SIZE];
    const char *argv[] = {"HMGET", key, "offset", "epoch"};
    if (cursor_key(s, key, topic, partition, e) < 0) return -1;
    redisReply *r = ask(s, 4, argv, NULL, e);
    if (!r) return -1;
    if (r->type != REDIS_REPLY_ARRAY || r->elements != 2) return unexpected("HMGET", r, e);
    int result = 1;
    if (r->element[0]->type == REDIS_REPLY_NIL)
        result = 0;
    else if (!reply_number(r->element[0], &out->offset) ||
             !reply_number(r->element[1], &out->epoch))
        result = err_set(e, ERR_BUG, "the cursor of %s/%d in Redis is not two numbers", topic,
                         partition);
    freeReplyObject(r);
    return result;
}

/* EVALSHA sha numkeys | cursor done future.. | from.. create to.. ttl (value id group offset)..
 * Owned texts are in `owned`; everything else is borrowed. */
struct settle_args {
    int argc;
    const char **argv;
    size_t *sizes;
    char **owned;
    int owned_count;
};

static void args_free(struct settle_args *a)
{
    for (int i = 0; i < a->owned_count; i++)
        free(a->owned[i]);
    free(a->owned);
    free(a->argv);
    free(a->sizes);
}

static void arg_add(struct settle_args *a, const char *text, size_t size)
{
    a->argv[a->argc] = text;
    a->sizes[a->argc++] = size;
}

static int args_init(struct settle_args *a, int count, struct err *e)
{
    size_t n = (size_t)count;
    *a = (struct settle_args){.argc = 2}; /* EVALSHA and the hash come later */
    a->argv = calloc(5 * n + 16, sizeof *a->argv);
    a->sizes = calloc(5 * n + 16, sizeof *a->sizes);
    a->owned = calloc(4 * n + 1, sizeof *a->owned);
    if (a->argv && a->sizes && a->owned) return 0;
    args_free(a);
    return err_set(e, ERR_RETRY, "out of memory for %d futures", count);
}

static int args_add_keys(struct store *s, struct settle_args *a, const struct settled *futures,
                         int count, struct err *e)
{
    char key[KEY_SIZE];
    for (int i = 0; i < count; i++) {
        int n = key_make(s, key, "future:", futures[i].id, "", e);
        if (n < 0) return -1;
        char *copy = strdup(key);
        if (!copy) return err_set(e, ERR_RETRY, "out of memory for %d futures", count);
        a->owned[a->owned_count++] = copy;
        arg_add(a, copy, (size_t)n);
    }
    return 0;
}

/* Takes text, which may be NULL for want of memory. */
static int arg_add_owned(struct settle_args *a, char *take_text, struct err *e)
{
    if (!take_text) return err_set(e, ERR_RETRY, "out of memory for futures");
    a->owned[a->owned_count++] = take_text;
    arg_add(a, take_text, strlen(take_text));
    return 0;
}

static int args_add_group(struct store *s, struct settle_args *a, const struct settled *f,
                          struct err *e)
{
    char key[KEY_SIZE] = "", offset[24];
    if (f->group && key_make(s, key, "group:", f->group, "", e) < 0) return -1;
    snprintf(offset, sizeof offset, "%" PRId64, f->group ? f->offset : 0);
    return arg_add_owned(a, strdup(key), e) < 0 ? -1 : arg_add_owned(a, strdup(offset), e);
}

static int args_add_values(struct store *s, struct settle_args *a, const struct settled *futures,
                           int count, struct err *e)
{
    for (int i = 0; i < count; i++) {
        size_t size;
        char *value = value_make(&futures[i].future, &size, e);
        if (!value) return -1;
        a->owned[a->owned_count++] = value;
        arg_add(a, value, size);
        arg_add(a, futures[i].id, strlen(futures[i].id));
        if (args_add_group(s, a, &futures[i], e) < 0) return -1;
    }
    return 0;
}

int store_settle(struct store *s, const char *topic, int partition, const struct cursor *from,
                 bool create, const struct cursor *to, const struct settled *futures, int count,
                 int ttl_s, struct err *e)
{
    struct settle_args a;
    char cursor[KEY_SIZE], done[KEY_SIZE], numbers[7][24];
    int result = -1;
    if (count < 0 || count > SETTLE_MAX)
        return err_set(e, ERR_BUG, "%d futures at once, expected at most %d", count, SETTLE_MAX);
    if (cursor_key(s, cursor, topic, partition, e) < 0) return -1;
    if (key_make(s, done, "done", "", "", e) < 0 || args_init(&a, count, e) < 0) return -1;
    const int64_t values[7] = {count + 2,  from->offset, from->epoch, create,
                               to->offset, to->epoch,    ttl_s};
    for (int i = 0; i < 7; i++)
        snprintf(numbers[i], sizeof numbers[i], "%" PRId64, values[i]);
    arg_add(&a, numbers[0], strlen(numbers[0]));
    arg_add(&a, cursor, strlen(cursor));
    arg_add(&a, done, strlen(done));
    if (args_add_keys(s, &a, futures, count, e) < 0) goto out;
    for (int i = 1; i < 7; i++)
        arg_add(&a, numbers[i], strlen(numbers[i]));
    if (args_add_values(s, &a, futures, count, e) < 0) goto out;
    redisReply *r = script_run(s, &s->settle, a.argc, a.argv, a.sizes, e);
    if (!r) goto out;
    if (r->type != REDIS_REPLY_INTEGER) {
        unexpected("EVALSHA", r, e);
        goto out;
    }
    result = (int)r->integer;
    freeReplyObject(r);
out:
    args_free(&a);
    return result;
}

/* ---------------------------------------------------------------- wake-ups */

/* "$" would be looked up anew by every XREAD and lose what came in between, so it is turned into
 * the id of the last entry once. */
static int resolve_end(struct store *s, const char *done, char last[STORE_STREAM_ID_SIZE],
                       struct err *e)
{
    const char *argv[] = {"XREVRANGE", done, "+", "-", "COUNT", "1"};
    redisReply *r = ask(s, 6, argv, NULL, e);
    if (!r) return -1;
    if (r->type != REDIS_REPLY_ARRAY) return unexpected("XREVRANGE", r, e);
    const char *id = "0-0";
    if (r->elements && r->element[0]->elements) id = r->element[0]->element[0]->str;
    snprintf(last, STORE_STREAM_ID_SIZE, "%s", id);
    freeReplyObject(r);
    return 0;
}

/* [[done, [[entry, [name, value]], ..]]]: calls seen for each and moves last. */
static int read_entries(const redisReply *r, char last[STORE_STREAM_ID_SIZE],
                        void (*seen)(void *arg, const char *id), void *arg)
{
    int count = 0;
    if (r->type != REDIS_REPLY_ARRAY || !r->elements || r->element[0]->elements != 2) return 0;
    const redisReply *entries = r->element[0]->element[1];
    for (size_t i = 0; i < entries->elements; i++) {
        const redisReply *entry = entries->element[i];
        if (entry->elements != 2 || entry->element[0]->type != REDIS_REPLY_STRING) continue;
        snprintf(last, STORE_STREAM_ID_SIZE, "%s", entry->element[0]->str);
        const redisReply *fields = entry->element[1];
        if (fields->type != REDIS_REPLY_ARRAY || fields->elements < 2) continue;
        seen(arg, fields->element[1]->str);
        count++;
    }
    return count;
}

int store_wait_settled(struct store *s, char last[STORE_STREAM_ID_SIZE], int wait_ms,
                       void (*seen)(void *arg, const char *id), void *arg, struct err *e)
{
    char done[KEY_SIZE], block[16];
    if (key_make(s, done, "done", "", "", e) < 0) return -1;
    if (!s->redis && connect_now(s, e) < 0) return -1;
    if (!strcmp(last, "$") && resolve_end(s, done, last, e) < 0) return -1;
    if (wait_ms < 1) wait_ms = 1; /* 0 would mean for ever */
    snprintf(block, sizeof block, "%d", wait_ms);
    const char *argv[] = {"XREAD", "COUNT", WAIT_ENTRIES_MAX, "BLOCK", block, "STREAMS",
                          done,    last};
    if (set_socket_timeout(s, wait_ms + s->timeout_ms) < 0) return lost(s, e);
    redisReply *r = ask(s, 8, argv, NULL, e);
    if (!r) return -1;
    int count = read_entries(r, last, seen, arg);
    freeReplyObject(r);
    if (set_socket_timeout(s, s->timeout_ms) < 0) return lost(s, e);
    return count;
}

/* ---------------------------------------------------------------- groups */

/* The array that one command answers with; NULL otherwise, and e says why. */
static redisReply *ask_array(struct store *s, int argc, const char **argv, struct err *e)
{
    redisReply *r = ask(s, argc, argv, NULL, e);
    if (!r || r->type == REDIS_REPLY_ARRAY) return r;
    unexpected(argv[0], r, e);
    return NULL;
}

/* A full set begins where it was trimmed, another one where this Redis began. */
static int read_floor(struct store *s, const char *key, const char *cursor, int64_t *floor,
                      struct err *e)
{
    const char *first[] = {"ZRANGE", key, "0", "0", "WITHSCORES"};
    const char *full[] = {"ZRANGE", key, "", ""};
    const char *since[] = {"HMGET", cursor, "since"};
    char last[16];
    *floor = INT64_MAX;
    redisReply *r = ask_array(s, 3, since, e);
    if (!r) return -1;
    if (r->elements == 1) (void)reply_number(r->element[0], floor);
    freeReplyObject(r);
    snprintf(last, sizeof last, "%d", GROUP_KEPT - 1);
    full[2] = full[3] = last;
    r = ask_array(s, 4, full, e);
    if (!r) return -1;
    bool trimmed = r->elements > 0;
    freeReplyObject(r);
    if (!trimmed) return 0;
    r = ask_array(s, 5, first, e);
    if (!r) return -1;
    if (r->elements == 2) (void)reply_number(r->element[1], floor);
    freeReplyObject(r);
    return 0;
}

/* "status id", score, ... */
static int show_group(const redisReply *r, group_seen *seen, void *arg)
{
    int count = 0;
    for (size_t i = 0; i + 1 < r->elements; i += 2) {
        int64_t offset;
        char status[16];
        const char *member = r->element[i]->str, *blank = member ? strchr(member, ' ') : NULL;
        if (!blank || (size_t)(blank - member) >= sizeof status ||
            !reply_number(r->element[i + 1], &offset))
            continue;
        memcpy(status, member, (size_t)(blank - member));
        status[blank - member] = '\0';
        seen(arg, offset, status, blank + 1);
        count++;
    }
    return count;
}

int store_group_after(struct store *s, const char *group, const char *topic, int partition,
                      int64_t from, int max, int64_t *complete_from, group_seen *seen, void *arg,
                      struct err *e)
{
    char key[KEY_SIZE], cursor[KEY_SIZE], low[24], limit[16];
    if (key_make(s, key, "group:", group, "", e) < 0 ||
        cursor_key(s, cursor, topic, partition, e) < 0)
        return -1;
    if (read_floor(s, key, cursor, complete_from, e) < 0) return -1;
    snprintf(low, sizeof low, "%" PRId64, from);
    snprintf(limit, sizeof limit, "%d", max);
    const char *argv[] = {"ZRANGEBYSCORE", key, low, "+inf", "WITHSCORES", "LIMIT", "0", limit};
    redisReply *r = ask_array(s, 8, argv, e);
    if (!r) return -1;
    int count = show_group(r, seen, arg);
    freeReplyObject(r);
    return count;
}

/* ---------------------------------------------------------------- what accounts use */

static int read_shares(redisReply *r, struct use *uses, int count, struct err *e)
{
    if (r->type != REDIS_REPLY_ARRAY || r->elements != 2 * (size_t)count)
        return unexpected("EVALSHA", r, e);
    for (int i = 0; i < count; i++) {
        uses[i].ahead_us = r->element[2 * i]->integer;
        uses[i].elsewhere = r->element[2 * i + 1]->integer;
    }
    freeReplyObject(r);
    return 0;
}

int store_share(struct store *s, const char *gateway, int stale_ms, struct use *uses, int count,
                struct err *e)
{
    char keys[USES_MAX][KEY_SIZE], numbers[USES_MAX][3][24], keys_count[16], stale[24];
    const char *argv[5 + 4 * USES_MAX];
    size_t sizes[5 + 4 * USES_MAX];
    int argc = 2; /* EVALSHA and the hash come later */
    if (count < 1 || count > USES_MAX)
        return err_set(e, ERR_BUG, "%d accounts at once, expected 1 to %d", count, USES_MAX);
    snprintf(keys_count, sizeof keys_count, "%d", count);
    snprintf(stale, sizeof stale, "%" PRId64, (int64_t)stale_ms * 1000);
    argv[argc++] = keys_count;
    for (int i = 0; i < count; i++) {
        if (key_make(s, keys[i], "use:", uses[i].account, "", e) < 0) return -1;
        argv[argc++] = keys[i];
    }
    argv[argc++] = gateway;
    argv[argc++] = stale;
    for (int i = 0; i < count; i++) {
        const int64_t values[3] = {uses[i].requests, uses[i].step_us, uses[i].tokens};
        for (int k = 0; k < 3; k++) {
            snprintf(numbers[i][k], sizeof numbers[i][k], "%" PRId64, values[k]);
            argv[argc++] = numbers[i][k];
        }
    }
    for (int i = 2; i < argc; i++)
        sizes[i] = strlen(argv[i]);
    redisReply *r = script_run(s, &s->share, argc, argv, sizes, e);
    return r ? read_shares(r, uses, count, e) : -1;
}

/* ---------------------------------------------------------------- counters */

int store_counters_set(struct store *s, const char *who, const struct counter *counters, int count,
                       struct err *e)
{
    char key[KEY_SIZE], numbers[COUNTERS_MAX][24];
    const char *argv[4 + 2 * COUNTERS_MAX];
    size_t sizes[4 + 2 * COUNTERS_MAX];
    int argc = 4;
    if (count < 0 || count > COUNTERS_MAX)
        return err_set(e, ERR_BUG, "%d counters, expected at most %d", count, COUNTERS_MAX);
    if (key_make(s, key, who, "", "", e) < 0) return -1;
    argv[2] = "1";
    argv[3] = key;
    for (int i = 0; i < count; i++) {
        snprintf(numbers[i], sizeof numbers[i], "%" PRId64, counters[i].value);
        argv[argc++] = counters[i].name;
        argv[argc++] = numbers[i];
    }
    for (int i = 2; i < argc; i++)
        sizes[i] = strlen(argv[i]);
    redisReply *r = script_run(s, &s->counters, argc, argv, sizes, e);
    if (!r) return -1;
    freeReplyObject(r);
    return 0;
}

int store_counters_get(struct store *s, const char *who, struct counter *counters, int count,
                       struct err *e)
{
    char key[KEY_SIZE];
    const char *argv[2 + COUNTERS_MAX] = {"HMGET", key};
    int there = 0;
    if (count < 0 || count > COUNTERS_MAX)
        return err_set(e, ERR_BUG, "%d counters, expected at most %d", count, COUNTERS_MAX);
    if (key_make(s, key, who, "", "", e) < 0) return -1;
    for (int i = 0; i < count; i++)
        argv[2 + i] = counters[i].name;
    redisReply *r = ask_array(s, 2 + count, argv, e);
    if (!r) return -1;
    for (size_t i = 0; i < r->elements && i < (size_t)count; i++) {
        counters[i].value = 0;
        if (reply_number(r->element[i], &counters[i].value)) there = 1;
    }
    freeReplyObject(r);
    return there;
}
