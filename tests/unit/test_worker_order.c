/* test_worker_order.c - a run's jobs in order, whatever the order in which they arrive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "order.h"

static int items[8192];

static struct order *order_for_test(int64_t applied)
{
    struct err e = {0};
    struct order *o = order_create(applied, &e);
    assert_non_null(o);
    return o;
}

static int add(struct order *o, int64_t seq)
{
    struct err e = {0};
    return order_add(o, seq, 0, &items[seq], &e);
}

static void a_gap_holds_back_what_follows(void **state)
{
    struct order *o = order_for_test(0);
    assert_int_equal(add(o, 2), ORDER_HELD);
    assert_int_equal(add(o, 3), ORDER_HELD);
    assert_null(order_at(o, 1));
    assert_int_equal(order_unbroken(o), 0);
    assert_int_equal(add(o, 1), ORDER_HELD);
    assert_int_equal(order_unbroken(o), 3);
    for (int64_t seq = 1; seq <= 3; seq++) {
        assert_ptr_equal(order_at(o, seq), &items[seq]);
        order_done(o, seq);
        assert_int_equal(order_applied(o), seq);
    }
    assert_int_equal(order_held(o), 0);
    order_free(o);
}

static void the_first_copy_of_a_seq_wins(void **state)
{
    struct err e = {0};
    int other;
    struct order *o = order_for_test(-1);
    assert_int_equal(add(o, 0), ORDER_HELD);
    assert_int_equal(order_add(o, 0, 0, &other, &e), ORDER_COPY);
    assert_ptr_equal(order_at(o, 0), &items[0]);
    order_done(o, 0);
    assert_int_equal(add(o, 0), ORDER_COPY);
    order_free(o);
}

static int add_kind(struct order *o, int64_t seq, int mark)
{
    struct err e = {0};
    return order_add(o, seq, mark, &items[seq], &e);
}

static void another_kind_under_a_used_seq_is_told_once(void **state)
{
    struct order *o = order_for_test(0);
    assert_int_equal(add_kind(o, 1, 2), ORDER_HELD);
    assert_int_equal(add_kind(o, 1, 3), ORDER_USED); /* while the first is held */
    assert_int_equal(add_kind(o, 1, 3), ORDER_COPY);
    order_done(o, 1);
    assert_int_equal(add_kind(o, 1, 2), ORDER_COPY);
    assert_int_equal(add_kind(o, 1, 3), ORDER_COPY);
    assert_int_equal(add_kind(o, 1, 4), ORDER_USED); /* after it was over */
    assert_int_equal(add_kind(o, 1, 4), ORDER_COPY);
    order_free(o);
}

static void what_a_snapshot_covers_is_a_copy(void **state)
{
    struct order *o = order_for_test(41);
    assert_int_equal(add(o, 41), ORDER_COPY);
    assert_int_equal(add(o, 42), ORDER_HELD);
    order_free(o);
}

static void the_window_counts_from_the_unbroken_row(void **state)
{
    struct order *o = order_for_test(0);
    assert_int_equal(add(o, ORDER_WINDOW + 1), ORDER_FAR);
    assert_int_equal(add(o, ORDER_WINDOW), ORDER_HELD);
    assert_int_equal(add(o, 1), ORDER_HELD);
    assert_int_equal(add(o, ORDER_WINDOW + 1), ORDER_HELD);
    assert_int_equal(add(o, ORDER_WINDOW + 2), ORDER_FAR);
    order_free(o);
}

static void a_long_backlog_keeps_its_order(void **state)
{
    struct order *o = order_for_test(0);
    for (int64_t seq = 1; seq < 8000; seq++)
        assert_int_equal(add(o, seq), ORDER_HELD);
    for (int64_t seq = 1; seq < 8000; seq++) {
        assert_ptr_equal(order_at(o, seq), &items[seq]);
        order_done(o, seq);
    }
    assert_int_equal(order_applied(o), 7999);
    order_free(o);
}

struct failed {
    int count;
    int *last;
};

static void note(void *arg, void *item)
{
    struct failed *f = arg;
    f->count++;
    f->last = item;
}

static void an_expiry_fails_what_is_behind_the_gap_and_nothing_before_it(void **state)
{
    struct failed f = {0};
    struct order *o = order_for_test(0);
    add(o, 1);
    add(o, 2);
    add(o, 4);
    add(o, 6);
    assert_int_equal(order_expire(o, note, &f), 2);
    assert_int_equal(f.count, 2);
    assert_ptr_equal(f.last, &items[6]);
    assert_ptr_equal(order_at(o, 1), &items[1]);
    order_done(o, 1);
    assert_int_equal(order_applied(o), 1);
    order_done(o, 2);
    assert_int_equal(order_applied(o), 6); /* what was given up is over with it */
    assert_int_equal(add(o, 7), ORDER_HELD);
    order_free(o);
}

