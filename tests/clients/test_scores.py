"""Log-probabilities beside those of the sampled tokens: each is, to the bit, what a forward of the same weights finds."""

import numpy as np
import pytest
import tinker
from sdk import floats, sampling, text, tokens_of, values
from tinker import types

SHORT = tokens_of(42, 12)
LONG = tokens_of(77, 100)


def scored(run, tokens, ids):
    """log P(ids[i] | tokens[..i]) by the run's forward, as float32."""
    one = types.Datum(
        model_input=types.ModelInput.from_ints(list(tokens[: len(ids)])),
        loss_fn_inputs={"target_tokens": [int(i) for i in ids], "weights": [1.0] * len(ids)},
    )
    return values(run.forward([one], "cross_entropy").result())[0]


def in_order(entries):
    return sorted(entries, key=lambda e: (-np.float32(e[1]), e[0])) == list(entries)


def test_the_top_of_each_position_has_the_logprobs_of_a_forward(run, sampler):
    response = sampler.sample(
        text(LONG), 2, sampling(max_tokens=6, stop=[]), topk_prompt_logprobs=20, topk_sample_logprobs=3
    ).result()
    top = response.topk_prompt_logprobs
    assert top[0] is None and len(top) == len(LONG)
    assert all(len(entries) == 20 and in_order(entries) for entries in top[1:])
    for j in (0, 7, 19):
        mine = scored(run, LONG, [entries[j][0] for entries in top[1:]])
        assert mine.tobytes() == floats([entries[j][1] for entries in top[1:]])
    for sequence in response.sequences:
        assert all(len(entries) == 3 and in_order(entries) for entries in sequence.topk_logprobs)
        for j in range(3):
            ids = LONG[1:] + [entries[j][0] for entries in sequence.topk_logprobs]
            mine = scored(run, LONG + list(sequence.tokens), ids)
            assert mine[len(LONG) - 1 :].tobytes() == floats([entries[j][1] for entries in sequence.topk_logprobs])
    plain = sampler.sample(text(LONG), 2, sampling(max_tokens=6, stop=[])).result()
    assert [s.tokens for s in plain.sequences] == [s.tokens for s in response.sequences]
    assert plain.topk_prompt_logprobs is None and plain.sequences[0].topk_logprobs is None


def test_a_greedy_sample_is_the_top_of_each_position(sampler):
    greedy = sampler.sample(text(LONG), 1, sampling(temperature=0.0, stop=[]), topk_sample_logprobs=1).result()
    assert [entries[0][0] for entries in greedy.sequences[0].topk_logprobs] == list(greedy.sequences[0].tokens)


def test_only_the_last_prompt_tokens_are_scored_when_asked_so(sampler):
    whole = sampler.compute_logprobs(text(LONG)).result()
    for last in (1, 30, len(LONG) - 1):
        few = sampler.compute_logprobs(text(LONG), prompt_logprobs_last_n=last).result()
        assert few[:-last] == [None] * (len(LONG) - last)
        assert floats(few[-last:]) == floats(whole[-last:])
    response = sampler.sample(
        text(LONG), 1, sampling(), include_prompt_logprobs=True, topk_prompt_logprobs=2, prompt_logprobs_last_n=5
    ).result()
    assert [entries is None for entries in response.topk_prompt_logprobs] == [True] * 95 + [False] * 5


def dense_targets(ids):
    return types.TensorData(data=ids.ravel(), dtype="int64", shape=list(ids.shape))


def sparse_targets(rows, columns, cells):
    """cells: {(row, column): id}"""
    places = sorted(cells)
    return types.TensorData(
        data=[cells[place] for place in places],
        dtype="int64",
        shape=[rows, columns],
        sparse_crow_indices=[sum(row < r for row, _ in places) for r in range(rows + 1)],
        sparse_col_indices=[column for _, column in places],
    )


