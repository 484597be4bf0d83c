"""Small data sets in the places and columns that the recipes read them from.

A name like `openai/gsm8k` is looked for in the folder where a recipe runs before it is looked for on any hub.  The text is
the licences that every Debian carries and arithmetic."""

import csv
import json
import pathlib
import random

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = pathlib.Path("/usr/share/common-licenses")
SUFFIX = " Provide a numerical answer without units, written inside \\boxed{}."  # what the recipes add to a question
NAMES = ("Ada", "Ben", "Cleo", "Dan")
THINGS = ("apples", "books", "coins", "pens")


def read_text():
    files = sorted(p for p in TEXTS.iterdir() if p.is_file() and not p.is_symlink())
    return " ".join(" ".join(p.read_text(encoding="utf-8", errors="replace").split()) for p in files)


TEXT = read_text()


def passage(choose, length):
    at = choose.randrange(len(TEXT) - length)
    return TEXT[at : at + length]


def question(choose):
    """Text and answer, a digit."""
    a, b = choose.randrange(5), choose.randrange(5)
    name, things = choose.choice(NAMES), choose.choice(THINGS)
    return f"{name} has {a} {things} and gets {b} more. How many {things} does {name} have?", a + b


def conversation(choose):
    """Two halves of a passage, for `HuggingFaceH4/no_robots`."""
    text = passage(choose, 200)
    return {"messages": [{"role": "user", "content": text[:100]}, {"role": "assistant", "content": text[100:]}]}


def word_problem(choose):
    """`openai/gsm8k`: the solution, and after #### the answer."""
    text, right = question(choose)
    return {"question": text, "answer": f"We add.\n#### {right}"}


def comparison(choose):
    """`Anthropic/hh-rlhf`: two dialogues that differ in the last answer; the passage's own next words are better than others."""
    text = passage(choose, 160)
    begin = f"\n\nHuman: {text[:80]}\n\nAssistant: "
    return {"chosen": begin + text[80:], "rejected": begin + passage(choose, 80).upper()}


def write(folder, split, make, count):
    choose = random.Random(f"{folder.name} {split}")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{split}.jsonl").open("w") as file:
        for _ in range(count):
            file.write(json.dumps(make(choose)) + "\n")


def write_configured(folder, config, make, counts):
    """A data set whose name needs a second word, which its card explains."""
    for split, count in counts.items():
        write(folder / config, split, make, count)
    files = "".join(f"  - split: {split}\n    path: {config}/{split}.jsonl\n" for split in counts)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n")


def sentences(folder):
    """What prompt distillation labels; the recipe reads it from where it runs."""
    choose = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "multilingual.txt").write_text("".join(passage(choose, 80) + "\n" for _ in range(24)))


def market(choose, number, closed):
    """A row of Prophet Arena's table: settled with yes, mostly, and before the split of 20 October 2025 or opened after it."""
    name, month = f"draw {number} is won", "09" if closed else "11"
    return {
        "submission_id": f"s{number}",
        "event_ticker": f"E{number}",
        "title": f"Draw {number}",
        "snapshot_time": f"2025-{month}-01T00:00:00Z",
        "close_time": f"2025-{month}-02T00:00:00Z",
        "market_outcome": json.dumps({name: int(choose.random() < 0.8)}),
        "category": "Games",
        "markets": json.dumps([name]),
        "sources": json.dumps([{"title": "Rules", "summary": passage(choose, 100), "ranking": 1}]),
    }


def markets(path):
    choose = random.Random(7)
    rows = [market(choose, number, closed=number < 48) for number in range(64)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def make(out):
    for split, count in (("train", 128), ("test", 32)):
        write(out / "HuggingFaceH4" / "no_robots", split, conversation, count)
        write(out / "Anthropic" / "hh-rlhf", split, comparison, count)
    write_configured(out / "openai" / "gsm8k", "main", word_problem, {"train": 48, "test": 8})
    sentences(out / "tinker_cookbook" / "example_data")
    markets(out / "prophetarena" / "markets.csv")