static void a_job_whose_seq_was_given_up_before_it_came_is_late_once(void **state)
{
    struct failed f = {0};
    struct order *o = order_for_test(0);
    add(o, 1);
    add(o, 4);
    order_expire(o, note, &f);
    assert_int_equal(add(o, 2), ORDER_LATE);
    assert_int_equal(add(o, 2), ORDER_COPY);
    assert_int_equal(add(o, 4), ORDER_COPY); /* it failed with the expiry */
    order_done(o, 1);
    assert_int_equal(order_applied(o), 4);
    assert_int_equal(add(o, 3), ORDER_LATE);
    assert_int_equal(add(o, 3), ORDER_COPY);
    assert_int_equal(add(o, 2), ORDER_COPY);
    order_free(o);
}

static struct order *recalled(const struct order *o)
{
    uint8_t past[ORDER_PAST];
    int count = order_past(o, past);
    struct order *again = order_for_test(order_applied(o));
    order_recall(again, past, count);
    return again;
}

static void who_loads_a_snapshot_answers_as_the_order_before_it(void **state)
{
    struct failed f = {0};
    struct order *o = order_for_test(-1);
    add(o, 0);
    add(o, 1);
    add(o, 5);
    order_expire(o, note, &f); /* 2, 3, 4 are missing, 5 has failed */
    order_done(o, 0);
    order_done(o, 1);
    assert_int_equal(add(o, 3), ORDER_LATE);
    struct order *again = recalled(o);
    assert_int_equal(order_applied(again), 5);
    assert_int_equal(add(again, 1), ORDER_COPY);
    assert_int_equal(add_kind(again, 1, 1), ORDER_USED);
    assert_int_equal(add(again, 2), ORDER_LATE);
    assert_int_equal(add(again, 2), ORDER_COPY);
    assert_int_equal(add(again, 3), ORDER_COPY);
    assert_int_equal(add(again, 4), ORDER_LATE);
    assert_int_equal(add(again, 5), ORDER_COPY);
    assert_int_equal(add(again, 6), ORDER_HELD);
    order_free(again);
    order_free(o);
}

static void the_past_is_bounded_and_what_is_older_is_a_copy(void **state)
{
    struct failed f = {0};
    struct order *o = order_for_test(0);
    add(o, 2);
    order_expire(o, note, &f); /* 1 is missing */
    for (int64_t seq = 3; seq <= ORDER_PAST; seq++) {
        add(o, seq);
        order_done(o, seq);
    }
    struct order *in_time = recalled(o);
    assert_int_equal(add(in_time, 1), ORDER_LATE);
    add(o, ORDER_PAST + 1);
    order_done(o, ORDER_PAST + 1);
    assert_int_equal(add(o, 1), ORDER_COPY);
    struct order *again = recalled(o);
    assert_int_equal(add(again, 1), ORDER_COPY);
    assert_int_equal(add_kind(again, 2, 1), ORDER_USED);
    order_free(in_time);
    order_free(again);
    order_free(o);
}

static void an_expiry_without_a_gap_changes_nothing(void **state)
{
    struct failed f = {0};
    struct order *o = order_for_test(0);
    add(o, 1);
    add(o, 2);
    assert_int_equal(order_expire(o, note, &f), 0);
    assert_ptr_equal(order_at(o, 2), &items[2]);
    order_free(o);
}

static void all_that_is_held_is_walked_in_order(void **state)
{
    struct failed f = {0};
    struct order *o = order_for_test(0);
    add(o, 5);
    add(o, 2);
    order_each(o, note, &f);
    assert_int_equal(f.count, 2);
    assert_ptr_equal(f.last, &items[5]);
    order_free(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_gap_holds_back_what_follows),
        cmocka_unit_test(the_first_copy_of_a_seq_wins),
        cmocka_unit_test(another_kind_under_a_used_seq_is_told_once),
        cmocka_unit_test(what_a_snapshot_covers_is_a_copy),
        cmocka_unit_test(the_window_counts_from_the_unbroken_row),
        cmocka_unit_test(a_long_backlog_keeps_its_order),
        cmocka_unit_test(an_expiry_fails_what_is_behind_the_gap_and_nothing_before_it),
        cmocka_unit_test(a_job_whose_seq_was_given_up_before_it_came_is_late_once),
        cmocka_unit_test(who_loads_a_snapshot_answers_as_the_order_before_it),
        cmocka_unit_test(the_past_is_bounded_and_what_is_older_is_a_copy),
        cmocka_unit_test(an_expiry_without_a_gap_changes_nothing),
        cmocka_unit_test(all_that_is_held_is_walked_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
