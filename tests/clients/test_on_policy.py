"""Sampler and trainer are one engine: what a sampler reports with a token is what the trainer finds for it, to the bit,
however the token was chosen and whatever shared its prompt.  So the ratios of a first RL step are exactly 1."""

import numpy as np
import pytest
from sdk import datum, end, floats, lora, policy_datum, sampling, text, tokens_of, train, values

PROMPT = tokens_of(31, 90)  # ends within its second block of 64
NEW = 150  # and its samples fill two more

WAYS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "cool": {"temperature": 0.6},
    "nucleus": {"temperature": 1.0, "top_p": 0.8},
    "narrow": {"temperature": 1.3, "top_k": 12},
    "both": {"temperature": 0.9, "top_k": 40, "top_p": 0.9},
}


@pytest.fixture(scope="module")
def run(stack, first_account):
    service = stack.service(first_account[1])
    client = lora(service, stack.model, rank=16)
    train(client, 5)
    yield client
    end(service)


def hexes(array):
    return [float(v).hex() for v in np.asarray(array, dtype=np.float32)]


def assert_on_policy(run, prompt, sequences):
    batch = [datum(prompt + list(s.tokens)) for s in sequences]
    for sequence, logprobs in zip(sequences, values(run.forward(batch, "cross_entropy").result())):
        assert hexes(sequence.logprobs) == hexes(logprobs[len(prompt) - 1 :])


@pytest.mark.parametrize("way", WAYS)
def test_a_samples_logprobs_are_the_trainers(run, sampler, way):
    params = sampling(max_tokens=NEW, stop=[], **WAYS[way])
    sequences = sampler.sample(text(PROMPT), 4, params).result().sequences
    assert all(len(s.tokens) == NEW for s in sequences)
    assert_on_policy(run, PROMPT, sequences)


def test_a_group_that_is_asked_for_one_by_one_is_on_policy_too(run, sampler):
    """Cold, warm, and half shared: the prompt of some goes on with what others have sampled."""
    fresh = tokens_of(32, 130)
    asked = [sampler.sample(text(fresh), 1, sampling(max_tokens=70, seed=i, stop=[])) for i in range(6)]
    group = [f.result().sequences[0] for f in asked]
    assert_on_policy(run, fresh, group)
    longer = fresh + list(group[0].tokens) + tokens_of(33, 5)
    assert_on_policy(run, longer, sampler.sample(text(longer), 2, sampling(max_tokens=70, stop=[])).result().sequences)
    again = sampler.sample(text(fresh), 1, sampling(max_tokens=70, seed=3, stop=[])).result().sequences[0]
    assert list(again.tokens) == list(group[3].tokens) and floats(again.logprobs) == floats(group[3].logprobs)


def test_a_sampler_of_new_weights_finds_nothing_of_the_old(run):
    """The same prompt, the same run, one step later."""
    old = run.save_weights_and_get_sampling_client().result()
    first = old.sample(text(PROMPT), 1, sampling(max_tokens=20, stop=[])).result().sequences
    assert_on_policy(run, PROMPT, first)
    train(run, 1, first=70)
    new = run.save_weights_and_get_sampling_client().result()
    second = new.sample(text(PROMPT), 1, sampling(max_tokens=20, stop=[])).result().sequences
    assert_on_policy(run, PROMPT, second)
    assert hexes(first[0].logprobs) != hexes(second[0].logprobs)
    repeated = old.sample(text(PROMPT), 1, sampling(max_tokens=20, stop=[])).result().sequences
    assert hexes(repeated[0].logprobs) == hexes(first[0].logprobs)


def test_the_ratios_of_a_first_step_are_exactly_one(stack, service):
    client = lora(service, stack.model, seed=3)
    train(client, 3)
    sampler = client.save_weights_and_get_sampling_client().result()
    context = [0.0] * (len(PROMPT) - 1)
    asked = [sampler.sample(text(PROMPT), 1, sampling(max_tokens=NEW, seed=i, stop=[])) for i in range(8)]
    batch, total = [], 0.0
    for i, future in enumerate(asked):
        sequence = future.result().sequences[0]
        gain = (i - 3) / 8  # sums of these are exact
        total += gain * NEW
        batch.append(policy_datum(PROMPT + list(sequence.tokens), context + list(sequence.logprobs), context + [gain] * NEW))
    result = client.forward_backward(batch, "importance_sampling").result()
    assert float(result.metrics["loss:sum"]).hex() == float(-total).hex()
    clipped = client.forward(batch, "ppo").result()
    assert float(clipped.metrics["loss:sum"]).hex() == float(-total).hex()
