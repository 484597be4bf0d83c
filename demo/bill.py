"""The bill of the demo's runs, read from Postgres by `./tinworks usage`, beside what the scripts counted themselves.

A run pays for what it trained, a sampler for what it prefilled and sampled.  The RL loop makes a sampler every step;
here they are one line."""

import json
import pathlib
import subprocess
import time
from decimal import Decimal

from rich.console import Console
from rich.table import Table

import record

TINWORKS = pathlib.Path(__file__).resolve().parent.parent / "tinworks"
KINDS = ("prefill", "sample", "train")


def usage(session):
    """The rows of one session's runs and samplers."""
    words = [str(TINWORKS), "usage", "--account", "demo", "--by", "run", "--format", "json"]
    rows = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    return [row for row in rows if row["run"].startswith(session + ":")]


def tokens(rows):
    return {kind: sum(int(row[f"{kind}_tokens"]) for row in rows) for kind in KINDS}


def part_id(rows):
    return next((row["run"] for row in rows if ":train:" in row["run"]), "")


def settled_usage(name):
    """Billing reads the log a moment after the client has its answer: wait until it has read ours."""
    part = record.load(name)
    session = part["ids"][0].split(":")[0]
    for _ in range(600):
        rows = usage(session)
        if all(tokens(rows)[kind] >= part["tokens"][kind] for kind in KINDS):
            break
        time.sleep(0.1)
    if tokens(rows) != part["tokens"]:
        raise SystemExit(f"the bill of {name} says {tokens(rows)}, the script counted {part['tokens']}")
    return rows


def main():
    table = Table(title="The bill, from Postgres", title_justify="left")
    for title in ("part", "what", "jobs", "prefilled", "sampled", "trained", "USD per million", "amount USD"):
        table.add_column(title, justify="left" if title in ("part", "what") else "right")
    total = Decimal(0)
    for name in ("sft", "rl"):
        rows = settled_usage(name)
        runs = [row for row in rows if ":train:" in row["run"]]
        samplers = [row for row in rows if ":sample:" in row["run"]]
        for what, group in (("run " + part_id(rows), runs), (f"{len(samplers)} samplers", samplers)):
            if not group:
                continue
            counted = tokens(group)
            prices = {row[f"{k}_usd_per_million"] for row in group for k in KINDS if int(row[f"{k}_tokens"])}
            amount = sum(Decimal(row["amount_usd"]) for row in group)
            total += amount
            table.add_row(
                name,
                what,
                str(sum(int(row["jobs"]) for row in group)),
                *(f"{counted[k]:,}" for k in KINDS),
                " / ".join(sorted(prices, key=lambda p: Decimal(p.lstrip("~")))),
                f"{amount:.8f}",
            )
    table.add_section()
    table.add_row("", "total", "", "", "", "", "", f"{total:.8f}")
    Console(width=140, emoji=False, markup=False).print(table)
    print("every count equals what the scripts counted themselves")


if __name__ == "__main__":
    main()
