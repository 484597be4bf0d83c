"""tinker 0.25.0, an older client of the same protocol, in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
OLDER = HERE.parents[1] / ".tinworks" / "clients" / "tinker-0.25"  # made by ./tinworks test


@pytest.fixture(scope="module")
def seen(stack):
    _, key = stack.account("older")
    path = os.pathsep.join([str(OLDER), str(HERE.parent / "support")])
    done = subprocess.run(
        [sys.executable, str(HERE / "older.py"), stack.base_url, key, stack.model],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_the_older_client(seen):
    assert seen["version"] == "0.25.0"


def test_it_trains_and_goes_on_from_a_state(seen):
    assert seen["expected"] == seen["resumed"] != seen["before"]


def test_it_samples(seen):
    assert seen["sampled"] == 6


def test_its_archive_is_an_address_of_a_tar_with_the_adapter(seen):
    assert seen["archive"] == ["adapter_config.json", "adapter_model.safetensors", "checkpoint_complete"]
    assert seen["rank"] == 8
