"""tinker-cookbook 0.6.1's recipes, unchanged."""

import json
import os

import pytest
from recipe import FOLDER, MODEL, TIMEOUT_S, exported, falls, plain

pytestmark = [pytest.mark.cookbook, pytest.mark.timeout(TIMEOUT_S)]
SMALL = ("lora_rank=8", "learning_rate=2e-3")
ANSWERS = ("group_size=8", "max_tokens=12")
TORCH_2 = os.environ.get("TINWORKS_TORCH")  # a folder in which PyTorch 2 is found; tools/torch-venv.sh makes one
LOSSES = "cross_entropy, importance_sampling, ppo, cispo, dro, gspo"


def recipe(name):
    return pytest.mark.recipe(f"tinker_cookbook.recipes.{name}")


def check_own_count(customer, metrics):
    """What the recipe's own tally of tokens says is what was trained and sampled; it knows no evaluations."""
    tokens = customer.check_bill()
    assert metrics[-1]["tokens/cumulative/trained"] == tokens["train"] > 0
    assert metrics[-1]["tokens/cumulative/sampled"] <= tokens["sample"]
    return tokens


# ------------------------------------------------------------ supervised


@recipe("sl_loop")
def test_sl_loop(customer):
    metrics = customer.run("tinker_cookbook.recipes.sl_loop", *SMALL, "batch_size=16", "save_every=4")
    assert len(metrics) == 8 and falls(metrics, "train_mean_nll")
    assert customer.check_bill()["train"] == sum(step["num_tokens"] for step in metrics)


@recipe("sl_basic")
def test_sl_basic(customer):
    metrics = customer.run("tinker_cookbook.recipes.sl_basic", *SMALL, "num_epochs=6")  # an epoch is one batch of all there is
    assert len(metrics) == 6 and falls(metrics, "train_mean_nll")
    check_own_count(customer, metrics)


@recipe("chat_sl.train")
def test_chat_sl(customer):
    words = ("dataset=no_robots", "batch_size=16", "save_every=4", "rolling_save_every=2", "eval_every=4")
    metrics = customer.run("tinker_cookbook.recipes.chat_sl.train", *SMALL, *words)
    assert len(metrics) == 8 and falls(metrics, "train_mean_nll") and falls(metrics, "test/nll")
    check_own_count(customer, metrics)


# ------------------------------------------------------------ reinforcement


@recipe("rl_loop")
@pytest.mark.parametrize("loss", ["importance_sampling", "cispo", "gspo"])
def test_rl_loop(customer, loss):
    words = (*SMALL, *ANSWERS, "batch_size=12", "save_every=2", f"loss_fn={loss}")
    metrics = customer.run("tinker_cookbook.recipes.rl_loop", *words)
    assert len(metrics) == 4
    assert any(step.get("grad_norm:mean", 0) > 0 for step in metrics)
    tokens = customer.check_bill()
    assert all(count > 0 for count in tokens.values())


@recipe("rl_basic")
def test_rl_basic(customer):
    metrics = customer.run("tinker_cookbook.recipes.rl_basic", *SMALL, "max_tokens=12")
    assert metrics[0]["env/all/total_episodes"] == 48 * 16  # one batch of all there is
    check_own_count(customer, metrics)


@recipe("math_rl.train")
@pytest.mark.parametrize(
    "words",
    [
        ("loss_fn=importance_sampling", "compute_post_kl=true"),
        ("loss_fn=ppo", "num_substeps=2", "eval_every=2"),
        ("loss_fn=ppo", "max_steps_off_policy=2"),
        ("loss_fn=importance_sampling", "stream_minibatch_config.groups_per_batch=12", "stream_minibatch_config.num_minibatches=2"),
    ],
    ids=["importance_sampling", "ppo", "off_policy", "minibatches"],
)
def test_math_rl(customer, words):
    words = (*SMALL, *ANSWERS, "env=gsm8k", "groups_per_batch=12", "max_steps=3", *words)
    metrics = customer.run("tinker_cookbook.recipes.math_rl.train", *words)
    assert sum("optim/lr" in step for step in metrics) == 3
    assert any(step.get("grad_norm:mean", 0) > 0 for step in metrics)
    if "compute_post_kl=true" in words:  # one update a step, so each samples from its own weights, to the bit
        assert all(step["optim/kl_sample_train_v1"] == 0 for step in metrics if "optim/lr" in step)
    check_own_count(customer, metrics)


@pytest.mark.parametrize("name", ["rl_loop", "math_rl.train"])
def test_the_default_loss_is_not_public_and_the_error_names_those_we_have(customer, name):
    words = ["batch_size=12"] if name == "rl_loop" else ["env=gsm8k", "groups_per_batch=12", "max_steps=1"]
    run = customer.start(f"tinker_cookbook.recipes.{name}", *SMALL, *ANSWERS, *words)
    assert run.process.wait(300) != 0
    assert f'loss_fn is "stable_reinforce", expected one of {LOSSES}' in plain(run.output())
    assert customer.check_bill()["train"] == 0


# ------------------------------------------------------------ preferences, custom losses, distillation


@recipe("preference.dpo.train")
def test_dpo(customer):
    """Its loss is the user's own: forward_backward_custom."""
    words = ("dataset=hhh", "batch_size=16", "learning_rate=1e-3", "max_steps=6")
    metrics = customer.run("tinker_cookbook.recipes.preference.dpo.train", *words)
    assert len(metrics) == 6 and falls(metrics, "dpo_loss")
    assert metrics[0]["dpo_loss"] == pytest.approx(0.6931, abs=1e-3)  # policy and reference are the same at first
    customer.check_bill()


@pytest.mark.skipif(not TORCH_2, reason="the SDK's to_torch of a sparse tensor needs PyTorch 2; TINWORKS_TORCH names a folder with one")
def test_decisions(customer):
    """A custom loss over the probabilities of a few tokens, [N, K] targets at each position."""
    words = (*SMALL, "data_path=prophetarena/markets.csv", "batch_size=16", "epochs=3", "eval_every=4")
    path = f"{TORCH_2}:{exported(FOLDER / 'env')['PYTHONPATH']}"
    metrics = customer.start("tinker_cookbook.recipes.decisions.forecasting", *words, PYTHONPATH=path).finish()
    losses = [step["train/loss"] for step in metrics if "train/loss" in step]
    assert len(losses) == 9 and losses[-1] < losses[0]
    tokens = customer.check_bill()
    assert tokens["train"] > 0 < tokens["prefill"]


@recipe("prompt_distillation")
def test_prompt_distillation(customer, kitchen, tmp_path):
    """The teacher's name is written into the first script, so a second worker serves the model under it."""
    data = tmp_path / "distilled.jsonl"
    with kitchen.another("worker", rb" worker\.ready ", model="Qwen/Qwen3.6-35B-A3B", model_dir=FOLDER / MODEL, slot=1):
        customer.call("tinker_cookbook.recipes.prompt_distillation.create_data", f"output_file={data}")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert len(rows) >= 12 and all(len(row["messages"][1]["content"]) == 2 for row in rows)
    words = (*SMALL, f"file_path={data}", "batch_size=6", "num_epochs=4", "save_every=0")
    metrics = customer.run("tinker_cookbook.recipes.prompt_distillation.train", *words)
    assert len(metrics) >= 8 and falls(metrics, "train_mean_nll")
    customer.check_bill()
