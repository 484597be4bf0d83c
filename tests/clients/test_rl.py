"""The policy losses: their values, and that they push the right way."""

import numpy as np
from sdk import ADAM, lora, policy_datum, sampling, text, tokens_of, train, values

PROMPT = tokens_of(9, 7)


def rollouts(client, count=6, max_tokens=5):
    sampler = client.save_weights_and_get_sampling_client().result()
    sequences = sampler.sample(text(PROMPT), count, sampling(max_tokens=max_tokens, stop=[])).result().sequences
    context = [0.0] * (len(PROMPT) - 1)
    return [(PROMPT + list(s.tokens), context + list(s.logprobs)) for s in sequences]


def advantages(tokens, value):
    return [0.0] * (len(PROMPT) - 1) + [value] * (len(tokens) - len(PROMPT))


def terms(result, batch):
    """p, q, A of all datums, one after the other, in double."""
    p = np.concatenate(values(result)).astype(np.float64)
    q, a = (
        np.concatenate([np.asarray(d.loss_fn_inputs[n].data, dtype=np.float32) for d in batch]).astype(np.float64)
        for n in ("logprobs", "advantages")
    )
    return p, q, a


def test_on_policy_the_ratio_is_one_to_the_bit(stack, service):
    client = lora(service, stack.model)
    train(client, 2)
    drawn = rollouts(client)
    batch = [policy_datum(t, q, advantages(t, 1.0 + i)) for i, (t, q) in enumerate(drawn)]
    result = client.forward_backward(batch, "importance_sampling").result()
    p, q, a = terms(result, batch)
    assert np.array_equal(p[a != 0], q[a != 0])
    assert result.metrics["loss:sum"] == -a.sum()  # every ratio is exp(0)


def test_importance_sampling_has_the_documented_value_off_policy(stack, service):
    client = lora(service, stack.model)
    drawn = rollouts(client)
    batch = [policy_datum(t, [v - 0.25 * (k % 3) for k, v in enumerate(q)], advantages(t, (-1.0) ** i))
             for i, (t, q) in enumerate(drawn)]
    result = client.forward_backward(batch, "importance_sampling").result()
    p, q, a = terms(result, batch)
    loss = -(np.exp(p - q) * a)
    assert abs(result.metrics["loss:sum"] - loss.sum()) <= 1e-5 * np.abs(loss).sum()


def test_ppo_clips_as_configured(stack, service):
    client = lora(service, stack.model)
    drawn = rollouts(client)
    batch = [policy_datum(t, [v + 0.3 * (k % 5 - 2) for k, v in enumerate(q)], advantages(t, (-1.0) ** i))
             for i, (t, q) in enumerate(drawn)]
    for low, high, config in ((0.8, 1.2, None), (0.5, 1.1, {"clip_low_threshold": 0.5, "clip_high_threshold": 1.1})):
        result = client.forward(batch, "ppo", config).result()
        p, q, a = terms(result, batch)
        ratio = np.exp(p - q)
        loss = -np.minimum(ratio * a, np.clip(ratio, low, high) * a)
        assert abs(result.metrics["loss:sum"] - loss.sum()) <= 1e-5 * np.abs(loss).sum()


def test_a_clipped_token_gives_no_gradient(stack, service):
    client = lora(service, stack.model)
    tokens, q = rollouts(client, count=1)[0]
    far = [v - 5.0 for v in q]  # ratios of e^5, far above the bound
    client.forward_backward([policy_datum(tokens, far, advantages(tokens, 1.0))], "ppo")
    assert client.optim_step(ADAM).result().metrics["grad_norm:mean"] == 0
    client.forward_backward([policy_datum(tokens, far, advantages(tokens, -1.0))], "ppo")
    assert client.optim_step(ADAM).result().metrics["grad_norm:mean"] > 0


def test_a_praised_answer_gets_likelier_and_a_blamed_one_less_likely(stack, service):
    client = lora(service, stack.model)
    (good, q_good), (bad, q_bad) = rollouts(client, count=2)
    batch = [policy_datum(good, q_good, advantages(good, 1.0)), policy_datum(bad, q_bad, advantages(bad, -1.0))]
    first = client.forward_backward(batch, "importance_sampling").result()
    client.optim_step(ADAM).result()
    second = client.forward(batch, "importance_sampling").result()
    start = len(PROMPT) - 1
    before, after = values(first), values(second)
    assert after[0][start:].sum() > before[0][start:].sum()
    assert after[1][start:].sum() < before[1][start:].sum()
