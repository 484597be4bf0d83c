#!/usr/bin/env python3
"""Does PEFT load an adapter that our engine saved, and do both compute the same?

Makes tiny models, trains adapters of several ranks and places on them with tinworks-engine, loads each with PEFT, and
compares the log-probabilities of a sequence; once trained on a base kept in fp32, once on one in bf16, and both compared
on an fp32 base.  The base model is transformers' where it knows Qwen3, and otherwise the
one below: PEFT wraps any PyTorch module, and the PyTorch of Debian 12 is older than Qwen3.

    python3 tools/check_peft.py --bin build/dev/worker/cli

Exit 77: PyTorch or PEFT is not there, and the last line says which.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import types

try:
    import peft
    import torch
    import transformers
    from safetensors.torch import load_file
    from torch import nn
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

LIMIT = 2e-5
ADAPTERS = [["--rank", "8"], ["--rank", "3", "--no-mlp", "--no-unembed"], ["--rank", "17", "--no-attn"]]


# ---------------------------------------------------------------- Qwen3 (arXiv 2505.09388), in the names of its files


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, theta):
    """Half-split rotary positions (arXiv 2104.09864) of x [heads, rows, head_dim]."""
    rows, width = x.shape[-2:]
    angle = torch.arange(rows)[:, None] * theta ** (-torch.arange(0, width, 2) / width)[None]
    cos, sin = angle.cos(), angle.sin()
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        heads, keys, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.heads, self.keys, self.width, self.theta = heads, keys, width, c["rope_theta"]
        self.q_proj = nn.Linear(c["hidden_size"], heads * width, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], keys * width, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], keys * width, bias=False)
        self.o_proj = nn.Linear(heads * width, c["hidden_size"], bias=False)
        self.q_norm, self.k_norm = Norm(width, c["rms_norm_eps"]), Norm(width, c["rms_norm_eps"])

    def forward(self, x):
        rows, shared = len(x), self.heads // self.keys
        q = rotate(self.q_norm(self.q_proj(x).view(rows, self.heads, self.width)).transpose(0, 1), self.theta)
        k = rotate(self.k_norm(self.k_proj(x).view(rows, self.keys, self.width)).transpose(0, 1), self.theta)
        v = self.v_proj(x).view(rows, self.keys, self.width).transpose(0, 1)
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        scores = q @ k.transpose(1, 2) / self.width**0.5 + torch.full((rows, rows), -torch.inf).triu(1)
        return self.o_proj((scores.softmax(-1) @ v).transpose(0, 1).reshape(rows, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    def __init__(self, folder):
        super().__init__()
        c = json.loads((folder / "config.json").read_text())
        self.config = types.SimpleNamespace(model_type="qwen3")
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.model.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        weights = load_file(folder / "model.safetensors")
        if c["tie_word_embeddings"]:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        self.load_state_dict(weights)

    def forward(self, input_ids, **unused):
        x = self.model.embed_tokens(input_ids[0])
        for layer in self.model.layers:
            x = layer(x)
        return types.SimpleNamespace(logits=self.lm_head(self.model.norm(x))[None])

    def prepare_inputs_for_generation(self, *unused, **none):
        raise NotImplementedError  # PEFT looks for it in a causal language model


def base_model(folder):
    if hasattr(transformers, "Qwen3ForCausalLM") and transformers.utils.is_torch_available():
        return transformers.AutoModelForCausalLM.from_pretrained(folder)
    return Qwen3(folder)


# ---------------------------------------------------------------- the comparison


def run(*words):
    return subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True).stdout


def score(tools, model, tokens, *words):
    shown = run(tools / "tinworks-engine", "score", "--model", model, "--weights", "fp32", "--tokens",
                ",".join(map(str, tokens)), *words)  # fmt: skip
    return json.loads(shown)["logprobs"][1:]


def theirs(model, adapter, tokens):
    wrapped = peft.PeftModel.from_pretrained(base_model(model), str(adapter)).eval()
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logp = torch.log_softmax(wrapped(input_ids=ids).logits[0, :-1], -1)
    return logp.gather(1, ids[0, 1:, None])[:, 0].tolist()


def compare(tools, folder, tied, number, dtype):
    model, adapter = folder / f"model-{tied}-{dtype}", folder / f"adapter-{tied}-{dtype}-{number}"
    data = folder / "data.jsonl"
    rng = random.Random(1)
    lines = [[rng.randrange(50) for _ in range(40)] for _ in range(8)]
    data.write_text("".join(json.dumps({"tokens": line}) + "\n" for line in lines))
    if not model.exists():
        run(tools / "tinworks-model", "make", "--preset", "tiny", "--tied", tied, "--dtype", dtype, "--out", model)
    run(tools / "tinworks-engine", "train", "--model", model, "--data", data, "--steps", 10, "--out", adapter,
        *ADAPTERS[number])  # fmt: skip
    tokens = [rng.randrange(1024) for _ in range(100)]
    ours, base = score(tools, model, tokens, "--adapter", adapter), score(tools, model, tokens)
    error = max(abs(a - b) for a, b in zip(ours, theirs(model, adapter, tokens), strict=True))
    effect = max(abs(a - b) for a, b in zip(ours, base, strict=True))
    print(f"tied {tied}, {dtype}, {' '.join(ADAPTERS[number])}: off by {error:.2e}; the adapter changes up to {effect:.2f}")
    if not error <= LIMIT or effect < 0.1:
        raise SystemExit("PEFT and the engine disagree")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--bin", default="build/dev/worker/cli", type=pathlib.Path)
    tools = args.parse_args().bin
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for tied in ("true", "false"):
            for number in range(len(ADAPTERS)):
                for dtype in ("f32", "bf16"):
                    compare(tools, pathlib.Path(folder), tied, number, dtype)


if __name__ == "__main__":
    main()
