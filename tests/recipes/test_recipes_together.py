"""A customer of each SDK at once, on one worker."""

import os
import signal

import pytest
from recipe import TIMEOUT_S
from waiting import wait_for

pytestmark = pytest.mark.timeout(TIMEOUT_S)
WORDS = ("lora_rank=8", "learning_rate=1e-3", "dataset=no_robots", "batch_size=8", "num_epochs=4", "save_every=0", "eval_every=0")


def begun_together(kitchen, *starts, accounts):
    """The worker stands still until each account has a run: a process takes its time to begin, and another one more."""
    have_run = "select count(distinct account_id) from runs where account_id = any(%s)"
    worker = kitchen.pid("worker")
    os.kill(worker, signal.SIGSTOP)
    try:
        runs = [start() for start in starts]

        def begun():
            for run in runs:
                assert run.process.poll() is None, f"ended before it began:\n{run.output()[-3000:]}"
            return kitchen.sql(have_run, accounts) == [(len(accounts),)]

        wait_for(begun, "all of them to begin")
    finally:
        os.kill(worker, signal.SIGCONT)
    return runs


def test_hpcai_and_tinker_train_at_the_same_time_and_both_bills_are_right(kitchen, customer, other_customer):
    before = kitchen.counters("worker:0")["batches_multi_run"]
    runs = begun_together(
        kitchen,
        lambda: customer.start("tinker_cookbook.recipes.chat_sl.train", *WORDS),
        lambda: other_customer.start("hpcai.cookbook.recipes.chat_sl.train", *WORDS),
        accounts=[customer.account, other_customer.account],
    )
    metrics = [run.finish() for run in runs]
    for who, seen in zip((customer, other_customer), metrics):
        assert len(seen) == 64
        assert who.check_bill()["train"] == sum(step["num_tokens"] for step in seen)
    wait_for(lambda: kitchen.counters("worker:0")["batches_multi_run"] > before, "a batch with both runs")
    assert kitchen.tinworks("audit", check=False).returncode == 0