def test_given_ids_are_scored_and_the_answer_mirrors_their_layout(run, sampler):
    rows, choose = len(LONG) - 1, np.random.default_rng(3)
    ids = choose.integers(0, 1000, (rows, 4))
    ids[choose.random((rows, 4)) < 0.3] = -1
    answer = sampler.sample(text(LONG), 1, sampling(), target_prompt_logprobs=dense_targets(ids)).result()
    got = answer.target_prompt_logprobs
    assert got.dtype == "float32" and got.shape == [rows, 4] and got.sparse_crow_indices is None
    table = np.asarray(got.data, dtype=np.float32).reshape(rows, 4)
    for j in range(4):
        mine = scored(run, LONG, np.maximum(ids[:, j], 0))
        assert np.where(ids[:, j] < 0, np.float32(0), mine).tobytes() == table[:, j].tobytes()

    asked = sparse_targets(rows, 100000, {(3, 7): 11, (3, 99999): 12, (90, 0): 13})
    got = sampler.sample(text(LONG), 1, sampling(), target_prompt_logprobs=asked).result().target_prompt_logprobs
    assert got.shape == [rows, 100000]
    assert list(got.sparse_crow_indices) == list(asked.sparse_crow_indices)
    assert list(got.sparse_col_indices) == [7, 99999, 0]
    want = [scored(run, LONG, [i] * (row + 1))[row] for row, i in ((3, 11), (3, 12), (90, 13))]
    assert floats(got.data) == floats(want)


def test_alternatives_are_draws_that_repeat_by_seed(run, sampler):
    def draw(seed, **more):
        alt = sampler.sample(text(LONG), 1, sampling(seed=seed, **more), prompt_alt_tokens_k=3).result().prompt_alt_tokens
        assert alt.tokens.dtype == "int64" and alt.logprobs.dtype == "float32"
        assert alt.tokens.shape == alt.logprobs.shape == [len(LONG) - 1, 3]
        return np.asarray(alt.tokens.data).reshape(-1, 3), np.asarray(alt.logprobs.data, np.float32).reshape(-1, 3)

    ids, logprobs = draw(5)
    for j in range(3):
        assert scored(run, LONG, ids[:, j]).tobytes() == logprobs[:, j].tobytes()
    assert np.array_equal(draw(5)[0], ids) and not np.array_equal(draw(6)[0], ids)
    assert (ids[:, 0] != ids[:, 1]).any()
    cold = draw(5, temperature=0.0)[0]
    assert (cold == cold[:, :1]).all()


def test_stability_info_may_be_asked_for(stack, service):
    sampler = service.create_sampling_client(base_model=stack.model, record_stability_info=True).result()
    assert len(sampler.sample(text(SHORT), 1, sampling(max_tokens=2, stop=[])).result().sequences[0].tokens) == 2


@pytest.mark.parametrize(
    "words, more",
    [
        ("topk_prompt_logprobs is 21", {"topk_prompt_logprobs": 21}),
        ("topk_sample_logprobs is 21", {"topk_sample_logprobs": 21}),
        ("prompt_alt_tokens_k is 65", {"prompt_alt_tokens_k": 65}),
        ("prompt_logprobs_last_n is 12", {"include_prompt_logprobs": True, "prompt_logprobs_last_n": 12}),
        ("expected .11, K.", {"target_prompt_logprobs": dense_targets(np.ones((12, 1), np.int64))}),
        ("row 10 holds 5000", {"target_prompt_logprobs": dense_targets(np.full((11, 1), [[1]] * 10 + [[5000]]))}),
        ("no token id", {"target_prompt_logprobs": dense_targets(np.full((11, 2), -1))}),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(sampler, words, more):
    with pytest.raises(tinker.RequestFailedError, match=words) as caught:
        sampler.sample(text(SHORT), 1, sampling(), **more).result()
    assert caught.value.category.name.lower() == "user"


def test_an_answer_that_could_be_too_large_is_refused(sampler):
    with pytest.raises(tinker.RequestFailedError, match="expected at most 12582912"):
        sampler.sample(text(SHORT), 128, sampling(max_tokens=2000, stop=[]), topk_sample_logprobs=20).result()
