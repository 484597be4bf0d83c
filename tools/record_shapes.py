#!/usr/bin/env python3
"""Records what PyTorch, transformers and PEFT compute at other shapes, for `tinworks-engine compare`.

Key heads shared by 1, 2, 4 and 8 query heads, tied and untied, and Qwen3-0.6B's shape.  No weights are kept: the
base model is made by tinworks-model from a seed, and the adapters by the rule of adapter_init() below, which
worker/cli/compare.c follows too.  Only numbers are kept: some logits, losses, gradients' norms and some of their
entries, ten optimizer steps.  Sequences run one by one, unpadded, in fp32.

    tools/torch-venv.sh DIR && DIR/bin/python tools/record_shapes.py [--bin build/dev/worker/cli] [NAME ...]

Beside each case stands `torch_noise`: how far PyTorch's fp32 logits are from those of the same model in fp64 (which
transformers still norms and rotates in fp32).  It says how much a difference of order of summation can do.
"""

import argparse
import json
import math
import pathlib
import random
import subprocess
import tempfile

import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model

ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
CLIP = (0.8, 1.2)
LOSSES = ["cross_entropy", "importance_sampling", "ppo"]
POSITIONS, IDS, ENTRIES, STEPS = 64, 16, 4, 10
B_BOUND = 0.05

SMALL_LIMITS = dict(logits=2e-5, losses=1e-4, gradients=1e-4, steps=1e-4)
# 28 layers of sums over 1024 and 3072: PyTorch's own fp32 logits, the largest of which is 5.2, are up to 1.4e-5 from
# its fp64.  Two sums in different orders differ by about the noise of both; the limit is four times that of one, which
# is 1.2e-5 of the largest logit.
LARGE_LIMITS = dict(SMALL_LIMITS, logits=6e-5)


def adapter(rank, attn, mlp, unembed, seed, lengths, gradient, steps):
    return dict(rank=rank, train_attn=attn, train_mlp=mlp, train_unembed=unembed, seed=seed, lengths=lengths,
                gradient=gradient, steps=steps)  # fmt: skip


