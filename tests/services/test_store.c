/* test_store.c - lib/store against a real Redis. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/stop.h"
#include "store/store.h"

static const char *url;
static char prefix[64]; /* a test sees only its own keys */
static struct store *store;

static void check(int result, const struct err *e)
{
    if (result < 0) fail_msg("%s: %s", err_kind_name(e->kind), e->text);
}

static struct store *open_store(void)
{
    struct err e = {0};
    struct store *s = store_create(url, prefix, 5000, &e);
    if (!s) check(-1, &e);
    return s;
}

static int setup(void **state)
{
    static int number;
    snprintf(prefix, sizeof prefix, "test.%d.%lld.%d:", (int)getpid(), (long long)clock_wall_ms(),
             number++);
    store = open_store();
    return 0;
}

static int teardown(void **state)
{
    store_free(store);
    return 0;
}

static struct future future_of(const char *status, const char *payload, size_t size)
{
    struct future f = {.payload = (char *)payload, .size = size};
    snprintf(f.status, sizeof f.status, "%s", status);
    snprintf(f.content_type, sizeof f.content_type, "application/x-protobuf");
    return f;
}

static void expect_future(const char *id, const char *status, const void *payload, size_t size)
{
    struct err e = {0};
    struct future f;
    int got = store_future_get(store, id, &f, &e);
    check(got, &e);
    assert_int_equal(got, 1);
    assert_string_equal(f.status, status);
    assert_string_equal(f.content_type, "application/x-protobuf");
    assert_int_equal(f.size, size);
    assert_memory_equal(f.payload, payload, size);
    future_clear(&f);
}

static void a_future_keeps_its_bytes_and_the_first_one_stays(void **state)
{
    struct err e = {0};
    struct future f;
    static const char bytes[] = "a\0b\nc \r\n";
    assert_int_equal(store_future_get(store, "run:sample:1", &f, &e), 0);
    struct future first = future_of("ok", bytes, sizeof bytes);
    check(store_future_put(store, "run:sample:1", &first, 60, &e), &e);
    expect_future("run:sample:1", "ok", bytes, sizeof bytes);
    struct future second = future_of("failed", "no", 2);
    check(store_future_put(store, "run:sample:1", &second, 60, &e), &e);
    expect_future("run:sample:1", "ok", bytes, sizeof bytes);
    struct future empty = future_of("cancelled", NULL, 0);
    check(store_future_put(store, "empty", &empty, 60, &e), &e);
    expect_future("empty", "cancelled", "", 0);
}

static void redis_says_how_full_it_is(void **state)
{
    struct err e = {0};
    int64_t before, after, max;
    char *large = calloc(1, 4 << 20);
    check(store_memory(store, &before, &max, &e), &e);
    assert_true(before > 0 && max >= 0);
    struct future f = future_of("ok", large, 4 << 20);
    check(store_future_put(store, "large", &f, 60, &e), &e);
    check(store_memory(store, &after, &max, &e), &e);
    assert_true(after > before + (2 << 20));
    free(large);
}

static void a_future_ends_with_its_lifetime(void **state)
{
    struct err e = {0};
    struct future f, short_lived = future_of("ok", "x", 1);
    check(store_future_put(store, "brief", &short_lived, 1, &e), &e);
    int got = 1;
    for (int64_t deadline = clock_mono_ms() + 20000; got && clock_mono_ms() < deadline;) {
        got = store_future_get(store, "brief", &f, &e);
        if (got > 0) future_clear(&f);
        clock_sleep_ms(50);
    }
    assert_int_equal(got, 0);
}

static void settling_moves_the_cursor_only_from_where_it_was(void **state)
{
    struct err e = {0};
    struct cursor c, zero = {0, 0}, two = {2, 1}, nine = {9, 1};
    struct settled two_futures[] = {{.id = "a", .future = future_of("ok", "A", 1)},
                                    {.id = "b", .future = future_of("failed", "BB", 2)}};
    struct settled late = {.id = "late", .future = future_of("ok", "?", 1)};
    assert_int_equal(store_cursor_get(store, "t", 3, &c, &e), 0);
    assert_int_equal(store_settle(store, "t", 3, &zero, false, &two, two_futures, 2, 60, &e), 0);
    assert_int_equal(store_settle(store, "t", 3, &zero, true, &two, two_futures, 2, 60, &e), 1);
    assert_int_equal(store_cursor_get(store, "t", 3, &c, &e), 1);
    assert_int_equal(c.offset, 2);
    assert_int_equal(c.epoch, 1);
    expect_future("a", "ok", "A", 1);
    expect_future("b", "failed", "BB", 2);
    /* Another cursor, offset or epoch: nothing happens. */
    struct cursor other_epoch = {2, 0};
    assert_int_equal(store_settle(store, "t", 3, &zero, true, &nine, &late, 1, 60, &e), 0);
    assert_int_equal(store_settle(store, "t", 3, &other_epoch, true, &nine, &late, 1, 60, &e), 0);
    struct future f;
    assert_int_equal(store_future_get(store, "late", &f, &e), 0);
    /* Nothing to settle still moves it; the other partition is another cursor. */
    assert_int_equal(store_settle(store, "t", 3, &two, false, &nine, NULL, 0, 60, &e), 1);
    assert_int_equal(store_cursor_get(store, "t", 4, &c, &e), 0);
}

