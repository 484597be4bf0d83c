"""A customer of each SDK at once, on one worker."""

from waiting import wait_for

WORDS = ("lora_rank=8", "learning_rate=1e-3", "dataset=no_robots", "batch_size=8", "num_epochs=4", "save_every=0", "eval_every=0")


def test_hpcai_and_tinker_train_at_the_same_time_and_both_bills_are_right(kitchen, customer, other_customer):
    before = kitchen.counters("worker:0")["batches_multi_run"]
    runs = [
        customer.start("tinker_cookbook.recipes.chat_sl.train", *WORDS),
        other_customer.start("hpcai.cookbook.recipes.chat_sl.train", *WORDS),
    ]
    metrics = [run.finish() for run in runs]
    for who, seen in zip((customer, other_customer), metrics):
        assert len(seen) == 64
        assert who.check_bill()["train"] == sum(step["num_tokens"] for step in seen)
    wait_for(lambda: kitchen.counters("worker:0")["batches_multi_run"] > before, "a batch with both runs")
    assert kitchen.tinworks("audit", check=False).returncode == 0
