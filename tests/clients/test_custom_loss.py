"""forward_backward_custom: the SDK evaluates the user's loss with PyTorch and sends its derivative as weights."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

HERE = pathlib.Path(__file__).resolve().parent
TORCH = HERE.parents[1] / ".tinworks" / "torch"  # made by ./tinworks test


@pytest.fixture(scope="module")
def seen(stack, first_account):
    path = os.pathsep.join([str(TORCH), str(HERE.parent / "support")])
    done = subprocess.run(
        [sys.executable, str(HERE / "custom_loss.py"), stack.base_url, first_account[1], stack.model],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_custom_loss_that_is_cross_entropy_does_what_cross_entropy_does(seen):
    custom, builtin = seen["custom"], seen["builtin"]
    assert custom["logprobs"] == builtin["logprobs"]
    assert custom["grad_norm"] == builtin["grad_norm"] > 0
    assert custom["after"] == builtin["after"] != custom["logprobs"]
    assert custom["metrics"]["tokens:sum"] == 33
    assert custom["metrics"]["surrogate_loss:sum"] == builtin["metrics"]["loss:sum"]
    assert np.isclose(custom["metrics"]["loss:sum"], builtin["metrics"]["loss:sum"], rtol=1e-5)


def test_a_curved_loss_has_the_gradient_that_was_worked_out_by_hand(seen):
    curved, by_hand = seen["curved"], seen["by_hand"]
    p = np.concatenate([np.frombuffer(bytes.fromhex(x), dtype=np.float32) for x in curved["logprobs"]])
    assert np.isclose(curved["metrics"]["loss:sum"], (p.astype(np.float64) ** 2).sum() / 2, rtol=1e-5)
    assert curved["grad_norm"] == by_hand["grad_norm"] > 0
    assert curved["after"] == by_hand["after"]
