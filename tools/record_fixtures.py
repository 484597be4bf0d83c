#!/usr/bin/env python3
"""Records what PyTorch, transformers and PEFT compute, for tests/engine/test_torch.c.

Two tiny random Qwen3 models (tied and untied, different GQA ratios, odd sizes, one of them in shards), each
with three LoRA adapters of different ranks and places whose B is not zero.  For all of them: the logits
of every sequence, each loss's value and all its LoRA gradients, and ten AdamW steps.  Sequences
run one by one, unpadded, in fp32 on one thread: no packing to trust.

    tools/torch-venv.sh DIR && DIR/bin/python tools/record_fixtures.py [--out tests/fixtures/torch]

What it writes, for each model:
    config.json, *.safetensors   as save_pretrained() writes them
    adapter-N/                   as PEFT's save_pretrained() writes them
    data.safetensors             D.tokens, D.targets, D.weights, D.logprobs, D.advantages of datum D; bounds for
                                 each token and a mask; D.wide_targets and D.wide_weights of shape [N, K]
    expected.safetensors         logits.N.D; grad.CASE.N.<site>.lora_A.weight; after.N.<site>...
    cases.json                   the cases of losses; which datums belong to an adapter; losses; settings and
                                 losses of the ten steps
"""

import argparse
import json
import math
import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
HEAD = ["lm_head"]
ALPHA = 32
STEPS = 10
COLUMNS = 5  # of wide targets

# A loss, its settings, and which optional tensors of the datum it is given.
CASES = {
    "cross_entropy": dict(loss="cross_entropy"),
    "wide": dict(loss="cross_entropy", wide=True),
    "importance_sampling": dict(loss="importance_sampling"),
    "ppo": dict(loss="ppo", clip_low=0.8, clip_high=1.2),
    "ppo_by_token": dict(loss="ppo", clip_low=0.0, clip_high=0.0, by_token=True),
    "cispo": dict(loss="cispo", clip_low=0.8, clip_high=1.2),
    "dro": dict(loss="dro", beta=0.1),
    "gspo": dict(loss="gspo", clip_low=0.97, clip_high=1.03, mask=True),
}

MODELS = {
    "tied": {
        "config": dict(
            vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, intermediate_size=48, max_position_embeddings=160, rope_theta=1e4,
            tie_word_embeddings=True, eos_token_id=2,
        ),
        "adapters": [(4, ATTN + MLP + HEAD), (8, ATTN), (5, MLP + HEAD)],
        "lengths": [[5, 70, 33], [64, 1], [129, 17]],
        "shard": None,
    },
    "untied": {
        "config": dict(
            vocab_size=77, hidden_size=40, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
            head_dim=6, intermediate_size=52, max_position_embeddings=160, rope_theta=1e6,
            tie_word_embeddings=False, eos_token_id=[1, 3],
        ),
        "adapters": [(1, ATTN + MLP + HEAD), (6, ATTN + MLP), (16, HEAD)],
        "lengths": [[66, 2], [31, 80], [48]],
        "shard": "60KB",
    },
}  # fmt: skip

# What the ten steps of adapter 0, 1 and 2 use.  The rates keep the runs tame: where training itself is
# chaotic, fp32 and fp64 part ways in PyTorch too, and the numbers would say nothing.
STEP_CASES = [
    dict(loss="cross_entropy", lr=2e-3, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0, clip=0.0),
    dict(loss="importance_sampling", lr=2e-4, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1.0, clip=1.0),
    dict(loss="ppo", lr=1e-3, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.2, clip=0.0),
]


def random_model(spec, seed):
    gen = torch.Generator().manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**spec["config"])).to(torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=gen)
            if p.dim() == 1:
                p.copy_(1 + 0.2 * noise)
            elif "embed" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(noise / math.sqrt(p.shape[1]))
    return model.eval()


def called(adapter):
    """A bare number would be cut out of "layers.0" too when PEFT strips it from the names."""
    return f"adapter-{adapter}"


