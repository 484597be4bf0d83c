"""Makes a folder in which the published recipes of tinker-cookbook and hpcai run offline, unchanged.

    python prepare.py DIR --programs FOLDER [--python FOLDER] [--python-path PATH]

    DIR/Qwen/Qwen3-8B       a tiny model under a name that the recipes know (they choose the chat format by it), and its
    DIR/Qwen/..., baseten/  tokenizer once more under the other names that recipes have written into them
    DIR/HuggingFaceH4/...   small data sets
    DIR/env                 variables; to be sourced

`./tinworks recipes DIR` calls it with the right words.  Made again only when the scripts here have changed."""

import argparse
import hashlib
import pathlib
import shlex
import shutil

import base
import data

MODEL = "Qwen/Qwen3-8B"
TOKENIZERS = ("Qwen/Qwen3-4B", "baseten/Meta-Llama-3-tokenizer", "Qwen/Qwen3.6-35B-A3B")  # hpcai sl_basic, rl_basic; prompt distillation


def copy_tokenizers(out):
    for name in TOKENIZERS:
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(out / MODEL / file, folder / file)


def write_env(out, python, python_path):
    """`python` is the folder of the interpreter."""
    variables = {
        "PYTHONPATH": python_path,
        "TINWORKS_MODEL": MODEL,
        "TINWORKS_MODEL_DIR": str(out / MODEL),
        "HF_HOME": str(out / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TINKER_TELEMETRY": "0",
        "TINKER_COOKBOOK_RUNS_DIR": str(out / "runs"),
    }
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    if python:
        lines.append(f"export PATH={shlex.quote(python)}:$PATH\n")
    (out / "env").write_text("".join(lines))


def stamp():
    files = [*sorted(pathlib.Path(__file__).parent.glob("*.py")), base.TOKENIZER / "tokenizer.json"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def make(out, programs):
    for name in ("Qwen", "HuggingFaceH4", "Anthropic", "openai", "prophetarena", "tinker_cookbook", "hf"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / MODEL).parent.mkdir(parents=True)
    base.make(out / MODEL, programs)
    copy_tokenizers(out)
    data.make(out)


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("out", type=pathlib.Path)
    args.add_argument("--programs", type=pathlib.Path, required=True, help="folder of tinworks-model and tinworks-engine")
    args.add_argument("--python", default="", help="folder of the interpreter, to be first in PATH")
    args.add_argument("--python-path", default="", help="what PYTHONPATH is to be")
    args = args.parse_args()
    out = args.out.resolve()
    made = out / "made"
    out.mkdir(parents=True, exist_ok=True)
    if not made.exists():
        if any(out.iterdir()):
            raise SystemExit(f"{out} is not empty and was not made by this script; name another folder")
        made.touch()  # from here on what is in the folder is ours to replace
    if made.read_text() != stamp():
        make(out, args.programs)
        made.write_text(stamp())
    write_env(out, args.python, args.python_path)

if __name__ == "__main__":
    main()
