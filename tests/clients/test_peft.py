"""PEFT, unchanged, loads the adapters that the engine saves, and computes the same with them."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("TINWORKS_BUILD_DIR", ROOT / "build" / "release"))
SKIPPED = 77


def test_peft_loads_what_the_engine_saved():
    path = [str(ROOT / ".tinworks" / name) for name in ("peft", "torch")]  # made by ./tinworks test
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_peft.py"), "--bin", str(BUILD / "worker" / "cli")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    # tied and untied, three adapters, each trained on a base in fp32 and on one in bf16
    assert done.stdout.count("the adapter changes up to") == 12
