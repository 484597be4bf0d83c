"""The gateway is killed and started again in the middle of a recipe, and the recipe does not notice."""

import pytest
from recipe import TIMEOUT_S
from waiting import staged

pytestmark = pytest.mark.timeout(TIMEOUT_S)

def finishes(kitchen, customer, steps, module, *words):
    run = customer.start(module, "lora_rank=8", "learning_rate=1e-3", *words)
    run.wait_for_steps(2)
    kitchen.kill("gateway")
    before = len(run.metrics())
    kitchen.tinworks("up")
    metrics = run.finish()
    staged(before < steps, "the gateway is killed while the recipe runs")
    assert sum("progress" in step or "progress/batch" in step for step in metrics) == steps
    return metrics


def test_a_tinker_recipe(kitchen, customer):
    words = ("dataset=no_robots", "batch_size=8", "num_epochs=4", "save_every=20", "eval_every=0")
    metrics = finishes(kitchen, customer, 64, "tinker_cookbook.recipes.chat_sl.train", *words)
    assert customer.check_bill()["train"] == sum(step["num_tokens"] for step in metrics)


@pytest.mark.cookbook
def test_a_tinker_recipe_that_samples(kitchen, customer):
    words = ("env=gsm8k", "groups_per_batch=4", "group_size=8", "max_tokens=12", "max_steps=12", "loss_fn=importance_sampling")
    finishes(kitchen, customer, 12, "tinker_cookbook.recipes.math_rl.train", *words)
    customer.check_bill()


@pytest.mark.cookbook
def test_an_hpcai_recipe(kitchen, customer):
    words = ("dataset=no_robots", "batch_size=8", "num_epochs=4", "save_every=20", "eval_every=0")
    metrics = finishes(kitchen, customer, 64, "hpcai.cookbook.recipes.chat_sl.train", *words)
    assert customer.check_bill()["train"] == sum(step["num_tokens"] for step in metrics)