ADAMW = dict(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
CE_STEPS = dict(ADAMW, loss="cross_entropy", learning_rate=2e-3, grad_clip_norm=1.0)
PPO_STEPS = dict(ADAMW, loss="ppo", learning_rate=1e-3, grad_clip_norm=0.0)


def small(heads, kv_heads, head_dim, hidden, intermediate, tied, seed):
    make = (
        f"--vocab 1031 --hidden {hidden} --layers 2 --heads {heads} --kv-heads {kv_heads} --head-dim {head_dim} "
        f"--intermediate {intermediate} --context 256 --tied {str(tied).lower()} --seed {seed}"
    )
    adapters = [
        adapter(8, True, True, True, seed + 1, [70, 129], "cross_entropy", CE_STEPS),
        adapter(5, True, False, False, seed + 2, [65, 1], "ppo", PPO_STEPS),
    ]
    return dict(make=make, limits=SMALL_LIMITS, adapters=adapters)


CASES = {
    "gqa-1-tied": small(4, 4, 16, 64, 168, True, 11),
    "gqa-1-untied": small(3, 3, 32, 60, 100, False, 12),
    "gqa-2-tied": small(6, 3, 10, 52, 90, True, 13),
    "gqa-2-untied": small(4, 2, 64, 96, 200, False, 14),
    "gqa-4-tied": small(8, 2, 12, 72, 130, True, 15),
    "gqa-4-untied": small(4, 1, 24, 88, 160, False, 16),
    "gqa-8-tied": small(8, 1, 16, 80, 144, True, 17),
    "gqa-8-untied": small(16, 2, 8, 56, 110, False, 18),
    "qwen3-0.6b": dict(
        make="--vocab 151936 --hidden 1024 --layers 28 --heads 16 --kv-heads 8 --head-dim 128 --intermediate 3072 "
        "--context 512 --rope-theta 1000000 --tied true --dtype bf16 --seed 20",
        limits=LARGE_LIMITS,
        adapters=[adapter(8, True, True, True, 21, [80, 30], "cross_entropy", None)],
    ),
}


# ---------------------------------------------------------------- the adapters' rule


def philox_uniform(count, bound, seed, name):
    """philox_fill() of worker/engine/random.c: Philox4x32-10 on (seed, FNV-1a of the name, index)."""
    m32 = np.uint64(0xFFFFFFFF)
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & (2**64 - 1)
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    x0, x1 = block & m32, block >> np.uint64(32)
    x2, x3 = np.full_like(block, h & 0xFFFFFFFF), np.full_like(block, h >> 32)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * x0, np.uint64(0xCD9E8D57) * x2
        x0, x2 = (p1 >> np.uint64(32)) ^ x1 ^ np.uint64(k0), (p0 >> np.uint64(32)) ^ x3 ^ np.uint64(k1)
        x1, x3 = p1 & m32, p0 & m32
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = np.stack([x0, x1, x2, x3], axis=1).reshape(-1)[:count]
    unit = (words >> np.uint64(8)).astype(np.float32) * np.float32(2**-23) - np.float32(1)
    return unit * np.float32(bound)


def adapter_init(site, a, b, seed):
    """A as adapter_create() draws it; B uniform, under the name "<site>.lora_B"."""
    bound = np.float32(1) / np.sqrt(np.float32(a.shape[1]))
    a.copy_(torch.from_numpy(philox_uniform(a.numel(), bound, seed, site)).reshape(a.shape))
    b.copy_(torch.from_numpy(philox_uniform(b.numel(), B_BOUND, seed, site + ".lora_B")).reshape(b.shape))


def called(i):
    return f"adapter-{i}"


def lora_tensors(model, i):
    """{"<site>.lora_A": parameter, ...} in the model's order."""
    found = {}
    for name, p in model.named_parameters():
        if f".{called(i)}.weight" in name and ".lora_" in name:
            found[name.removeprefix("base_model.model.").removesuffix(f".{called(i)}.weight")] = p
    return found


def with_adapters(base, adapters):
    model = None
    for i, spec in enumerate(adapters):
        places = ATTN * spec["train_attn"] + MLP * spec["train_mlp"] + ["lm_head"] * spec["train_unembed"]
        conf = LoraConfig(r=spec["rank"], lora_alpha=32, target_modules=places, task_type="CAUSAL_LM")
        if model is None:
            model = get_peft_model(base, conf, adapter_name=called(i))
        else:
            model.add_adapter(called(i), conf)
    with torch.no_grad():
        for i, spec in enumerate(adapters):
            tensors = lora_tensors(model, i)
            for name, a in tensors.items():
                if name.endswith(".lora_A"):
                    site = name.removesuffix(".lora_A")
                    adapter_init(site, a, tensors[site + ".lora_B"], spec["seed"])
    return model.eval()


def use(model, i):
    model.set_adapter(called(i))
    for name, p in model.named_parameters():
        p.requires_grad_(f".{called(i)}.weight" in name and ".lora_" in name)
        p.grad = None


# ---------------------------------------------------------------- data and losses


def make_datum(n, vocab, rng):
    ids = [rng.randrange(vocab) for _ in range(n + 1)]
    return dict(
        tokens=ids[:-1],
        targets=ids[1:],
        weights=[rng.choice([1.0, 0.0, 0.5, -0.25, 2.0]) for _ in range(n)],
        advantages=[rng.choice([0.0] + [k / 8 for k in range(-12, 13)]) for _ in range(n)],
        # log-ratios away from those of CLIP, where ppo changes its branch
        ratio=[rng.choice([-0.5, -0.125, 0.0, 0.125, 0.5]) for _ in range(n)],
    )


def logits_of(model, d):
    return model(input_ids=torch.tensor([d["tokens"]]), use_cache=False).logits[0]


def logprobs_of(logits, d):
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(d["targets"])[:, None])[:, 0]


def loss_of(kind, logp, d):
    if kind == "cross_entropy":
        return -(torch.tensor(d["weights"]) * logp).sum()
    r, a = torch.exp(logp - torch.tensor(d["logprobs"])), torch.tensor(d["advantages"])
    if kind == "importance_sampling":
        return -(r * a).sum()
    return -torch.minimum(r * a, r.clamp(*CLIP) * a).sum()


def total_loss(model, kind, datums):
    return sum(loss_of(kind, logprobs_of(logits_of(model, d), d), d) for d in datums)


# ---------------------------------------------------------------- recording


def digits(x):
    """As many as fp32 has."""
    return float(f"{x:.9g}")


def listed(t):
    return [digits(x) for x in t.flatten().tolist()]


def record_logits(model, datum, rng):
    """Some positions of a sequence by some ids, and each position's whole sum."""
    with torch.no_grad():
        logits = logits_of(model, datum)
        positions = sorted(rng.sample(range(len(logits)), min(POSITIONS, len(logits))))
        ids = sorted(rng.sample(range(logits.shape[1]), IDS))
        rows = logits[positions]
        out = dict(datum=0, positions=positions, ids=ids, lse=listed(torch.logsumexp(rows, -1)),
                   values=[listed(row) for row in rows[:, ids]])  # fmt: skip
    return out, logits