static void settling_keeps_the_first_future(void **state)
{
    struct err e = {0};
    struct cursor zero = {0, 0}, one = {1, 0}, two = {2, 0};
    struct settled first = {.id = "a", .future = future_of("ok", "first", 5)};
    struct settled again = {.id = "a", .future = future_of("ok", "again", 5)};
    assert_int_equal(store_settle(store, "t", 0, &zero, true, &one, &first, 1, 60, &e), 1);
    assert_int_equal(store_settle(store, "t", 0, &one, false, &two, &again, 1, 60, &e), 1);
    expect_future("a", "ok", "first", 5);
}

/* ---------------------------------------------------------------- groups */

struct group {
    int count;
    int64_t offsets[64];
    char text[256]; /* "status id;" of each */
};

static void note_group(void *arg, int64_t offset, const char *status, const char *id)
{
    struct group *g = arg;
    size_t used = strlen(g->text);
    if (g->count < 64) g->offsets[g->count] = offset;
    g->count++;
    snprintf(g->text + used, sizeof g->text - used, "%s %s;", status, id);
}

static int64_t group_after(const char *group, int64_t from, int max, struct group *out)
{
    struct err e = {0};
    int64_t complete_from = -1;
    *out = (struct group){0};
    int n = store_group_after(store, group, "t", 0, from, max, &complete_from, note_group, out, &e);
    check(n, &e);
    assert_int_equal(n, out->count);
    return complete_from;
}

static void a_group_is_shown_from_an_offset_on(void **state)
{
    struct err e = {0};
    struct group g;
    struct cursor from = {40, 2}, to = {50, 2};
    struct settled some[] = {
        {.id = "s:1", .future = future_of("ok", "x", 1), .group = "s", .offset = 41},
        {.id = "r:1", .future = future_of("ok", "x", 1)},
        {.id = "s:2", .future = future_of("failed", "x", 1), .group = "s", .offset = 44},
        {.id = "z:1", .future = future_of("ok", "x", 1), .group = "z", .offset = 45},
        {.id = "s:3", .future = future_of("cancelled", "x", 1), .group = "s", .offset = 47}};
    assert_true(group_after("s", 0, 10, &g) == INT64_MAX); /* nothing is known yet */
    assert_int_equal(store_settle(store, "t", 0, &from, true, &to, some, 5, 60, &e), 1);
    assert_int_equal(group_after("s", 0, 10, &g), 40); /* what lies below was never seen here */
    assert_string_equal(g.text, "ok s:1;failed s:2;cancelled s:3;");
    assert_int_equal(g.offsets[1], 44);
    (void)group_after("s", 44, 10, &g);
    assert_string_equal(g.text, "failed s:2;cancelled s:3;");
    (void)group_after("s", 0, 2, &g);
    assert_string_equal(g.text, "ok s:1;failed s:2;");
    (void)group_after("s", 48, 10, &g);
    assert_int_equal(g.count, 0);
    (void)group_after("z", 0, 10, &g);
    assert_string_equal(g.text, "ok z:1;");
    assert_int_equal(group_after("unknown", 0, 10, &g), 40);
    assert_int_equal(g.count, 0);
}

static void settle_many(int64_t first, int count)
{
    static char ids[512][24];
    static struct settled many[512];
    struct err e = {0};
    struct cursor from = {first, 0}, to = {first + count, 0};
    for (int i = 0; i < count; i++) {
        snprintf(ids[i], sizeof ids[i], "m:%lld", (long long)first + i);
        many[i] = (struct settled){.id = ids[i],
                                   .future = future_of("ok", "", 0),
                                   .group = "m",
                                   .offset = first + i};
    }
    assert_int_equal(store_settle(store, "t", 0, &from, first == 0, &to, many, count, 60, &e), 1);
}

static void a_full_group_says_where_it_was_cut(void **state)
{
    struct group g;
    int64_t next = 0;
    while (next + 250 < GROUP_KEPT) {
        settle_many(next, 250);
        next += 250;
    }
    assert_int_equal(group_after("m", 0, 1, &g), 0);
    settle_many(next, 250);
    settle_many(next + 250, 250);
    assert_int_equal(group_after("m", 0, 1, &g), next + 500 - GROUP_KEPT);
    assert_int_equal(g.offsets[0], next + 500 - GROUP_KEPT);
}

