/* test_gateway_parked.c - the table of parked polls: each is taken once, and all get their turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "api/parked.h"

#define PIECE 8
#define POLLS (40 * PIECE)

static void park(struct parked_table *t, const char *id, int64_t deadline_ms)
{
    struct parked *p = calloc(1, sizeof *p);
    assert_non_null(p);
    snprintf(p->id, sizeof p->id, "%s", id);
    p->deadline_ms = deadline_ms;
    parked_add(t, p);
}

static struct parked_table *table_for_test(int polls)
{
    struct err e = {0};
    char id[ID_SIZE];
    struct parked_table *t = parked_create(&e);
    assert_non_null(t);
    for (int i = 0; i < polls; i++) {
        snprintf(id, sizeof id, "s:train:0:optim_step:%d:tag", i);
        park(t, id, 100 + i);
    }
    return t;
}

static int drop(struct parked *list)
{
    int n = 0;
    for (struct parked *next; list; list = next, n++) {
        next = list->next;
        free(list);
    }
    return n;
}

static void end(struct parked_table *t)
{
    drop(parked_take_overdue(t, 0, true, false));
    assert_int_equal(parked_count(t), 0);
    parked_free(t);
}

static void all_polls_of_an_id_are_taken_once(void **state)
{
    struct parked_table *t = table_for_test(3);
    const char *id = "s:train:0:optim_step:1:tag";
    park(t, id, 7);
    assert_true(parked_has(t, id));
    assert_int_equal(drop(parked_take(t, id)), 2);
    assert_false(parked_has(t, id));
    assert_null(parked_take(t, id));
    assert_int_equal(parked_count(t), 2);
    end(t);
}

static void what_is_late_is_taken(void **state)
{
    struct parked_table *t = table_for_test(10); /* late at 100 ... 109 */
    assert_null(parked_take_overdue(t, 99, false, false));
    assert_int_equal(drop(parked_take_overdue(t, 104, false, false)), 5);
    assert_int_equal(parked_count(t), 5);
    end(t);
}

static void what_was_asked_for_is_due_again_later(void **state)
{
    struct parked_table *t = table_for_test(2);
    char list[2 * PIECE * ID_SIZE];
    assert_int_equal(parked_due_for_cold(t, 1000, 2000, PIECE, list), 2);
    assert_true(list[0] == '{' && list[strlen(list) - 1] == '}');
    assert_int_equal(parked_due_for_cold(t, 1999, 2000, PIECE, list), 0);
    parked_hurry(t, "s:train:0:optim_step:1:tag", 1999);
    assert_int_equal(parked_due_for_cold(t, 1999, 3000, PIECE, list), 1);
    assert_string_equal(list, "{s:train:0:optim_step:1:tag}");
    assert_int_equal(parked_due_for_cold(t, 2000, 3000, PIECE, list), 1);
    assert_string_equal(list, "{s:train:0:optim_step:0:tag}");
    end(t);
}

static int number_in(const char *id)
{
    return atoi(id + strlen("s:train:0:optim_step:"));
}

static int count_of(const bool seen[POLLS])
{
    int n = 0;
    for (int i = 0; i < POLLS; i++)
        n += seen[i];
    return n;
}

/* Looking one piece up takes longer than the pause after which it is due again. */
static void with_more_due_than_can_be_asked_for_all_get_their_turn(void **state)
{
    struct parked_table *t = table_for_test(POLLS);
    char list[PIECE * (ID_SIZE + 1) + 2];
    bool seen[POLLS] = {false};
    for (int64_t now_ms = 1000; now_ms < 1000 + 2 * POLLS / PIECE; now_ms++) {
        assert_int_equal(parked_due_for_cold(t, now_ms, now_ms + 1, PIECE, list), PIECE);
        for (char *id = strtok(list, "{},"); id; id = strtok(NULL, "{},"))
            seen[number_in(id)] = true;
    }
    assert_int_equal(count_of(seen), POLLS);
    end(t);
}

static void the_sweep_comes_round_too(void **state)
{
    struct parked_table *t = table_for_test(POLLS);
    static char ids[PIECE][ID_SIZE];
    bool seen[POLLS] = {false};
    for (int round = 0; round < 2 * POLLS / PIECE; round++) {
        assert_int_equal(parked_some(t, ids, PIECE), PIECE);
        for (int i = 0; i < PIECE; i++)
            seen[number_in(ids[i])] = true;
    }
    assert_int_equal(count_of(seen), POLLS);
    end(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_polls_of_an_id_are_taken_once),
        cmocka_unit_test(what_is_late_is_taken),
        cmocka_unit_test(what_was_asked_for_is_due_again_later),
        cmocka_unit_test(with_more_due_than_can_be_asked_for_all_get_their_turn),
        cmocka_unit_test(the_sweep_comes_round_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