def with_adapters(model, spec, seed):
    gen = torch.Generator().manual_seed(seed)
    peft = None
    for i, (rank, modules) in enumerate(spec["adapters"]):
        conf = LoraConfig(
            r=rank, lora_alpha=ALPHA, target_modules=modules, task_type="CAUSAL_LM", lora_dropout=0.0
        )
        if peft is None:
            peft = get_peft_model(model, conf, adapter_name=called(i))
        else:
            peft.add_adapter(called(i), conf)
    with torch.no_grad():
        for name, p in sorted(peft.named_parameters()):
            if "lora_A" in name:
                p.copy_((2 * torch.rand(p.shape, generator=gen) - 1) / math.sqrt(p.shape[1]))
            elif "lora_B" in name:
                p.copy_(0.05 * torch.randn(p.shape, generator=gen))
    return peft


def lora_tensors(peft, adapter):
    """{file's name of the tensor: parameter} of one adapter."""
    found = {}
    for name, p in peft.named_parameters():
        if f".{called(adapter)}.weight" in name and "lora_" in name:
            short = name.replace("base_model.model.", "", 1)
            found[short.replace(f".{called(adapter)}.weight", ".weight")] = p
    return found


def make_datum(n, vocab, gen):
    ids = torch.randint(0, vocab, (n + 1,), generator=gen)
    weights = torch.tensor([1.0, 0.0, 0.5, -0.25, 2.0])[torch.randint(0, 5, (n,), generator=gen)]
    advantages = torch.randn(n, generator=gen)
    advantages[torch.rand(n, generator=gen) < 0.15] = 0.0
    # log-ratios well away from log 0.8 and log 1.2, where ppo changes its branch
    ratio = torch.tensor([-0.5, -0.1, 0.0, 0.1, 0.5])[torch.randint(0, 5, (n,), generator=gen)]
    return dict(tokens=ids[:-1], targets=ids[1:], weights=weights, advantages=advantages, ratio=ratio)


def add_options(datum, vocab, gen):
    """Bounds well away from the ratios above; a mask of any numbers; K targets a position, some twice."""
    n = len(datum["tokens"])

    def choose(values):
        return torch.tensor(values)[torch.randint(0, len(values), (n,), generator=gen)]

    datum["clip_low"], datum["clip_high"] = choose([0.5, 0.8, 0.95]), choose([1.05, 1.3, 2.0])
    datum["mask"] = choose([1.0, 1.0, 0.0, -2.0])
    datum["mask"][0] = 1.0
    datum["wide_targets"] = torch.randint(0, vocab, (n, COLUMNS), generator=gen)
    datum["wide_targets"][::3, 1] = datum["wide_targets"][::3, 0]
    datum["wide_weights"] = torch.randn(n, COLUMNS, generator=gen) / COLUMNS
    datum["wide_weights"][torch.rand(n, COLUMNS, generator=gen) < 0.3] = 0.0


def logits_of(peft, datum):
    return peft(input_ids=datum["tokens"][None], use_cache=False).logits[0]


def logprobs_of(logits, targets):
    return torch.log_softmax(logits, -1).gather(1, targets.reshape(len(targets), -1)).reshape(targets.shape)


def ratio_of(case, logp, datum):
    """The ratio of each token; in gspo the sequence's, with the token's own derivative."""
    off = logp - datum["logprobs"]
    if case["loss"] != "gspo":
        return torch.exp(off)
    mean = off.detach()[datum["mask"] != 0].mean()
    return torch.exp(mean + logp - logp.detach())


def bounds_of(case, datum):
    return (datum["clip_low"], datum["clip_high"]) if case.get("by_token") else (case["clip_low"], case["clip_high"])


def loss_of(case, logp, datum):
    kind, a = case["loss"], datum["advantages"]
    if kind == "cross_entropy":
        return -(datum["wide_weights" if case.get("wide") else "weights"] * logp).sum()
    if kind == "dro":
        return -(logp * a - case["beta"] / 2 * (logp - datum["logprobs"]) ** 2).sum()
    r = ratio_of(case, logp, datum)
    if kind == "importance_sampling":
        return -(r * a).sum()
    clamped = r.clamp(*bounds_of(case, datum))
    if kind == "cispo":
        return -(clamped.detach() * logp * a).sum()
    return -torch.minimum(r * a, clamped * a).sum()


def batch_loss(peft, case, datums):
    targets = "wide_targets" if case.get("wide") else "targets"
    return sum(loss_of(case, logprobs_of(logits_of(peft, d), d[targets]), d) for d in datums)


def use(peft, adapter):
    peft.set_adapter(called(adapter))
    for name, p in peft.named_parameters():
        p.requires_grad_(f".{called(adapter)}.weight" in name and "lora_" in name)
        p.grad = None


