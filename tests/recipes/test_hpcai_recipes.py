"""hpcai 0.2.0's bundled recipes, unchanged."""

import pytest
from recipe import TIMEOUT_S, falls

pytestmark = pytest.mark.timeout(TIMEOUT_S)
SMALL = ("lora_rank=8", "learning_rate=2e-3")
ANSWERS = ("group_size=8", "max_tokens=12")


def recipe(name):
    return pytest.mark.recipe(f"hpcai.cookbook.recipes.{name}")


@recipe("sl_basic")
def test_sl_basic(customer):
    metrics = customer.run("hpcai.cookbook.recipes.sl_basic", *SMALL, "num_epochs=2", "save_every=4")
    assert [step["step"] for step in metrics] == list(range(8))
    assert falls(metrics, "train_mean_nll")
    tokens = customer.check_bill()
    assert tokens["train"] == sum(step["num_tokens"] for step in metrics)
    assert tokens["prefill"] > 0  # its evaluation is a forward pass


@recipe("math_rl.train")
def test_math_rl(customer):
    words = ("env=gsm8k", "groups_per_batch=12", *ANSWERS, *SMALL)
    metrics = customer.run("hpcai.cookbook.recipes.math_rl.train", *words)
    assert [step["progress/batch"] for step in metrics] == list(range(4))
    assert any(step["env/all/correct"] > 0 for step in metrics)
    assert all(step["optim/kl_sample_train_v1"] == 0 for step in metrics)  # each step samples from its own weights, to the bit
    tokens = customer.check_bill()
    assert tokens["sample"] >= sum(step["env/all/total_ac_tokens"] for step in metrics) > 0 < tokens["train"]


@pytest.mark.cookbook
@recipe("rl_basic")
def test_rl_basic(customer):
    [step] = customer.run("hpcai.cookbook.recipes.rl_basic", *SMALL, "max_tokens=12")  # one batch of all there is
    assert step["env/all/total_episodes"] == 48 * 16
    tokens = customer.check_bill()
    assert tokens["sample"] >= step["env/all/total_ac_tokens"] > 0 < tokens["train"]


@pytest.mark.cookbook
@recipe("sl_loop")
def test_sl_loop(customer):
    metrics = customer.run("hpcai.cookbook.recipes.sl_loop", *SMALL, "batch_size=16", "save_every=4")
    assert len(metrics) == 8 and falls(metrics, "train_mean_nll")
    assert customer.check_bill()["train"] == sum(step["num_tokens"] for step in metrics)


@pytest.mark.cookbook
@recipe("chat_sl.train")
def test_chat_sl(customer):
    metrics = customer.run("hpcai.cookbook.recipes.chat_sl.train", *SMALL, "dataset=no_robots", "batch_size=16")
    assert len(metrics) == 8 and falls(metrics, "train_mean_nll")
    assert customer.check_bill()["train"] == sum(step["num_tokens"] for step in metrics)


@pytest.mark.cookbook
def test_rl_loop_ends_in_its_own_client(customer):
    """It names a sampler by its path alone, which its own client refuses before it asks any server."""
    run = customer.start("hpcai.cookbook.recipes.rl_loop", *SMALL, *ANSWERS, "batch_size=12")
    assert run.finish(code=1) == []
    assert "service_client.create_sampling_client(model_path=sampling_path)" in run.output()
    assert run.output().rstrip().endswith("ValueError: base_model must be provided")
