"""Supervised fine-tuning on real text with the public tinker SDK: the loss of the next token falls.

The text is the licence texts that every Debian carries.  The base model is tiny and random (nothing was pre-trained),
so all that it ever knows is learnt here, by LoRA of rank 32 on attention, MLP and unembedding."""

import pathlib
import random

import tinker
from tinker import types
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from record import Record

STEPS = 100
BATCH = 16  # sequences
LENGTH = 96  # tokens a sequence
LEARNING_RATE = 5e-3
TEXTS = pathlib.Path("/usr/share/common-licenses")


def read_text():
    files = sorted(p for p in TEXTS.iterdir() if p.is_file() and not p.is_symlink())
    return "\n".join(p.read_text(encoding="utf-8", errors="replace") for p in files)


def datum(tokens):
    """Position i sees tokens[..i] and is to say tokens[i + 1]."""
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )


def main():
    record = Record("sft")
    service = tinker.ServiceClient()
    base_model = tinker.RestClient().get_server_capabilities().result().supported_models[0].model_name
    training = service.create_lora_training_client(base_model=base_model, rank=32, seed=1).result()
    record.ids.append(training.model_id)

    tokens = training.get_tokenizer().encode(read_text())
    print(f"SFT: {len(tokens)} tokens of licence texts, {STEPS} steps of {BATCH} x {LENGTH} tokens, model {base_model}")

    choose = random.Random(1)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns) as progress:
        bar = progress.add_task("loss   ...", total=STEPS)
        for step in range(STEPS):
            starts = [choose.randrange(len(tokens) - LENGTH) for _ in range(BATCH)]
            batch = [datum(tokens[s : s + LENGTH + 1]) for s in starts]

            # Both are sent before either is waited for: the server keeps their order.
            gradient = training.forward_backward(batch, "cross_entropy")
            update = training.optim_step(types.AdamParams(learning_rate=LEARNING_RATE, grad_clip_norm=100.0))
            loss = gradient.result().metrics["loss:sum"] / (BATCH * LENGTH)
            update.result()

            record.add(step, loss)
            record.tokens["train"] += BATCH * LENGTH
            progress.update(bar, advance=1, description=f"loss {loss:5.3f}")
            if step % 10 == 0 or step == STEPS - 1:
                progress.console.print(f"  step {step:3d}  loss {loss:6.4f}  {loss.hex()}")

    path = training.save_state("sft").result().path
    record.extra["checkpoint"] = path
    record.save()
    print(f"SFT: loss {record.values[0][1]:.3f} -> {record.values[-1][1]:.3f}; state saved as {path}")
    service.close("success").result()


if __name__ == "__main__":
    main()
