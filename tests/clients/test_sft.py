"""Supervised training with the real SDK: what comes back has the values it should have."""

import numpy as np
from sdk import ADAM, batch_of, bits, datum, lora, tokens_of, train, values
from tinker import types


def test_the_loss_is_minus_the_weighted_sum_of_the_returned_logprobs(stack, service):
    client = lora(service, stack.model)
    batch, expected_weights = [], []
    for i in range(5):
        tokens = tokens_of(i, 9 + 17 * i)
        weights = [((3 * i + 5 * k) % 7 - 2) / 4 for k in range(len(tokens) - 1)]  # some zero, some negative
        batch.append(datum(tokens, weights))
        expected_weights.append(weights)
    result = client.forward_backward(batch, "cross_entropy").result()

    logprobs = values(result)
    assert [len(p) for p in logprobs] == [8 + 17 * i for i in range(5)]
    assert all(np.isfinite(p).all() and (p < 0).all() for p in logprobs)
    terms = [np.float64(p) @ np.float64(np.float32(w)) for p, w in zip(logprobs, expected_weights)]
    # The sum's own rounding is what the tolerance is for; its scale is that of the terms' absolute values.
    scale = sum(np.abs(np.float64(p)) @ np.abs(np.float64(w)) for p, w in zip(logprobs, expected_weights))
    assert abs(result.metrics["loss:sum"] + sum(terms)) <= 1e-6 * scale


def test_a_random_model_starts_near_the_logarithm_of_its_vocabulary_and_the_loss_falls(stack, service):
    client = lora(service, stack.model, rank=32)
    batch = [datum(tokens_of(5, 33)) for _ in range(4)]
    losses = []
    for _ in range(12):
        # The step is sent before the gradient is awaited.
        gradient = client.forward_backward(batch, "cross_entropy")
        update = client.optim_step(ADAM)
        losses.append(gradient.result().metrics["loss:sum"] / (4 * 32))
        assert update.result().metrics["grad_norm:mean"] > 0
    assert np.log(1024) - 0.5 < losses[0] < np.log(1024) + 2
    assert losses[-1] < 0.8 * losses[0]


def test_sending_ahead_and_waiting_for_each_step_give_the_same_bits(stack, service):
    ahead = train(lora(service, stack.model), 5)
    patient_client = lora(service, stack.model)
    patient = [step for n in range(5) for step in train(patient_client, 1, first=n)]
    assert ahead == patient


def test_a_batch_cut_into_chunks_is_one_batch(stack, service):
    """1,500 datums travel as two requests of which the first is sent last; order and gradient are those of one call
    after the other."""
    batch = [datum(tokens_of(i, 3 + i % 3)) for i in range(1500)]
    cut = lora(service, stack.model)
    whole = cut.forward_backward(batch, "cross_entropy").result()
    cut_step = cut.optim_step(ADAM).result().metrics

    assert [len(v) for v in values(whole)] == [2 + i % 3 for i in range(1500)]
    single = lora(service, stack.model)
    for i in (0, 1023, 1024, 1499):  # the outputs are in the datums' order
        alone = single.forward([batch[i]], "cross_entropy").result()
        assert values(alone)[0].tobytes() == values(whole)[i].tobytes()

    parts = lora(service, stack.model)
    first = parts.forward_backward(batch[:1024], "cross_entropy").result()
    second = parts.forward_backward(batch[1024:], "cross_entropy").result()
    assert bits(first)[0] + bits(second)[0] == bits(whole)[0]
    assert first.metrics["loss:sum"] + second.metrics["loss:sum"] == whole.metrics["loss:sum"]
    assert parts.optim_step(ADAM).result().metrics == cut_step
    after = [bits(c.forward(batch[:8], "cross_entropy").result()) for c in (cut, parts)]
    assert after[0] == after[1]


def test_forward_leaves_no_gradient(stack, service):
    client = lora(service, stack.model)
    before = client.forward(batch_of(0), "cross_entropy").result()
    assert client.optim_step(ADAM).result().metrics["grad_norm:mean"] == 0
    after = client.forward(batch_of(0), "cross_entropy").result()
    assert bits(before) == bits(after)


def test_gradients_of_several_calls_add_up_until_the_step(stack, service):
    batch = batch_of(1, count=6)

    def norm(*parts):
        client = lora(service, stack.model)
        for part in parts:
            client.forward_backward(part, "cross_entropy")
        return client.optim_step(ADAM).result().metrics["grad_norm:mean"]

    whole, in_two, first_only = norm(batch), norm(batch[:2], batch[2:]), norm(batch[:2])
    assert np.isclose(whole, in_two, rtol=1e-5)
    assert not np.isclose(whole, first_only, rtol=1e-2)


def test_the_seed_decides_the_adapter(stack, service):
    results = []
    for seed in (7, 7, 8):
        client = lora(service, stack.model, seed=seed)
        train(client, 1)
        results.append(bits(client.forward(batch_of(9), "cross_entropy").result()))
    assert results[0] == results[1] != results[2]


def test_clipping_bounds_what_the_step_does(stack, service):
    """Adam's first step has one size whatever the gradient's, so its second tells clipped from unclipped."""

    def losses(clip):
        client = lora(service, stack.model)
        out = []
        for step in range(3):
            gradient = client.forward_backward(batch_of(step), "cross_entropy")
            client.optim_step(types.AdamParams(learning_rate=2e-3, grad_clip_norm=clip if step == 1 else 0.0))
            out.append(float(gradient.result().metrics["loss:sum"]).hex())
        return out

    off, tight, wide = losses(0.0), losses(1e-3), losses(1e9)
    assert off == wide
    assert off[:2] == tight[:2] and off[2] != tight[2]


def test_the_tokenizer_of_the_model_can_be_loaded_and_reverses_itself(stack, service):
    tokenizer = lora(service, stack.model).get_tokenizer()
    sentence = "This License applies to 3+4=7 programs."
    ids = tokenizer.encode(sentence)
    assert tokenizer.decode(ids) == sentence
    assert max(ids) < 1024
