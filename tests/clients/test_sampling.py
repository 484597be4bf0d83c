"""Sampling: logprobs that training agrees with to the bit, seeds, stops and limits."""

import numpy as np
import pytest
import tinker
from sdk import datum, floats, lora, sampling, text, tokens_of, train, values
from waiting import wait_for
from tinker import types

PROMPT = tokens_of(42, 12)


def test_four_samples_carry_the_logprobs_that_a_forward_computes(run, sampler):
    response = sampler.sample(text(PROMPT), 4, sampling(max_tokens=16, stop=[])).result()
    assert len(response.sequences) == 4
    assert len({tuple(s.tokens) for s in response.sequences}) == 4
    for sequence in response.sequences:
        assert len(sequence.tokens) == len(sequence.logprobs) == 16
        assert sequence.stop_reason == "length"
        scored = values(run.forward([datum(PROMPT + list(sequence.tokens))], "cross_entropy").result())[0]
        assert scored[len(PROMPT) - 1 :].tobytes() == floats(sequence.logprobs)


def test_compute_logprobs_agrees_with_forward_and_with_the_sample(run, sampler):
    sequence = sampler.sample(text(PROMPT), 1, sampling(max_tokens=9, stop=[])).result().sequences[0]
    whole = PROMPT + list(sequence.tokens)
    computed = sampler.compute_logprobs(text(whole)).result()
    assert len(computed) == len(whole) and computed[0] is None
    forward = values(run.forward([datum(whole)], "cross_entropy").result())[0]
    assert floats(computed[1:]) == forward.tobytes()
    assert floats(computed[len(PROMPT) :]) == floats(sequence.logprobs)


def test_prompt_logprobs_come_with_a_sample_when_asked_for(sampler):
    asked = sampler.sample(text(PROMPT), 1, sampling(), include_prompt_logprobs=True).result()
    assert asked.prompt_logprobs[0] is None
    assert floats(asked.prompt_logprobs[1:]) == floats(sampler.compute_logprobs(text(PROMPT)).result()[1:])
    assert sampler.sample(text(PROMPT), 1, sampling()).result().prompt_logprobs is None


def test_a_seed_repeats_its_samples_and_another_does_not(sampler):
    def draw(seed):
        sequences = sampler.sample(text(PROMPT), 3, sampling(seed=seed, stop=[])).result().sequences
        return [(tuple(s.tokens), floats(s.logprobs)) for s in sequences]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_temperature_zero_takes_the_likeliest_token(run, sampler):
    sequences = sampler.sample(text(PROMPT), 4, sampling(max_tokens=3, temperature=0.0, stop=[])).result().sequences
    assert len({tuple(s.tokens) for s in sequences}) == 1
    chosen, logprob = sequences[0].tokens[0], sequences[0].logprobs[0]
    others = [t for t in range(3, 1024) if t != chosen]
    batch = [datum(PROMPT + [t], [0.0] * (len(PROMPT) - 1) + [1.0]) for t in others]
    scored = values(run.forward(batch, "cross_entropy").result())
    assert max(p[-1] for p in scored) <= np.float32(logprob)


def test_top_k_one_is_greedy_whatever_the_temperature(sampler):
    greedy = sampler.sample(text(PROMPT), 1, sampling(temperature=0.0, stop=[])).result().sequences[0]
    narrow = sampler.sample(text(PROMPT), 1, sampling(temperature=5.0, top_k=1, stop=[])).result().sequences[0]
    nucleus = sampler.sample(text(PROMPT), 1, sampling(top_p=1e-6, stop=[])).result().sequences[0]
    assert greedy.tokens == narrow.tokens == nucleus.tokens
    assert floats(greedy.logprobs) == floats(narrow.logprobs) == floats(nucleus.logprobs)


def test_a_stop_token_ends_the_sample_and_is_part_of_it(sampler):
    free = list(sampler.sample(text(PROMPT), 1, sampling(max_tokens=12, stop=[])).result().sequences[0].tokens)
    stop = free[5]
    ended = sampler.sample(text(PROMPT), 1, sampling(max_tokens=12, stop=[stop])).result().sequences[0]
    assert list(ended.tokens) == free[: free.index(stop) + 1]
    assert ended.stop_reason == "stop"


def test_a_stop_string_ends_the_sample_with_the_token_that_completes_it(run, sampler):
    tokenizer = run.get_tokenizer()
    free = list(sampler.sample(text(PROMPT), 1, sampling(max_tokens=24, seed=3, stop=[])).result().sequences[0].tokens)
    # A string that spans two tokens, both of which are text on their own.
    at = next(
        i
        for i in range(2, 22)
        if all(tokenizer.decode([t]).isascii() and len(tokenizer.decode([t]).strip()) > 1 for t in free[i : i + 2])
    )
    stop = tokenizer.decode([free[at]])[-2:] + tokenizer.decode([free[at + 1]])[:2]
    ended = sampler.sample(text(PROMPT), 1, sampling(max_tokens=24, seed=3, stop=stop)).result().sequences[0]
    expected = next(i for i in range(len(free)) if stop in tokenizer.decode(free[: i + 1])) + 1
    assert list(ended.tokens) == free[:expected]
    assert ended.stop_reason == "stop"


