#!/usr/bin/env python3
"""PyTorch, transformers and PEFT on the work of speed.c: a model of random weights from a config.json alone, LoRA on all
projections, forward + backward + AdamW, and generate(); and torch.matmul at the model's shapes.

    peer.py --model DIR [--device cuda:0] [--seconds 60] [--seq 2048] ...

Prints a line of JSON for each case as it ends, with speed.c's names.  The base and the adapters are in bf16, attention is
sdpa's, AdamW is fused where the device has it; nothing is compiled and no activation is computed twice.  Sequences of a
step go forward and back in the largest part that memory has room for ("micro_batch").  generate() has its usual cache: a
static one compiles the model first, which takes longer than all of this may."""

import argparse
import gc
import json
import os
import statistics
import sys
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def say(**line):
    print(json.dumps(line), flush=True)


try:
    import torch
    import transformers
    import peft
except ImportError as error:
    say(case="open", status="not run: %s" % error)
    sys.exit(0)


OUT_OF_MEMORY = torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else torch.cuda.OutOfMemoryError


class Peer:
    def __init__(self, args):
        self.args = args
        self.began = time.monotonic()
        self.device = torch.device(args.device)
        torch.manual_seed(0)
        with open(os.path.join(args.model, "config.json")) as file:
            config = transformers.Qwen3Config(**json.load(file))
        torch.set_default_dtype(torch.bfloat16)
        with self.device:
            base = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        torch.set_default_dtype(torch.float32)
        base.to(torch.bfloat16)
        base.generation_config = transformers.GenerationConfig(pad_token_id=0)
        self.config = config
        self.model = peft.get_peft_model(base, self.lora(32), adapter_name="r32_0", autocast_adapter_dtype=False)
        self.optimizers = {}
        self.optimizer("r32_0")
        self.sync()
        say(case="open", status="passed", model=args.model, seconds=time.monotonic() - self.began,
            torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)

    @staticmethod
    def lora(rank):
        return peft.LoraConfig(r=rank, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM")

    def sync(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clean(self):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def optimizer(self, name):
        self.model.set_adapter(name)
        own = [p for k, p in self.model.named_parameters() if "lora_" in k and ".%s." % name in k]
        self.optimizers[name] = torch.optim.AdamW(own, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0,
                                                  fused=self.device.type == "cuda")

    def adapters(self, count, rank):
        """The names of so many adapters of a rank; those that are not there are made."""
        names = ["r%d_%d" % (rank, i) for i in range(count)]
        for name in names:
            if name not in self.optimizers:
                self.model.add_adapter(name, self.lora(rank), autocast_adapter_dtype=False)
                self.model.to(self.device)
                self.optimizer(name)
        return names

    def time_of(self, work):
        self.sync()
        began = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - began

    # ---------------------------------------------------------------- training

    def passes(self, names, data, micro):
        each = len(data) // len(names)
        for i, name in enumerate(names):
            self.model.set_adapter(name)
            for part in data[i * each:(i + 1) * each].split(micro):
                self.model(input_ids=part, labels=part, use_cache=False).loss.backward()

    def steps(self, names):
        for name in names:
            self.optimizers[name].step()
            self.optimizers[name].zero_grad(set_to_none=True)

    def rounds(self, names, data, micro):
        """Seconds of passes and of steps; the first round warms up."""
        took, began = [], time.monotonic()
        for i in range(64):
            at = self.time_of(lambda: self.passes(names, data, micro)), self.time_of(lambda: self.steps(names))
            if i:
                took.append(at)
            if took and time.monotonic() - began > 4:
                break
        return took

    def train(self, name, adapters, rank, sequences, seq):
        names = self.adapters(adapters, rank)
        self.model.train()
        data = torch.randint(0, self.config.vocab_size, (sequences, seq), device=self.device)
        micro = sequences // adapters
        while True:
            try:
                took = self.rounds(names, data, micro)
                break
            except OUT_OF_MEMORY:
                if micro == 1:
                    raise
                micro //= 2
            self.model.zero_grad(set_to_none=True)  # after the error, which holds on to what did not fit
            self.clean()
        first, second = statistics.median(a for a, _ in took), statistics.median(b for _, b in took)
        return {"rounds": len(took), "micro_batch": micro, "pass_seconds": first, "optim_seconds": second,
                "tokens_per_second": sequences * seq / (first + second),
                "pass_tokens_per_second": sequences * seq / first}

    # ---------------------------------------------------------------- decoding

    def generate(self, data, fresh):
        """When each step had ended."""
        ends = []

        def clock(tokens, scores, **_):
            self.sync()
            ends.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        with torch.inference_mode():
            self.model.generate(input_ids=data, attention_mask=torch.ones_like(data), do_sample=True, temperature=1.0,
                                top_k=0, top_p=1.0, use_cache=True, pad_token_id=0, max_new_tokens=fresh,
                                min_new_tokens=fresh, stopping_criteria=transformers.StoppingCriteriaList([clock]))
        return ends

    def decode(self, batch, prompt, adapters, rank):
        self.model.set_adapter(self.adapters(adapters, rank)[0])
        self.model.eval()
        fresh = self.args.fresh
        data = torch.randint(0, self.config.vocab_size, (batch, prompt), device=self.device)
        self.generate(data, 2)
        self.sync()
        began = time.perf_counter()
        ends = self.generate(data, fresh + 1)
        step = statistics.median(after - before for before, after in zip(ends, ends[1:]))
        return {"steps": fresh, "prompt_seconds": ends[0] - began, "step_seconds": step,
                "tokens_per_second": batch / step}

    # ---------------------------------------------------------------- products

    def product(self, name, out, rows, **shape):
        x = torch.randn(rows, shape["in"], device=self.device, dtype=torch.bfloat16)
        w = torch.randn(out, shape["in"], device=self.device, dtype=torch.bfloat16)
        for _ in range(3):
            x @ w.T
        times = 20

        def work():
            for _ in range(times):
                x @ w.T
        return {"ms": self.time_of(work) / times * 1e3}

    # ---------------------------------------------------------------- all of it

    def case(self, kind, **shape):
        result = {}
        if time.monotonic() - self.began > self.args.seconds:
            status = "not run: the time is up"
        else:
            try:
                result = getattr(self, kind)(**shape)
                status = "passed"
            except OUT_OF_MEMORY as error:
                status = "not run: %s" % str(error).split("\n")[0]
            except Exception as error:  # the next case may do
                status = "failed: %s: %s" % (type(error).__name__, str(error)[:300])
            self.model.zero_grad(set_to_none=True)
            self.clean()
        say(case=kind, **shape, **result, status=status)

    def run(self):
        a, c = self.args, self.config
        self.case("train", name="one adapter", adapters=1, rank=32, sequences=a.sequences, seq=a.seq)
        for batch in (1, 64, 256):
            self.case("decode", batch=batch, prompt=a.prompt, adapters=1, rank=32)
        for adapters in (1, 16):
            self.case("train", name="adapters", adapters=adapters, rank=8, sequences=64, seq=a.seq // 16)
        heads, hidden, mlp = c.num_attention_heads * c.head_dim, c.hidden_size, c.intermediate_size
        for name, out, inner in (("q", heads, hidden), ("up", mlp, hidden), ("down", hidden, mlp)):
            for rows in (1, 64, 512, 2048, 8192):
                self.case("product", name=name, out=out, rows=rows, **{"in": inner})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda:0")
    for name, preset in (("seconds", 60), ("seq", 2048), ("sequences", 4), ("prompt", 64), ("fresh", 32)):
        parser.add_argument("--" + name, type=int, default=preset)
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        say(case="open", status="not run: torch %s finds no CUDA device" % torch.__version__)
        return
    try:
        peer = Peer(args)
    except OUT_OF_MEMORY as error:
        say(case="open", status="not run: %s" % str(error).split("\n")[0])
        return
    peer.run()


if __name__ == "__main__":
    main()
