"""A customer who runs recipes in processes of their own, behind a recorder that counts what the bill must be."""

import json
import os
import re
import secrets
import subprocess
import sys
import time

from recorder import KINDS, Recorder
from stack import ROOT
from waiting import wait_for

FOLDER = ROOT / ".tinworks" / "recipes"  # made by ./tinworks recipes
MODEL = "Qwen/Qwen3-8B"
PICO = {"prefill": 70_000, "sample": 220_000, "train": 220_000}  # the first price list, pico-dollars a token
PATIENCE_S = 500  # for one thing
TIMEOUT_S = 1800  # of a test, which waits for a few
PASSED, FAILED = set(), set()  # names of recipes, by the marks of the tests that were run


def exported(path):
    """The variables of a file of `export NAME=value` lines, as a shell reads them."""
    shown = subprocess.run(["bash", "-c", f". '{path}' && env -0"], capture_output=True, check=True, timeout=30).stdout
    return dict(pair.split("=", 1) for pair in shown.decode().split("\0") if pair)


class Run:
    """One recipe on its way."""

    def __init__(self, words, environ, log_path):
        self.log_path = log_path
        self.output_path = log_path.with_suffix(".out")
        with self.output_path.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words], env=environ, cwd=FOLDER, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def output(self):
        return self.output_path.read_text(errors="replace")

    def metrics(self):
        path = self.log_path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for_steps(self, count):
        def enough():
            assert self.process.poll() is None, f"ended at step {len(self.metrics())}:\n{self.output()[-3000:]}"
            return len(self.metrics()) >= count

        wait_for(enough, f"step {count}", PATIENCE_S)

    def finish(self, code=0):
        """Waits; the metrics."""
        assert self.process.wait(PATIENCE_S) == code, self.output()[-3000:]
        return self.metrics()


class Customer:
    def __init__(self, stack, name, folder):
        self.stack, self.folder = stack, folder
        self.account, self.key = stack.account(f"{name} {secrets.token_hex(4)}")
        self.recorder = Recorder(stack.base_url)
        self.runs = []

    def __enter__(self):
        self.folder.mkdir(exist_ok=True)
        self.recorder.__enter__()
        return self

    def __exit__(self, *_):
        for run in self.runs:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()
        self.recorder.__exit__()

    def environ(self, **more):
        ours = exported(FOLDER / "env")
        for sdk in ("TINKER", "HPCAI"):
            ours[f"{sdk}_BASE_URL"], ours[f"{sdk}_API_KEY"] = self.recorder.base_url, self.key
        return {**os.environ, **ours, "HF_HOME": str(self.folder / "hf"), **more}

    def start(self, module, *words, **more):
        """python -m module words..., in the recipes' folder; logs to a path of its own."""
        log_path = self.folder / f"run{len(self.runs)}"
        words = [module, f"model_name={MODEL}", f"log_path={log_path}", *words]
        self.runs.append(Run(words, self.environ(**more), log_path))
        return self.runs[-1]

    def run(self, module, *words):
        return self.start(module, *words).finish()

    def call(self, module, *words):
        """A script without a log folder; its output."""
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            env=self.environ(), cwd=FOLDER, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    # ------------------------------------------------------------ the bill

    def billed(self):
        [row] = self.stack.sql(
            "select coalesce(sum(prefill_tokens), 0), coalesce(sum(sample_tokens), 0), coalesce(sum(train_tokens), 0),"
            " coalesce(sum(amount_pico), 0) from job_outcomes where account_id = %s",
            self.account,
        )
        return dict(zip(KINDS, map(int, row))), int(row[3])

    def check_bill(self):
        """Postgres says what the recorder counted, to the token and the pico-dollar; the tokens."""
        counted = self.recorder.tokens()
        end = time.monotonic() + 240
        while self.billed()[0] != counted and time.monotonic() < end:
            time.sleep(0.1)
        tokens, amount = self.billed()
        assert tokens == counted
        assert amount == sum(PICO[kind] * count for kind, count in tokens.items()) > 0
        assert self.stack.sql("select tx from ledger_entries group by tx having sum(amount_pico) <> 0") == []
        return tokens


def falls(metrics, name):
    values = [step[name] for step in metrics if name in step]
    assert all(abs(value) < 1e6 for value in values), values  # not NaN either
    return values[-1] < values[0]


def plain(text):
    """Without a terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
