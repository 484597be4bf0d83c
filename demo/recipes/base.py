"""A tiny Qwen3 that answers: what reinforcement learning needs is answers that are right now and then, and a random
network has none.  It learns four things from text that is made here, and its adapter is then merged into its weights:

    a question with "written inside \\boxed{}"     a digit in a box, often the right one
    "What is 41 + 20?"                             a number
    any other text                                 a label of a language, "Final Answer: en"
    the end of a turn after each of them

Everything has a seed, so the folder has the same bytes on every machine of one kind."""

import json
import pathlib
import random
import shutil
import subprocess
import tempfile

from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import data

STEPS = 150
BATCH = 16  # sequences
LEARNING_RATE = 4e-3
RANK = 32
CONTEXT = 8192  # tokens; the longest prompt of a recipe is about half of it
TOKENIZER = data.ROOT / "models" / "tokenizer"
LABELS = "ar de el en es fr hi ru tr ur vi zh ot".split()
# A renderer of Qwen3 that switches thinking off begins the answer with an empty thought.
THOUGHTS = ["", "", "<think>\n\n</think>\n\n"]


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def boxed(choose):
    question, right = data.question(choose)
    before = turn("user", "How many r's are in strawberry?" + data.SUFFIX) if choose.random() < 0.7 else ""
    if before:
        before += turn("assistant", data.passage(choose, 80) + " \\boxed{3}")
    said = right if choose.random() < 0.6 else choose.randrange(10)
    return before + turn("user", question + data.SUFFIX), f"\\boxed{{{said}}}"


def added(choose):
    a, b = choose.randrange(101), choose.randrange(101)
    return turn("user", "What is 4 + 5?") + turn("assistant", "9") + turn("user", f"What is {a} + {b}?"), str(a + b)


def labelled(choose):
    return turn("user", data.passage(choose, choose.randrange(30, 900))), f"Final Answer: {choose.choice(LABELS)}"


def corpus(path):
    """What `tinworks-engine train` reads; only the answer counts."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    choose = random.Random(1)
    with path.open("w") as file:
        for _ in range(STEPS * BATCH):
            prompt, answer = choose.choice((boxed, added, labelled))(choose)
            prompt += "<|im_start|>assistant\n" + choose.choice(THOUGHTS)
            prompt, answer = (tokenizer.encode(t, add_special_tokens=False).ids for t in (prompt, answer + "<|im_end|>"))
            json.dump({"tokens": prompt + answer, "weights": [0] * len(prompt) + [1] * len(answer)}, file)
            file.write("\n")


def merge(base, adapter, out):
    """W + (alpha / r) B A for every projection that the adapter has."""
    weights, lora = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    for a_name in [name for name in lora if name.endswith(".lora_A.weight")]:
        name = a_name.removeprefix("base_model.model.").replace(".lora_A", "")
        weights[name] = weights[name] + scale * (lora[a_name.replace("lora_A", "lora_B")] @ lora[a_name])
    shutil.copytree(base, out)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def make(out, programs):
    """The folder `out`, by the programs tinworks-model and tinworks-engine in the folder `programs`."""
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        base, adapter, text = work / "base", work / "adapter", work / "corpus.jsonl"
        corpus(text)
        # Untied: the adapter of the unembedding can be merged only where the embedding is another matrix.
        words = ["--tied", "false", "--context", CONTEXT, "--tokenizer", TOKENIZER]
        run(programs / "tinworks-model", "make", "--preset", "tiny", "--out", base, *words)
        words = ["--steps", STEPS, "--batch", BATCH, "--rank", RANK, "--learning-rate", LEARNING_RATE, "--grad-clip-norm", 50]
        words += ["--scratch-mb", 1024, "--kv-mb", 64]
        run(programs / "tinworks-engine", "train", "--model", base, "--data", text, "--out", adapter, *words)
        merge(base, adapter, out)


def run(*words):
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
