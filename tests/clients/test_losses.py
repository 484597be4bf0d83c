"""Every built-in loss with the real SDK: its value and gradient against arithmetic done here, targets of shape [N, K],
and what is refused."""

import numpy as np
import pytest
import tinker
from sdk import ADAM, batch_of, bits, datum, lora, tokens_of, train, values
from tinker import types

N = 11


def tensor(array):
    return types.TensorData.from_numpy(np.ascontiguousarray(array))


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def policy_batch(client, seed, count=3, **more):
    """Datums whose ratios lie around 1: the model's own logprobs, moved a little.  more: tensors by datum and name."""
    rng = np.random.default_rng(seed)
    tokens = [tokens_of(100 * seed + i, N + 1 + i) for i in range(count)]
    own = values(client.forward([datum(t) for t in tokens], "cross_entropy").result())
    batch = []
    for i, (t, p) in enumerate(zip(tokens, own)):
        inputs = {
            "target_tokens": t[1:],
            "logprobs": tensor(p - np.float32(0.4) * floats(rng, len(p)).clip(-1, 1)),
            "advantages": tensor(floats(rng, len(p)) * (rng.random(len(p)) > 0.2)),
        }
        inputs |= {name: tensor(make(i, len(p), rng)) for name, make in more.items()}
        batch.append(types.Datum(model_input=types.ModelInput.from_ints(t[:-1]), loss_fn_inputs=inputs))
    return batch


def given(d, name):
    return np.asarray(d.loss_fn_inputs[name].to_numpy(), dtype=np.float64)


def value_and_slopes(kind, d, p, low=None, high=None, beta=None):
    """The loss of one datum and its derivative in each logprob, by the public formulas."""
    p, q, a = np.float64(p), given(d, "logprobs"), given(d, "advantages")
    low = given(d, "clip_low_threshold") if "clip_low_threshold" in d.loss_fn_inputs else low
    high = given(d, "clip_high_threshold") if "clip_high_threshold" in d.loss_fn_inputs else high
    if kind == "dro":
        return -(p * a - beta / 2 * (p - q) ** 2).sum(), -a + beta * (p - q)
    ratio = np.exp(p - q)
    if kind == "importance_sampling":
        return -(ratio * a).sum(), -ratio * a
    if kind == "cispo":
        clamped = np.clip(ratio, low, high)
        return -(clamped * p * a).sum(), -clamped * a
    if kind == "gspo":
        masked = "sequence_ratio_mask" in d.loss_fn_inputs
        counts = given(d, "sequence_ratio_mask") != 0 if masked else np.full(len(p), True)
        ratio = np.full(len(p), np.exp((p - q)[counts].mean()))
    clamped = np.clip(ratio, low, high)
    return -np.minimum(ratio * a, clamped * a).sum(), np.where(clamped * a < ratio * a, 0, -ratio * a)


def low_bounds(i, n, rng):
    return (0.6 + 0.3 * rng.random(n)).astype(np.float32)


def high_bounds(i, n, rng):
    return (1.05 + 0.3 * rng.random(n)).astype(np.float32)


def mask(i, n, rng):
    return (np.arange(n) % 3 != i % 3).astype(np.float32)


