#!/usr/bin/env python3
"""The bench's other side: PyTorch (eager) and PEFT on the same model folder, driven line by line.

    peer_torch.py MODEL_DIR THREADS

Each line on stdin asks for one piece of work, and one line of numbers on stdout answers it:

    ready                                  1
    train ADAPTERS BATCH SEQ REPEAT        seconds of forward + backward (wall, cpu), of AdamW (wall, cpu)
    generate BATCH PROMPT NEW              seconds (wall, cpu) 0 0
    gemm N                                 GFLOP/s of torch.mm
    rss                                    MiB: peak, and after the model was loaded

Work is what PEFT offers several tenants: each adapter in turn is made active, its part of the batch goes forward and
backward with cross-entropy on every position, and its own optimizer steps.  The adapters are LoRA of rank 32 on
attention and MLP; the unembedding is frozen.  Generating keeps the adapter apart from the weights, as training does.
"""
import os
import resource
import sys
import time

THREADS = int(sys.argv[2])
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = LoraConfig(r=32, lora_alpha=32, lora_dropout=0.0, target_modules=PROJECTIONS, task_type="CAUSAL_LM")


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Stopwatch:
    """Adds up wall and CPU seconds of the blocks that it is entered for."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def __enter__(self):
        self.began = time.perf_counter(), time.process_time()

    def __exit__(self, *_):
        self.wall += time.perf_counter() - self.began[0]
        self.cpu += time.process_time() - self.began[1]

    def __str__(self):
        return "%.9f %.9f" % (self.wall, self.cpu)


class Peer:
    def __init__(self, folder):
        torch.set_num_threads(THREADS)
        torch.manual_seed(0)
        base = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        base.generation_config = transformers.GenerationConfig(pad_token_id=0)
        self.vocab = base.config.vocab_size
        self.model = get_peft_model(base, LORA, adapter_name="t0")
        self.optimizers = {}
        self.loaded = peak_mib()
        self.add_adapters(1)

    def add_adapters(self, count):
        for i in range(len(self.optimizers), count):
            name = "t%d" % i
            if i > 0:
                self.model.add_adapter(name, LORA)
            self.model.set_adapter(name)
            own = [p for k, p in self.model.named_parameters() if "lora_" in k and ".%s." % name in k]
            self.optimizers[name] = torch.optim.AdamW(own, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)

    def train(self, adapters, batch, seq, repeat):
        self.add_adapters(adapters)
        self.model.train()
        data = torch.randint(0, self.vocab, (adapters * batch, seq))
        watch, optim = Stopwatch(), Stopwatch()
        for _ in range(repeat):
            for i in range(adapters):
                name = "t%d" % i
                with watch:
                    if adapters > 1 or self.model.active_adapter != name:
                        self.model.set_adapter(name)
                    x = data[i * batch:(i + 1) * batch]
                    self.model(input_ids=x, labels=x, use_cache=False).loss.backward()
                with optim:
                    self.optimizers[name].step()
                    self.optimizers[name].zero_grad(set_to_none=True)
        return "%s %s" % (watch, optim)

    def generate(self, batch, prompt, fresh):
        self.model.set_adapter("t0")
        self.model.eval()
        data = torch.randint(0, self.vocab, (batch, prompt))
        watch = Stopwatch()
        with watch, torch.inference_mode():
            got = self.model.generate(
                input_ids=data, attention_mask=torch.ones_like(data), do_sample=True, temperature=1.0, top_k=0,
                top_p=1.0, use_cache=True, pad_token_id=0, max_new_tokens=fresh, min_new_tokens=fresh)
        assert got.shape == (batch, prompt + fresh), got.shape
        return "%s 0 0" % watch

    @staticmethod
    def gemm(n):
        x, y = torch.randn(n, n), torch.randn(n, n)
        torch.mm(x, y)
        watch = Stopwatch()
        with watch:
            torch.mm(x, y)
        return "%.3f" % (2e-9 * n ** 3 / watch.wall)


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    peer = Peer(sys.argv[1])
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "ready":
            answer = "1"
        elif word == "rss":
            answer = "%.1f %.1f" % (peak_mib(), peer.loaded)
        else:
            answer = {"train": peer.train, "generate": peer.generate, "gemm": peer.gemm}[word](*map(int, numbers))
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