static void counters_are_read_by_name(void **state)
{
    struct err e = {0};
    const struct counter written[] = {{"jobs", 7}, {"waiting", 3}};
    struct counter read[] = {{"waiting", -1}, {"nothing", -1}};
    assert_int_equal(store_counters_get(store, "queue:m", read, 2, &e), 0);
    assert_int_equal(read[0].value, 0);
    assert_int_equal(store_counters_set(store, "queue:m", written, 2, &e), 0);
    assert_int_equal(store_counters_get(store, "queue:m", read, 2, &e), 1);
    assert_int_equal(read[0].value, 3);
    assert_int_equal(read[1].value, 0);
}

/* ---------------------------------------------------------------- wake-ups */

struct seen {
    int count;
    char ids[16][32];
};

static void note(void *arg, const char *id)
{
    struct seen *s = arg;
    if (s->count < 16) snprintf(s->ids[s->count], sizeof s->ids[0], "%s", id);
    s->count++;
}

static void settle_one(struct store *s, int64_t offset, const char *id)
{
    struct err e = {0};
    struct cursor from = {offset, 0}, to = {offset + 1, 0};
    struct settled one = {.id = id, .future = future_of("ok", "x", 1)};
    int done = store_settle(s, "t", 0, &from, true, &to, &one, 1, 60, &e);
    check(done, &e);
    assert_int_equal(done, 1);
}

static void a_waiter_sees_each_future_settled_after_it_began(void **state)
{
    struct err e = {0};
    struct seen seen = {0};
    char last[STORE_STREAM_ID_SIZE] = "$";
    struct store *other = open_store();
    settle_one(other, 0, "before");
    assert_int_equal(store_wait_settled(store, last, 20, note, &seen, &e), 0);
    /* Between two waits: still seen, though nobody was blocked. */
    settle_one(other, 1, "one");
    settle_one(other, 2, "two");
    assert_int_equal(store_wait_settled(store, last, 5000, note, &seen, &e), 2);
    assert_string_equal(seen.ids[0], "one");
    assert_string_equal(seen.ids[1], "two");
    assert_int_equal(store_wait_settled(store, last, 20, note, &seen, &e), 0);
    store_free(other);
}

static void *settle_later(void *arg)
{
    struct store *s = open_store();
    clock_sleep_ms(100);
    settle_one(s, 0, "later");
    store_free(s);
    return NULL;
}

static void a_blocked_waiter_is_woken(void **state)
{
    struct err e = {0};
    struct seen seen = {0};
    pthread_t thread;
    char last[STORE_STREAM_ID_SIZE] = "$";
    assert_int_equal(store_wait_settled(store, last, 1, note, &seen, &e), 0);
    assert_int_equal(pthread_create(&thread, NULL, settle_later, NULL), 0);
    /* Longer than the connection's own timeout: the block is the caller's. */
    assert_int_equal(store_wait_settled(store, last, 20000, note, &seen, &e), 1);
    assert_string_equal(seen.ids[0], "later");
    pthread_join(thread, NULL);
    check(store_ping(store, &e), &e);
}

static void counters_can_be_set_and_set_again(void **state)
{
    struct err e = {0};
    const struct counter first[] = {{"jobs", 5}, {"tokens", -7}};
    const struct counter second[] = {{"jobs", 6}};
    check(store_counters_set(store, "worker:0", first, 2, &e), &e);
    check(store_counters_set(store, "worker:0", second, 1, &e), &e);
    check(store_counters_set(store, "worker:0", NULL, 0, &e), &e);
}

/* ---------------------------------------------------------------- trouble */

/* A server that takes connections and never answers: the timeout must end the wait, and the
 * connection. */
static void a_silent_server_is_try_again(void **state)
{
    struct err e = {0};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    char silent[64];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 8), 0);
    getsockname(fd, (struct sockaddr *)&address, &size);
    snprintf(silent, sizeof silent, "redis://127.0.0.1:%d/0", ntohs(address.sin_port));
    struct store *s = store_create(silent, "", 100, &e);
    assert_non_null(s);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(store_ping(s, &e), -1);
        assert_int_equal(e.kind, ERR_RETRY);
    }
    close(fd);
    assert_int_equal(store_ping(s, &e), -1); /* and nobody listens now */
    assert_int_equal(e.kind, ERR_RETRY);
    store_free(s);
}

