"""What the demo's scripts leave for each other: numbers to plot, losses to compare, tokens to check the bill with.

losses.txt holds every loss and reward as a hexadecimal float, so two demos can be compared bit by bit with `diff`."""

import json
import os
import pathlib

FOLDER = pathlib.Path(os.environ.get("TINWORKS_DEMO_DIR", ".tinworks/demo"))


class Record:
    """One script's numbers, written to FOLDER when it ends."""

    def __init__(self, name):
        self.name = name
        self.values = []
        self.tokens = {"prefill": 0, "sample": 0, "train": 0}
        self.ids = []
        self.extra = {}
        FOLDER.mkdir(parents=True, exist_ok=True)

    def add(self, step, value):
        self.values.append((step, value))

    def save(self):
        data = {"values": self.values, "tokens": self.tokens, "ids": self.ids, **self.extra}
        (FOLDER / f"{self.name}.json").write_text(json.dumps(data, indent=1))
        lines = [f"{self.name} {step} {float(value).hex()}\n" for step, value in self.values]
        (FOLDER / f"{self.name}.losses").write_text("".join(lines))
        parts = [FOLDER / f"{name}.losses" for name in ("sft", "rl")]
        (FOLDER / "losses.txt").write_text("".join(p.read_text() for p in parts if p.exists()))


def load(name):
    return json.loads((FOLDER / f"{name}.json").read_text())
