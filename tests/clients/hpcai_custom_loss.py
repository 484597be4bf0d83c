"""Run by test_hpcai.py in a process of its own, where PyTorch is in sight: a loss written by the user, with hpcai."""

import json
import sys

import hpcai
import numpy as np
from hpcai import types

base_url, key, model = sys.argv[1:]
service = hpcai.ServiceClient(base_url=base_url, api_key=key)
tokens = [[(7 * i + 3 * k) % 900 + 3 for k in range(12)] for i in range(3)]
data = [
    types.Datum(
        model_input=types.ModelInput.from_ints(t[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=t[1:], dtype="int64", shape=[11]),
            "weights": types.TensorData(data=[1.0] * 11, dtype="float32", shape=[11]),
        },
    )
    for t in tokens
]


def negative_sum(datums, logprobs):
    return sum(-p.sum() for p in logprobs), {"mine:sum": 1.0}


def look(client):
    output = client.forward(data, "cross_entropy").result()
    return [np.asarray(o["logprobs"].data, dtype=np.float32).tobytes().hex() for o in output.loss_fn_outputs]


def after(send):
    client = service.create_lora_training_client(base_model=model, rank=4, seed=3)
    before = look(client)
    send(client).result()
    client.optim_step(types.AdamParams(learning_rate=2e-3)).result()
    return before, look(client)


before, custom = after(lambda c: c.forward_backward_custom(data, negative_sum))
_, builtin = after(lambda c: c.forward_backward(data, "cross_entropy"))
print(json.dumps({"before": before, "custom": custom, "builtin": builtin}))
