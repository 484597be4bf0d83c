"""Run by test_custom_loss.py in a process of its own, where PyTorch is in sight: a loss written by the user.

Prints what it saw as JSON.  The loss is minus a weighted sum of logprobs, so the server's own cross entropy with the same
weights must do the same, bit for bit; and a second, curved loss whose derivative is worked out by hand."""

import json
import sys

import tinker
import torch
from sdk import ADAM, datum, end, lora, tokens_of, values

base_url, key, model = sys.argv[1:]
service = tinker.ServiceClient(base_url=base_url, api_key=key)
weights = [[((k + i) % 5 - 1) / 2 for k in range(11)] for i in range(3)]
data = [datum(tokens_of(i, 12), weights[i]) for i in range(3)]


def linear(datums, logprobs):
    loss = sum(-(d.loss_fn_inputs["weights"].to_torch() * p).sum() for d, p in zip(datums, logprobs))
    return loss, {"tokens:sum": float(sum(len(p) for p in logprobs))}


def curved(datums, logprobs):
    return sum((p**2).sum() for p in logprobs) / 2, {}


def outcome(send):
    client = lora(service, model)
    sent = send(client)
    step = client.optim_step(ADAM)  # sent before the loss is known
    result = sent.result()
    return {
        "metrics": {k: float(v) for k, v in result.metrics.items()},
        "logprobs": [v.tobytes().hex() for v in values(result)],
        "grad_norm": step.result().metrics["grad_norm:mean"],
        "after": [v.tobytes().hex() for v in values(client.forward(data, "cross_entropy").result())],
    }


def by_hand(client):
    """curved's weights are minus its derivative, minus p."""
    p = values(client.forward(data, "cross_entropy").result())
    return client.forward_backward(
        [datum(tokens_of(i, 12), (-p[i]).tolist()) for i in range(3)], "cross_entropy"
    )


print(
    json.dumps(
        {
            "custom": outcome(lambda c: c.forward_backward_custom(data, linear)),
            "builtin": outcome(lambda c: c.forward_backward(data, "cross_entropy")),
            "curved": outcome(lambda c: c.forward_backward_custom(data, curved)),
            "by_hand": outcome(by_hand),
        }
    )
)
end(service)
