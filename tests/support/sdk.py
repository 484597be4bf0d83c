"""Small words for the SDK's objects, and exact arithmetic on what comes back."""

import random
import sys

import numpy as np
from tinker import types

ADAM = types.AdamParams(learning_rate=2e-3)


def tokens_of(seed, count, vocab=1000):
    choose = random.Random(seed)
    return [choose.randrange(3, vocab) for _ in range(count)]


def datum(tokens, weights=None):
    """Next-token prediction over tokens; position i sees tokens[..i]."""
    targets = tokens[1:]
    weights = [1.0] * len(targets) if weights is None else weights
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )


def policy_datum(tokens, logprobs, advantages):
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "logprobs": logprobs, "advantages": advantages},
    )


def values(output, name="logprobs"):
    """Each datum's output as float32 arrays."""
    return [np.asarray(out[name].to_numpy(), dtype=np.float32) for out in output.loss_fn_outputs]


def bits(output):
    """What must be equal when two results are the same to the bit."""
    return [v.tobytes() for v in values(output)], float(output.metrics["loss:sum"]).hex()


def floats(array):
    return np.asarray(array, dtype=np.float32).tobytes()


def lora(service, model, seed=7, rank=8, **more):
    return service.create_lora_training_client(base_model=model, rank=rank, seed=seed, **more).result()


def batch_of(step, count=4, length=24):
    return [datum(tokens_of(1000 * step + i, length)) for i in range(count)]


def train(client, steps, first=0, make=batch_of):
    """A plain loop; everything is sent before anything is awaited.  Returns the bits of every step."""
    sent = []
    for step in range(first, first + steps):
        sent.append((client.forward_backward(make(step), "cross_entropy"), client.optim_step(ADAM)))
    return [(bits(gradient.result()), update.result().metrics) for gradient, update in sent]


def text(tokens):
    return types.ModelInput.from_ints(tokens)


def sampling(max_tokens=8, seed=11, **more):
    return types.SamplingParams(max_tokens=max_tokens, seed=seed, **{"temperature": 1.0, **more})


def end(service, status="success", **more):
    """Ends the client's session.  After the server has answered that, tinker 0.38.0 may wait for ever for a task of its own: a
    cancellation that meets an answer is lost, of its poller's call or of the heartbeat that it sends every ten seconds."""
    try:
        service.close(status, **more).result(60)
    except TimeoutError:
        print("tinker's close() waits for a task that missed its cancellation", file=sys.stderr)