def record_gradients(model, i, kind, datums, rng):
    use(model, i)
    total_loss(model, kind, datums).backward()
    tensors = {}
    for name, p in lora_tensors(model, i).items():
        g = p.grad.flatten()
        most = int(g.abs().argmax())
        at = [most] + [rng.randrange(len(g)) for _ in range(ENTRIES - 1)]
        tensors[name] = dict(norm=digits(g.double().norm().item()), most=digits(g[most].abs().item()), at=at,
                             values=listed(g[at]))  # fmt: skip
    return dict(loss=kind, tensors=tensors)


def record_steps(model, i, spec, datums):
    use(model, i)
    params = list(lora_tensors(model, i).values())
    optim = torch.optim.AdamW(params, lr=spec["learning_rate"], betas=(spec["beta1"], spec["beta2"]),
                              eps=spec["eps"], weight_decay=spec["weight_decay"])  # fmt: skip
    losses, norms = [], []
    for _ in range(STEPS):
        optim.zero_grad()
        loss = total_loss(model, spec["loss"], datums)
        loss.backward()
        norms.append(digits(torch.nn.utils.clip_grad_norm_(params, spec["grad_clip_norm"] or math.inf).item()))
        losses.append(digits(loss.item()))
        optim.step()
    return dict(spec, losses=losses, grad_norms=norms)


def record_adapter(model, i, spec, vocab, rng):
    use(model, i)
    datums = [make_datum(n, vocab, rng) for n in spec["lengths"]]
    with torch.no_grad():
        for d in datums:
            shift = torch.tensor(d.pop("ratio"))
            d["logprobs"] = listed(logprobs_of(logits_of(model, d), d) - shift)
    logits, whole = record_logits(model, datums[0], rng)
    with torch.no_grad():
        losses = {kind: digits(total_loss(model, kind, datums).item()) for kind in LOSSES}
    out = {k: spec[k] for k in ("rank", "train_attn", "train_mlp", "train_unembed", "seed")}
    out.update(datums=datums, logits=logits, losses=losses)
    out["gradients"] = record_gradients(model, i, spec["gradient"], datums, rng)
    return out, whole


def record(name, case, tools, out):
    rng = random.Random(name)
    with tempfile.TemporaryDirectory() as folder:
        where = pathlib.Path(folder) / "model"
        subprocess.run([str(tools / "tinworks-model"), "make", *case["make"].split(), "--out", str(where)],
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        info = subprocess.run(["sha256sum", str(where / "model.safetensors")], check=True, capture_output=True,
                              text=True)  # fmt: skip
        base = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    model = with_adapters(base, case["adapters"])
    adapters, wholes = [], []
    for i, spec in enumerate(case["adapters"]):
        a, whole = record_adapter(model, i, spec, base.config.vocab_size, rng)
        adapters.append(a)
        wholes.append(whole)
    for i, spec in enumerate(case["adapters"]):
        if spec["steps"]:
            adapters[i]["steps"] = record_steps(model, i, spec["steps"], adapters[i]["datums"])
    noise, scale = torch_noise(model, case["adapters"], adapters, wholes)
    print(f"{name}: logits up to {scale:.2f}, fp32 and fp64 differ by {noise:.2e}")
    recorded = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    write(out / f"{name}.json", dict(
        name=name, recorded=recorded, make=case["make"], weights_sha256=info.stdout.split()[0], limits=case["limits"],
        clip_low=CLIP[0], clip_high=CLIP[1], b_bound=B_BOUND, logit_most=digits(scale), torch_noise=digits(noise),
        adapters=adapters))  # fmt: skip


def torch_noise(model, specs, adapters, wholes):
    """Of the first sequence of each adapter, before any step."""
    with torch.no_grad():
        for i, spec in enumerate(specs):
            tensors = lora_tensors(model, i)
            for name, a in tensors.items():
                if name.endswith(".lora_A"):
                    site = name.removesuffix(".lora_A")
                    adapter_init(site, a, tensors[site + ".lora_B"], spec["seed"])
        model.double()
        noise = scale = 0.0
        for i, a in enumerate(adapters):
            use(model, i)
            noise = max(noise, (logits_of(model, a["datums"][0]) - wholes[i].double()).abs().max().item())
            scale = max(scale, wholes[i].abs().max().item())
    return noise, scale


def write(path, case):
    """One line for each list of numbers, so that a change shows as what it is."""
    path.write_text(json.dumps(case, separators=(",", ":")).replace(',"', ',\n"') + "\n")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--bin", default="build/dev/worker/cli", type=pathlib.Path)
    args.add_argument("--out", default="tests/fixtures/shapes", type=pathlib.Path)
    args.add_argument("names", nargs="*", metavar="NAME", help="cases; all when none is named")
    given = args.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.names or CASES:
        record(name, CASES[name], given.bin, given.out)


if __name__ == "__main__":
    main()