static void a_wrong_password_is_told_apart(void **state)
{
    struct err e = {0};
    char wrong[128];
    const char *host = strstr(url, "://") ? strstr(url, "://") + 3 : "";
    if (strchr(host, '@') || strncmp(url, "redis://", 8)) return; /* a server with one of its own */
    snprintf(wrong, sizeof wrong, "redis://:nonsense@%s", host);
    struct store *s = store_create(wrong, "", 5000, &e);
    assert_non_null(s);
    assert_int_equal(store_ping(s, &e), -1);
    assert_true(e.kind == ERR_USER || e.kind == ERR_BUG);
    assert_null(strstr(e.text, "nonsense"));
    store_free(s);
}

static void a_url_that_is_none_is_refused_without_quoting_it(void **state)
{
    static const char *const bad[] = {"",
                                      "http://127.0.0.1",
                                      "redis://",
                                      "redis://secret@127.0.0.1",
                                      "redis://127.0.0.1:99999",
                                      "redis://127.0.0.1:6379/x",
                                      "unix://relative"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        assert_null(store_create(bad[i], "", 100, &e));
        assert_int_equal(e.kind, ERR_USER);
        assert_null(strstr(e.text, "secret"));
    }
}

static void share(struct store *s, const char *gateway, struct use *use)
{
    struct err e = {0};
    check(store_share(s, gateway, 600000, use, 1, &e), &e);
}

/* It reaches so far ahead, less what has passed since. */
static void check_ahead(const struct use *u, int64_t ahead_s)
{
    assert_in_range(u->ahead_us, (ahead_s - 25) * 1000000, ahead_s * 1000000);
}

static void gateways_count_an_accounts_requests_together(void **state)
{
    struct use here = {.account = "a", .requests = 30, .step_us = 1000000};
    struct use there = {.account = "a", .requests = 40, .step_us = 1000000};
    struct use other = {.account = "b", .requests = 1, .step_us = 60000000};
    share(store, "1", &here);
    check_ahead(&here, 30);
    share(store, "2", &there);
    check_ahead(&there, 70);
    share(store, "1", &other);
    check_ahead(&other, 60);
    here.requests = 0;
    share(store, "1", &here);
    check_ahead(&here, 70);
}

static void gateways_see_each_others_tokens_in_flight(void **state)
{
    struct use here = {.account = "a", .tokens = 100}, there = {.account = "a", .tokens = 20};
    struct err e = {0};
    share(store, "1", &here);
    assert_int_equal(here.elsewhere, 0);
    share(store, "2", &there);
    assert_int_equal(there.elsewhere, 100);
    share(store, "3", &there);
    assert_int_equal(there.elsewhere, 120);
    here.tokens = 0;
    share(store, "1", &here);
    assert_int_equal(here.elsewhere, 40);
    share(store, "2", &there);
    assert_int_equal(there.elsewhere, 20);
    clock_sleep_ms(20);
    check(store_share(store, "1", 10, &here, 1, &e), &e); /* the others are silent */
    assert_int_equal(here.elsewhere, 0);
}

static void many_accounts_are_told_of_at_once(void **state)
{
    static char names[USES_MAX][16];
    struct use uses[USES_MAX];
    struct err e = {0};
    for (int i = 0; i < USES_MAX; i++) {
        snprintf(names[i], sizeof names[i], "account %d", i);
        uses[i] = (struct use){.account = names[i], .tokens = i};
    }
    check(store_share(store, "1", 600000, uses, USES_MAX, &e), &e);
    check(store_share(store, "2", 600000, uses, USES_MAX, &e), &e);
    for (int i = 0; i < USES_MAX; i++)
        assert_int_equal(uses[i].elsewhere, i);
}

int main(void)
{
    url = getenv("TINWORKS_REDIS");
    if (!url) return 77;
    stop_on_signals(); /* SIGPIPE */
#define WITH_STORE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_STORE(a_future_keeps_its_bytes_and_the_first_one_stays),
        WITH_STORE(redis_says_how_full_it_is),
        WITH_STORE(a_future_ends_with_its_lifetime),
        WITH_STORE(settling_moves_the_cursor_only_from_where_it_was),
        WITH_STORE(settling_keeps_the_first_future),
        WITH_STORE(a_group_is_shown_from_an_offset_on),
        WITH_STORE(a_full_group_says_where_it_was_cut),
        WITH_STORE(counters_are_read_by_name),
        WITH_STORE(a_waiter_sees_each_future_settled_after_it_began),
        WITH_STORE(a_blocked_waiter_is_woken),
        WITH_STORE(counters_can_be_set_and_set_again),
        WITH_STORE(gateways_count_an_accounts_requests_together),
        WITH_STORE(gateways_see_each_others_tokens_in_flight),
        WITH_STORE(many_accounts_are_told_of_at_once),
        cmocka_unit_test(a_silent_server_is_try_again),
        cmocka_unit_test(a_wrong_password_is_told_apart),
        cmocka_unit_test(a_url_that_is_none_is_refused_without_quoting_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