def record_gradients(peft, adapter, datums, out):
    losses = {}
    for title, case in CASES.items():
        use(peft, adapter)
        loss = batch_loss(peft, case, datums)
        loss.backward()
        losses[title] = loss.item()
        for name, p in lora_tensors(peft, adapter).items():
            out[f"grad.{title}.{adapter}.{name}"] = p.grad.clone()
    return losses


def record_steps(peft, adapter, datums, out):
    case = STEP_CASES[adapter]
    use(peft, adapter)
    params = list(lora_tensors(peft, adapter).values())
    optim = torch.optim.AdamW(
        params, lr=case["lr"], betas=(case["beta1"], case["beta2"]), eps=case["eps"],
        weight_decay=case["weight_decay"],
    )  # fmt: skip
    losses, norms = [], []
    for _ in range(STEPS):
        optim.zero_grad()
        loss = batch_loss(peft, CASES[case["loss"]], datums)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, case["clip"] or float("inf"))
        losses.append(loss.item())
        norms.append(norm.item())
        optim.step()
    for name, p in lora_tensors(peft, adapter).items():
        out[f"after.{adapter}.{name}"] = p.detach().clone()
    return dict(case, losses=losses, grad_norms=norms)


def share_clipped(peft, case, datums):
    """How much a loss clips; no ratio may be near a bound, where a last bit would decide."""
    clipped = []
    for d in datums:
        with torch.no_grad():
            r = ratio_of(case, logprobs_of(logits_of(peft, d), d["targets"]), d)
        low, high = bounds_of(case, d)
        assert min((r - low).abs().min(), (r - high).abs().min()) > 1e-3, (case, d["logprobs"])
        clipped.append((r * d["advantages"]) > (r.clamp(low, high) * d["advantages"]))
    return torch.cat(clipped).float().mean().item()


def save_adapters(peft, spec, where):
    peft.save_pretrained(where, save_embedding_layers=False)
    for i in range(len(spec["adapters"])):
        folder = where / called(i)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        conf = json.loads(path.read_text())
        conf["base_model_name_or_path"] = where.name
        conf["target_modules"] = sorted(conf["target_modules"])
        path.write_text(json.dumps(conf, indent=2) + "\n")
    (where / "README.md").unlink(missing_ok=True)


def record(name, spec, root):
    where = root / name
    shutil.rmtree(where, ignore_errors=True)
    seed = list(MODELS).index(name) + 1
    gen, options = torch.Generator().manual_seed(100 + seed), torch.Generator().manual_seed(300 + seed)
    model = random_model(spec, seed)
    model.save_pretrained(where, **({"max_shard_size": spec["shard"]} if spec["shard"] else {}))
    peft = with_adapters(model, spec, 200 + seed)
    save_adapters(peft, spec, where)

    data, out, adapters, count = {}, {}, [], 0
    for i, lengths in enumerate(spec["lengths"]):
        use(peft, i)
        datums, names = [], []
        for n in lengths:
            d = make_datum(n, spec["config"]["vocab_size"], gen)
            with torch.no_grad():
                logits = logits_of(peft, d)
                d["logprobs"] = logprobs_of(logits, d["targets"]) - d.pop("ratio")
            add_options(d, spec["config"]["vocab_size"], options)
            out[f"logits.{i}.{count}"] = logits.clone()
            for key, value in d.items():
                data[f"{count}.{key}"] = value.contiguous().clone()
            datums.append(d)
            names.append(count)
            count += 1
        clipped = {t: f"{share_clipped(peft, c, datums):.0%}" for t, c in CASES.items() if "clip_low" in c}
        losses = record_gradients(peft, i, datums, out)
        steps = record_steps(peft, i, datums, out)
        print(f"{name} adapter {i}: clipped {clipped}, losses {losses}")
        rank, modules = spec["adapters"][i]
        adapters.append(dict(rank=rank, modules=modules, datums=names, losses=losses, steps=steps))

    save_file(data, where / "data.safetensors")
    save_file({k: v.contiguous() for k, v in out.items()}, where / "expected.safetensors")
    cases = dict(cases=CASES, torch=torch.__version__, adapters=adapters)
    (where / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--out", default="tests/fixtures/torch", type=pathlib.Path)
    out = args.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out.mkdir(parents=True, exist_ok=True)
    for name, spec in MODELS.items():
        record(name, spec, out)


if __name__ == "__main__":
    main()
