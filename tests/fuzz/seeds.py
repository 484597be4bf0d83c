"""Seeds for the targets that no traffic reaches: files of a model's folder, and the texts of a request's first lines.

    python3 tests/fuzz/seeds.py DIR     # then merge them like captured ones, see capture.py
"""

import hashlib
import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SESSION = "s" + "a" * 26

TEXTS = [
    "/",
    "/api/v1/sessions/" + SESSION + "/finish?limit=10&offset=0",
    "/api/v1/training_runs/a%2Fb/checkpoints?x=%41+b&x=2",
    "/a//b/../c/%00/%zz",
    "bytes=0-99",
    "bytes=-5",
    "bytes=100-",
    "bytes=0-0,5-9",
    f"{SESSION}:train:0:forward_backward:4:0123456789abcdef",
    f"{SESSION}:sample:12:sample:7:0123456789abcdef",
    f"tinker://{SESSION}:train:0/weights/checkpoint-001",
    f"tinker://{SESSION}:train:0/sampler_weights/a.b_c",
    f"hpcai://{SESSION}:train:0/training/weights/last",
    f"hpcai://{SESSION}:train:0/sampler_weights/last",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhIn0.c2ln",
    "Qwen/Qwen3-0.6B",
    "caf\u00e9 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
]


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FILES = [
    safetensors({"a": tensor("F32", [2, 2], 0, 16), "b": tensor("BF16", [2, 3], 16, 28)}, bytes(28)),
    safetensors({"__metadata__": {"format": "pt"}, "a": tensor("F16", [4], 0, 8)}, b"\x00\x3c" * 4),
    safetensors({"a": tensor("I64", [], 0, 8)}, bytes(8)),
    safetensors({"a": tensor("F32", [1, 1], 0, 4)}, struct.pack("<f", float("nan"))),
    safetensors({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12)),
    safetensors({"a": tensor("F32", [2**62, 4], 0, 8)}, bytes(8)),
    safetensors({}, length=2**63),
    safetensors(b"{}"),
]


def configs():
    plain = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 2,
    }
    yield plain
    yield {**plain, "eos_token_id": [1, 2], "rope_scaling": None, "use_sliding_window": False}
    yield {**plain, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    yield {**plain, "hidden_size": 2**40, "head_dim": -1}


def vocabularies():
    """The project's tokenizer with few of its tokens."""
    whole = json.loads((ROOT / "models/tokenizer/tokenizer.json").read_text())
    for count in (3, 30):
        model = {"type": "BPE", "vocab": dict(list(whole["model"]["vocab"].items())[:count]), "merges": []}
        yield {"model": model, "added_tokens": whole["added_tokens"][:2]}
    yield {"model": {"type": "BPE", "vocab": {"\u0120a": 0, "\u0141": 1, "\u4e2d": 2}}, "added_tokens": []}
    yield {"model": {"type": "BPE", "vocab": {"a": 2**31, "b": -1}}, "added_tokens": [{"id": 5}]}


def main(folder):
    sets = {
        "path": [t.encode() for t in TEXTS],
        "safetensors": FILES,
        "config": [json.dumps(c).encode() for c in configs()],
        "vocab": [json.dumps(v).encode() for v in vocabularies()],
    }
    for target, contents in sets.items():
        to = pathlib.Path(folder) / target
        to.mkdir(parents=True, exist_ok=True)
        for content in contents:
            (to / hashlib.sha1(content).hexdigest()).write_bytes(content)


if __name__ == "__main__":
    main(sys.argv[1])