BOUNDS = {"clip_low_threshold": low_bounds, "clip_high_threshold": high_bounds}
# loss, config, tensors beside the usual ones, what the formula then has
CASES = {
    "importance_sampling": ("importance_sampling", None, {}, {}),
    "ppo": ("ppo", None, {}, {"low": 0.8, "high": 1.2}),
    "ppo with bounds for each token": ("ppo", None, BOUNDS, {}),
    "ppo with low bounds for each token": (
        "ppo", {"clip_high_threshold": 1.1}, {"clip_low_threshold": low_bounds}, {"high": 1.1}),
    "cispo": ("cispo", None, {}, {"low": 0.0, "high": 4.0}),
    "cispo with bounds": (
        "cispo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}, {}, {"low": 0.9, "high": 1.1}),
    "cispo with bounds for each token": ("cispo", None, BOUNDS, {}),
    "dro": ("dro", None, {}, {"beta": 0.05}),
    "dro with beta": ("dro", {"beta": 0.5}, {}, {"beta": 0.5}),
    "gspo": ("gspo", None, {}, {"low": 1 - 3e-4, "high": 1 + 4e-4}),
    "gspo with a mask and bounds": (
        "gspo", {"clip_low_threshold": 0.95, "clip_high_threshold": 1.05}, {"sequence_ratio_mask": mask},
        {"low": 0.95, "high": 1.05}),
    "gspo with bounds for each token": ("gspo", None, BOUNDS, {}),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_a_loss_has_the_documented_value_and_gradient(stack, service, what):
    kind, config, more, formula = CASES[what]
    client = lora(service, stack.model)
    train(client, 1)
    batch = policy_batch(client, 3, **more)
    seen = client.forward(batch, kind, config).result()
    sent = client.forward_backward(batch, kind, config).result()
    assert bits(seen) == bits(sent)
    terms = [value_and_slopes(kind, d, p, **formula) for d, p in zip(batch, values(sent))]
    loss, scale = sum(t[0] for t in terms), sum(np.abs(t[1]).sum() for t in terms)
    assert abs(sent.metrics["loss:sum"] - loss) <= 1e-5 * max(abs(loss), scale)
    assert sent.metrics["tokens:sum"] == sum(len(p) for p in values(sent))

    # Cross entropy whose weights are minus the slopes has the same gradient; so a step does the same.
    twin = lora(service, stack.model)
    train(twin, 1)
    data = [
        types.Datum(
            model_input=d.model_input,
            loss_fn_inputs={"target_tokens": d.loss_fn_inputs["target_tokens"], "weights": tensor(np.float32(-t[1]))},
        )
        for d, t in zip(batch, terms)
    ]
    twin.forward_backward(data, "cross_entropy").result()
    steps = [c.optim_step(ADAM).result().metrics["grad_norm:mean"] for c in (client, twin)]
    assert steps[0] > 0
    assert np.isclose(steps[0], steps[1], rtol=1e-6)


# ------------------------------------------------------------ K targets a position


def wide_datum(seed, n, k):
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, 1000, (n, k))
    weights = rng.random((n, k)).astype(np.float32)
    weights[rng.random((n, k)) < 0.4] = 0
    return types.ModelInput.from_ints(tokens_of(seed, n)), targets, weights


def dense(model_input, targets, weights):
    return types.Datum(
        model_input=model_input, loss_fn_inputs={"target_tokens": tensor(targets), "weights": tensor(weights)}
    )


def csr(array):
    rows, cols = np.nonzero(array)
    ends = np.concatenate([[0], np.cumsum((array != 0).sum(1))])
    return types.TensorData(
        data=array[rows, cols],
        dtype="int64" if array.dtype == np.int64 else "float32",
        shape=list(array.shape),
        sparse_crow_indices=ends.tolist(),
        sparse_col_indices=cols.tolist(),
    )


def test_targets_of_two_dimensions_give_logprobs_of_two_dimensions(stack, service):
    client = lora(service, stack.model)
    shapes = [(9, 4), (5, 4), (7, 1), (6, 20)]  # of several widths
    data = [wide_datum(i, n, k) for i, (n, k) in enumerate(shapes)]
    result = client.forward_backward([dense(*d) for d in data], "cross_entropy").result()
    assert [p.shape for p in values(result)] == shapes
    loss = -sum((np.float64(p) * np.float64(w)).sum() for p, (_, _, w) in zip(values(result), data))
    assert abs(result.metrics["loss:sum"] - loss) <= 1e-6 * abs(loss)
    assert client.optim_step(ADAM).result().metrics["grad_norm:mean"] > 0


def test_each_column_has_the_logprobs_of_a_call_of_its_own(stack, service):
    client = lora(service, stack.model)
    model_input, targets, weights = wide_datum(5, 12, 3)
    wide = values(client.forward([dense(model_input, targets, weights)], "cross_entropy").result())[0]
    for k in range(3):
        one = dense(model_input, targets[:, k], weights[:, k])
        assert values(client.forward([one], "cross_entropy").result())[0].tobytes() == wide[:, k].tobytes()


def test_sparse_tensors_are_what_they_stand_for(stack, service):
    model_input, targets, weights = wide_datum(6, 10, 16)
    targets[weights == 0] = 0  # most of the cells are padding: id 0, weight 0
    results = []
    for encode in (tensor, csr):
        client = lora(service, stack.model)
        inputs = {"target_tokens": encode(targets), "weights": encode(weights)}
        d = types.Datum(model_input=model_input, loss_fn_inputs=inputs)
        sent = client.forward_backward([d], "cross_entropy").result()
        assert values(sent)[0].shape == (10, 16)
        assert np.isfinite(values(sent)[0]).all()
        results.append((bits(sent), client.optim_step(ADAM).result().metrics))
    assert results[0] == results[1]


def test_a_student_learns_its_teachers_distribution(stack, service):
    """Soft targets: the loss nears the teacher's entropy, which no student can go below."""
    client = lora(service, stack.model, rank=32)
    rng = np.random.default_rng(1)
    n, k = 12, 4
    targets = np.stack([rng.choice(np.arange(3, 1000), k, replace=False) for _ in range(n)])
    teacher = rng.dirichlet(np.ones(k), n)
    d = dense(types.ModelInput.from_ints(tokens_of(1, n)), targets, teacher.astype(np.float32))
    entropy = -(teacher * np.log(teacher)).sum()
    losses = []
    for _ in range(25):
        gradient = client.forward_backward([d], "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=2e-2))
        losses.append(gradient.result().metrics["loss:sum"])
    assert min(losses) >= entropy - 1e-3
    assert losses[-1] - entropy < 0.3 * (losses[0] - entropy)


# ------------------------------------------------------------ weights, metrics


def test_without_weight_there_are_logprobs_and_no_gradient(stack, service):
    client = lora(service, stack.model)
    result = client.forward_backward([datum(tokens_of(2, 9), [0.0] * 8)], "cross_entropy").result()
    assert result.metrics["loss:sum"] == 0
    assert (values(result)[0] < 0).all()
    assert client.optim_step(ADAM).result().metrics["grad_norm:mean"] == 0


def test_a_weight_below_zero_makes_a_token_less_likely(stack, service):
    client = lora(service, stack.model)
    d = [datum(tokens_of(2, 9), [-0.5] * 8)]
    before = values(client.forward_backward(d, "cross_entropy").result())[0]
    client.optim_step(ADAM).result()
    assert values(client.forward(d, "cross_entropy").result())[0].sum() < before.sum()


def test_metrics_add_up_over_chunks(stack, service):
    client = lora(service, stack.model)
    batch = [datum(tokens_of(i, 3 + i % 3)) for i in range(1100)]  # two requests
    metrics = client.forward_backward(batch, "cross_entropy").result().metrics
    assert metrics["tokens:sum"] == sum(2 + i % 3 for i in range(1100))
    assert set(metrics) == {"loss:sum", "tokens:sum"}
    assert set(client.optim_step(ADAM).result().metrics) == {"grad_norm:mean", "lr:mean", "step:max"}


# ------------------------------------------------------------ refusals


def wide_policy():
    d = wide_datum(1, 4, 2)
    three = tensor(np.zeros(4, np.float32))
    return types.Datum(
        model_input=d[0], loss_fn_inputs={"target_tokens": tensor(d[1]), "logprobs": three, "advantages": three}
    )


def policy(**more):
    inputs = {"target_tokens": [6, 7], "logprobs": [-1.0, -1.0], "advantages": [1.0, 1.0]} | more
    inputs = {name: value for name, value in inputs.items() if value is not None}
    return types.Datum(model_input=types.ModelInput.from_ints([5, 6]), loss_fn_inputs=inputs)


REFUSED = {
    "a loss of another server": ("stable_reinforce", {"kl_coeff": 0.1}, policy, "cispo, dro, gspo"),
    "a traced loss": ("custom", {"loss_id": "s:loss:0"}, policy, "cross_entropy, importance_sampling"),
    "a key that no loss takes": ("ppo", {"epsilon": 0.2}, policy, "clip_low_threshold or clip_high_threshold"),
    "a key of another loss": ("cispo", {"beta": 0.2}, policy, 'loss "cispo"'),
    "a key where none is taken": ("importance_sampling", {"beta": 0.2}, policy, "expected nothing"),
    "bounds the wrong way round": ("gspo", {"clip_low_threshold": 2.0}, policy, "clip thresholds are 2"),
    "bounds of a token the wrong way round": (
        "ppo", None, lambda: policy(clip_low_threshold=[0.8, 1.3]), "position 1"),
    "a beta below zero": ("dro", {"beta": -1.0}, policy, "beta is -1"),
    "a mask that counts nothing": ("gspo", None, lambda: policy(sequence_ratio_mask=[0.0, 0.0]), "everywhere"),
    "no advantages": ("dro", None, lambda: policy(advantages=None), 'no "advantages", which loss "dro" needs'),
    "wide targets where one is taken": ("ppo", None, wide_policy, "shape [4, 2]"),
    "weights of another shape": (
        "cross_entropy", None, lambda: dense(*wide_datum(1, 4, 2)[:2], np.ones(4, np.float32)), "[4, 2]"),
    "too many targets": ("cross_entropy", None, lambda: dense(*wide_datum(1, 2, 257)), "1 to 256"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_loss_cannot_use_is_the_users_error_and_the_run_goes_on(stack, service, what):
    kind, config, make, named = REFUSED[what]
    client = lora(service, stack.model)
    with pytest.raises(tinker.RequestFailedError) as caught:
        client.forward_backward([make()], kind, config).result()
    assert caught.value.category.name.lower() == "user"
    assert named in caught.value.message
    assert client.forward_backward(batch_of(0), "cross_entropy").result().metrics["loss:sum"] > 0


def test_tensors_that_a_loss_does_not_read_are_ignored(stack, service):
    client = lora(service, stack.model)
    plain = client.forward([policy()], "ppo").result()
    more = policy(weights=[3.0, 4.0], mask=tensor(np.ones(7, np.float32)), sequence_ratio_mask=[0.0, 0.0])
    assert bits(client.forward([more], "ppo").result()) == bits(plain)