def test_the_base_model_can_be_sampled_without_any_run(stack, service):
    sampler = service.create_sampling_client(base_model=stack.model).result()
    sequence = sampler.sample(text(PROMPT), 1, sampling(max_tokens=4, stop=[])).result().sequences[0]
    fresh = lora(service, stack.model)  # B is zero, so a fresh adapter is the base model
    scored = values(fresh.forward([datum(PROMPT + list(sequence.tokens))], "cross_entropy").result())[0]
    assert scored[len(PROMPT) - 1 :].tobytes() == floats(sequence.logprobs)


def test_a_sampler_keeps_its_weights_while_the_run_goes_on(run):
    sampler = run.save_weights_and_get_sampling_client().result()

    def draw(of):
        return floats(of.compute_logprobs(text(PROMPT)).result()[1:])

    before = draw(sampler)
    train(run, 1, first=50)
    assert draw(sampler) == before
    assert draw(run.save_weights_and_get_sampling_client().result()) != before


def test_many_samples_at_once_are_those_that_come_one_by_one(sampler):
    prompts = [tokens_of(i, 3 + i % 9) for i in range(24)]

    def ask(i):
        return sampler.sample(text(prompts[i]), 2, sampling(max_tokens=5 + i % 6, seed=i, stop=[]))

    def key(response):
        return [(tuple(s.tokens), floats(s.logprobs)) for s in response.sequences]

    at_once = [key(f.result()) for f in [ask(i) for i in range(24)]]
    one_by_one = [key(ask(i).result()) for i in range(24)]
    assert at_once == one_by_one


# ------------------------------------------------------------ ends and limits


def test_the_end_of_text_stops_a_sample_that_has_other_stops_too(sampler):
    """Unless the list is empty: then nothing does."""
    free = sampler.sample(text(PROMPT), 128, sampling(max_tokens=60, stop=[])).result().sequences
    usual = sampler.sample(text(PROMPT), 128, sampling(max_tokens=60)).result().sequences
    listed = sampler.sample(text(PROMPT), 128, sampling(max_tokens=60, stop=[1023])).result().sequences
    ended = [i for i in range(128) if usual[i].stop_reason == "stop"]
    assert ended and all(len(s.tokens) == 60 for s in free)
    for i in ended:
        assert list(usual[i].tokens) == list(free[i].tokens)[: len(usual[i].tokens)]
        whole = list(usual[i].tokens)
        cut = whole.index(1023) + 1 if 1023 in whole else len(whole)
        assert list(listed[i].tokens) == whole[:cut] and listed[i].stop_reason == "stop"


def test_without_max_tokens_a_sample_goes_to_the_context_limit(stack, sampler):
    [(limit,)] = stack.sql("select context_max from models where name = %s", stack.model)
    prompt = tokens_of(5, limit - 9)
    params = types.SamplingParams(temperature=1.0, seed=1, stop=[])
    sequence = sampler.sample(text(prompt), 1, params).result().sequences[0]
    assert len(sequence.tokens) == 9 and sequence.stop_reason == "length"
    with pytest.raises(tinker.RequestFailedError, match="context"):
        sampler.sample(text(tokens_of(5, limit)), 1, sampling()).result()


# ------------------------------------------------------------ shared prompts


def test_a_group_asked_for_one_by_one_computes_its_prompt_once_and_is_billed_as_ever(stack, service):
    sampler = service.create_sampling_client(base_model=stack.model).result()
    prompt = tokens_of(4711, 150)  # two whole blocks of 64
    before = stack.counters("worker:0")["prefix_hit_tokens"]
    asked = [sampler.sample(text(prompt), 1, sampling(max_tokens=3, seed=i, stop=[])) for i in range(8)]
    at_once = [f.result().sequences[0] for f in asked]
    one_by_one = [
        sampler.sample(text(prompt), 1, sampling(max_tokens=3, seed=i, stop=[])).result().sequences[0] for i in range(8)
    ]
    for a, b in zip(at_once, one_by_one):
        assert list(a.tokens) == list(b.tokens) and floats(a.logprobs) == floats(b.logprobs)
    wait_for(lambda: stack.counters("worker:0")["prefix_hit_tokens"] >= before + 15 * 128, "the cache's hits")
    [(sampler_id,)] = stack.sql("select id from samplers order by created_at desc limit 1")
    bills = stack.billed([sampler_id], 16)
    assert [(status, prefill, sample) for _, status, prefill, sample, *_ in bills] == [("ok", 150, 3)] * 16


def test_requests_that_may_need_much_memory_take_turns_and_nobody_is_left_out(stack, service):
    """128 samples to the context limit are promised a quarter of the worker's KV memory, so not all of these are in at
    once, and small ones that come later wait behind them."""
    sampler = service.create_sampling_client(base_model=stack.model).result()
    stops = list(range(0, 1024, 16))

    def large(i):
        params = types.SamplingParams(temperature=1.0, seed=i, stop=stops)
        return sampler.sample(text(tokens_of(900 + i, 20)), 128, params)

    def small(i):
        return sampler.sample(text(tokens_of(900 + i, 20)), 1, sampling(max_tokens=4, seed=i, stop=[]))

    def key(response):
        return [(tuple(s.tokens), floats(s.logprobs)) for s in response.sequences]

    asked = [large(i) if i % 2 == 0 else small(i) for i in range(20)]
    answers = [key(f.result()) for f in asked]
    assert all(len(a) == (128 if i % 2 == 0 else 1) for i, a in enumerate(answers))
    assert key(large(18).result()) == answers[18] and key(small(19).result()) == answers[19]
