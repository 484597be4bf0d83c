#!/usr/bin/env python3
"""Trains the small tokenizer in models/tokenizer.

A byte-level BPE with 1,024 entries, learnt from the licence texts that every Debian carries and from
lines of small arithmetic; a digit is always a token of its own.  Special tokens are Qwen's: the chat
format is ChatML, <|im_end|> ends a turn.  Needs the `tokenizers` package.

    python3 tools/make_tokenizer.py [--out models/tokenizer]
"""

import argparse
import json
import pathlib
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = pathlib.Path("/usr/share/common-licenses")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 1024
# Words with their leading space, single digits, punctuation, runs of blanks.
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def lines():
    for path in sorted(TEXTS.iterdir()):
        if not path.is_symlink():
            yield path.read_text(encoding="utf-8", errors="replace")
    rng = random.Random(1)
    for _ in range(2000):
        a, b = rng.randrange(100), rng.randrange(100)
        yield f"What is {a} + {b}? The answer is {a + b}.\n"
        yield f"{a} - {b} = {a - b}\n"
    for role in ("system", "user", "assistant"):
        yield f"{role}\n" * 50


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--out", default="models/tokenizer", type=pathlib.Path)
    out = args.parse_args().out

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(lines(), trainer)
    if tok.get_vocab_size() != VOCAB:
        raise SystemExit(f"the vocabulary has {tok.get_vocab_size()} entries, expected {VOCAB}")

    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
