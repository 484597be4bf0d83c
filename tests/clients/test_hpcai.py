"""The hpcai 0.2.0 SDK, unchanged, on the same server: no sessions, no numbers, JSON in both directions."""

import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import httpx
import numpy as np
import pytest
import sdk

HERE = pathlib.Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".tinworks"
sys.path.append(str(CACHE / "clients" / "hpcai"))  # made by ./tinworks test

import hpcai  # noqa: E402
from hpcai import types  # noqa: E402
from sdk import end  # noqa: E402

ADAM = types.AdamParams(learning_rate=2e-3)
AGENT = {"User-Agent": "HpcAI/by hand"}  # one of its kind, and not the SDK itself


@pytest.fixture(scope="module")
def customer(stack):
    return stack.account("hpcai")


@pytest.fixture(scope="module")
def service(stack, customer):
    return hpcai.ServiceClient(base_url=stack.base_url, api_key=customer[1])


@pytest.fixture
def http(stack, customer):
    headers = {"X-API-Key": customer[1], **AGENT}
    with httpx.Client(base_url=stack.base_url, headers=headers, timeout=60) as client:
        yield client


def datum(tokens):
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
            "weights": types.TensorData(data=[1.0] * (len(tokens) - 1), dtype="float32", shape=[len(tokens) - 1]),
        },
    )


def batch_of(step, count=4, length=24):
    return [datum(sdk.tokens_of(1000 * step + i, length)) for i in range(count)]


def values(output):
    return [np.asarray(o["logprobs"].data, dtype=np.float32).tobytes() for o in output.loss_fn_outputs]


def lora(service, model):
    return service.create_lora_training_client(
        base_model=model, rank=8, seed=7, train_mlp=True, train_attn=True, train_unembed=True
    )


def train(client, steps, first=0):
    sent = []
    for step in range(first, first + steps):
        sent.append((client.forward_backward(batch_of(step), "cross_entropy"), client.optim_step(ADAM)))
    return [(values(gradient.result()), update.result().metrics) for gradient, update in sent]


def test_it_trains_what_tinker_trains_bit_for_bit(stack, customer, service):
    tinker_service = stack.service(customer[1])
    theirs = sdk.train(sdk.lora(tinker_service, stack.model), 3)
    ours = train(lora(service, stack.model), 3)
    assert [logprobs for logprobs, _ in ours] == [logprobs for (logprobs, _), _ in theirs]
    assert [metrics for _, metrics in ours] == [metrics for _, metrics in theirs]
    end(tinker_service)


def test_a_batch_larger_than_a_chunk_is_one_result(stack, service):
    client = lora(service, stack.model)
    data = [datum(sdk.tokens_of(i, 6)) for i in range(130)]  # two of its chunks
    output = client.forward_backward(data, "cross_entropy").result()
    assert len(output.loss_fn_outputs) == 130
    assert values(client.forward(data[128:], "cross_entropy").result()) == values(output)[128:]
    assert set(client.optim_step(ADAM).result().metrics) == {"grad_norm:mean", "lr:mean", "step:max"}


def test_policy_losses_work(stack, service):
    client = lora(service, stack.model)
    tokens = sdk.tokens_of(5, 10)
    old = np.frombuffer(values(client.forward([datum(tokens)], "cross_entropy").result())[0], dtype=np.float32)
    inputs = {
        "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[9]),
        "logprobs": types.TensorData(data=old.tolist(), dtype="float32", shape=[9]),
        "advantages": types.TensorData(data=[1.0] * 9, dtype="float32", shape=[9]),
    }
    policy = types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
    for loss in ("importance_sampling", "ppo"):
        result = client.forward_backward([policy], loss).result()
        assert result.metrics["loss:sum"] == pytest.approx(-9.0, rel=1e-6)


def test_states_are_saved_and_gone_on_from(stack, service):
    client = lora(service, stack.model)
    train(client, 2)
    path = client.save_state("half").result().path
    assert path == f"hpcai://{client.model_id}/training/weights/half"
    expected = train(client, 2, first=2)
    assert client.load_state(path).result().path == path
    assert train(client, 2, first=2) == expected
    plain = f"hpcai://{client.model_id}/training/half"  # as its own service writes it
    client.load_state(plain).result()
    assert train(client, 2, first=2) == expected
    other = service.create_training_client_from_state(path)
    assert other.model_id != client.model_id
    assert train(other, 2, first=2) == expected


def test_it_samples_from_what_it_saved(stack, service):
    client = lora(service, stack.model)
    train(client, 2)
    path = client.save_weights_for_sampler("sampler").result().path
    assert path == f"hpcai://{client.model_id}/sampler/sampler_weights/sampler"
    sampler = client.create_sampling_client(path)
    prompt = sdk.tokens_of(3, 6)
    params = types.SamplingParams(max_tokens=6, seed=5, temperature=1.0, stop=[])
    response = sampler.sample(types.ModelInput.from_ints(prompt), 2, params).result()
    assert [len(s.tokens) for s in response.sequences] == [6, 6]
    whole = prompt + response.sequences[0].tokens
    scored = np.frombuffer(values(client.forward([datum(whole)], "cross_entropy").result())[0], dtype=np.float32)
    assert scored[len(prompt) - 1 :].tobytes() == sdk.floats(response.sequences[0].logprobs)
    logprobs = sampler.compute_logprobs(types.ModelInput.from_ints(whole)).result()
    assert logprobs[0] is None and sdk.floats(logprobs[1:]) == scored.tobytes()
    base = service.create_sampling_client(base_model=stack.model)
    assert len(base.sample(types.ModelInput.from_ints(prompt), 1, params).result().sequences[0].tokens) == 6


def test_saving_again_under_a_name_replaces_what_it_names(stack, service):
    """Its recipes save each step's sampler as the same name, and the SDK has no word to allow it."""
    client = lora(service, stack.model)
    prompt = sdk.tokens_of(4, 6)
    params = types.SamplingParams(max_tokens=6, seed=5, temperature=1.0, stop=[])
    for step in range(3):
        train(client, 1, first=step)
        path = client.save_weights_for_sampler("current").result().path
        sequence = client.create_sampling_client(path).sample(types.ModelInput.from_ints(prompt), 1, params).result().sequences[0]
        scored = client.forward([datum(prompt + sequence.tokens)], "cross_entropy").result()
        assert np.frombuffer(values(scored)[0], dtype=np.float32)[len(prompt) - 1 :].tobytes() == sdk.floats(sequence.logprobs)
        client.save_state("state").result()
    expected = train(client, 1, first=3)
    client.load_state(f"hpcai://{client.model_id}/training/weights/state").result()
    assert train(client, 1, first=3) == expected
    listed = service.create_rest_client().list_checkpoints(client.model_id).result().checkpoints
    assert {c.checkpoint_id for c in listed} == {"weights/state", "sampler_weights/current"} and len(listed) == 2


def test_runs_and_checkpoints_are_listed_and_deleted(stack, service):
    client = lora(service, stack.model)
    client.save_state("a").result()
    client.save_weights_for_sampler("a").result()
    client.save_state("b").result()
    rest = service.create_rest_client()
    run = rest.get_training_run(client.model_id).result()
    assert (run.base_model, run.lora_rank) == (stack.model, 8)
    assert run.training_run_id in [r.training_run_id for r in rest.list_training_runs(limit=100).result().training_runs]
    listed = rest.list_checkpoints(client.model_id).result().checkpoints
    assert {(c.checkpoint_type, c.checkpoint_id) for c in listed} == {
        ("training", "weights/a"),
        ("sampler", "sampler_weights/a"),
        ("training", "weights/b"),
    }
    assert rest.get_training_run_by_checkpoint_path(listed[0].checkpoint_path).result() == run
    rest.delete_checkpoint_by_checkpoint_path(f"hpcai://{client.model_id}/training/weights/a").result()
    rest.delete_checkpoint_by_checkpoint_path(f"hpcai://{client.model_id}/training/b").result()
    [left] = rest.list_checkpoints(client.model_id).result().checkpoints
    assert left.checkpoint_id == "sampler_weights/a"


def test_a_name_of_two_kinds_needs_its_kind(stack, service):
    client = lora(service, stack.model)
    client.save_state("both").result()
    client.save_weights_for_sampler("both").result()
    rest = service.create_rest_client()
    with pytest.raises(hpcai.BadRequestError) as caught:
        rest.delete_checkpoint_by_checkpoint_path(f"hpcai://{client.model_id}/training/both").result()
    assert "sampler_weights/both" in str(caught.value)
    assert len(rest.list_checkpoints(client.model_id).result().checkpoints) == 2


@pytest.mark.parametrize("form", ["sampler/sampler_weights/ar", "sampler/ar"])
def test_an_archive_holds_the_adapter(stack, service, form):
    client = lora(service, stack.model)
    client.save_weights_for_sampler("ar").result()
    rest = service.create_rest_client()
    archive = rest.download_checkpoint_archive(client.model_id, form.partition("/")[2]).result()
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        assert set(tar.getnames()) == {"adapter_config.json", "adapter_model.safetensors", "checkpoint_complete"}
        config = json.load(tar.extractfile("adapter_config.json"))
        weights = tar.extractfile("adapter_model.safetensors").read()
    assert config["r"] == 8
    assert b"base_model.model.model.layers.0" in weights[:100000]


def test_a_model_is_unloaded_and_comes_back_when_it_is_called(stack, service):
    client = lora(service, stack.model)
    train(client, 1)
    assert client.unload_model().result().model_id == client.model_id
    assert len(train(client, 1, first=1)) == 1


def test_a_model_tells_about_itself(stack, service):
    client = lora(service, stack.model)
    info = client.get_info()
    assert info.model_data.model_name == stack.model and info.lora_rank == 8
    assert [m.model_name for m in service.get_server_capabilities().supported_models] == [stack.model]
    assert len(train(client, 1)) == 1  # get_info used a number of the client's, and none of ours


def test_what_is_wrong_is_said(stack, service):
    client = lora(service, stack.model)
    with pytest.raises(ValueError, match="70000"):
        client.forward_backward([datum([5, 6, 70000, 8])], "cross_entropy").result()
    assert len(train(client, 1)) == 1
    with pytest.raises(ValueError, match="Qwen/none"):
        lora(service, "Qwen/none")


def test_a_custom_loss_works(stack, customer):
    path = os.pathsep.join([str(CACHE / "torch"), str(CACHE / "clients" / "hpcai"), str(HERE.parent / "support")])
    done = subprocess.run(
        [sys.executable, str(HERE / "hpcai_custom_loss.py"), stack.base_url, customer[1], stack.model],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["custom"] == seen["builtin"] != seen["before"]


# ------------------------------------------------------------ its way of repeating


def poll(http, request):
    answer = {"type": "try_again"}
    while answer.get("type") == "try_again":
        answer = http.post("/api/v1/retrieve_future", json={"request_id": request})
        assert answer.status_code == 200, answer.text  # never 408: it would block the client's event loop
        answer = answer.json()
    return answer


def test_a_repeated_call_is_the_same_job_even_after_a_restart(stack, http):
    def post(route, body, key):
        answer = http.post(f"/api/v1/{route}", json=body, headers={"X-Idempotency-Key": key})
        assert answer.status_code == 200, answer.text
        return answer.json()["request_id"]

    config = {"rank": 4, "seed": 1, "train_unembed": False, "train_mlp": False, "train_attn": True}
    model = {"base_model": stack.model, "lora_config": config, "type": "create_model"}
    created = post("create_model", model, "m-1")
    assert post("create_model", model, "m-1") == created != post("create_model", model, "m-2")
    run = poll(http, created)["model_id"]
    step = {"adam_params": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12}, "model_id": run}
    first = post("optim_step", step, "c:0:0")
    assert post("optim_step", step, "c:0:0") == first
    stack.kill("gateway")
    stack.tinworks("up")
    assert post("optim_step", step, "c:0:0") == first
    second = post("optim_step", step, "c:0:1")
    assert second != first
    assert [poll(http, id)["metrics"]["step:max"] for id in (first, second)] == [1, 2]
    jobs = stack.billed([run], 3)
    assert [(row[0], row[6]) for row in jobs] == [("create", 0), ("optim_step", 1), ("optim_step", 2)]


def test_calls_without_a_key_are_each_a_call(stack, http):
    config = {"rank": 4, "train_unembed": False, "train_mlp": False, "train_attn": True}
    model = {"base_model": stack.model, "lora_config": config}
    run = poll(http, http.post("/api/v1/create_model", json=model).json()["request_id"])["model_id"]
    step = {"adam_params": {"learning_rate": 1e-3}, "model_id": run}
    ids = [http.post("/api/v1/optim_step", json=step).json()["request_id"] for _ in range(3)]
    assert [poll(http, id)["metrics"]["step:max"] for id in ids] == [1, 2, 3]


def test_a_number_is_not_taken_from_a_model_that_has_none(stack, http):
    config = {"rank": 4, "train_unembed": False, "train_mlp": False, "train_attn": True}
    model = {"base_model": stack.model, "lora_config": config}
    run = poll(http, http.post("/api/v1/create_model", json=model).json()["request_id"])["model_id"]
    answer = http.post("/api/v1/optim_step", json={"adam_params": {}, "model_id": run, "seq_id": 1})
    assert answer.status_code == 400 and "seq_id" in answer.json()["detail"]


def test_a_repeated_sample_is_the_same_sample(stack, http):
    body = {
        "num_samples": 1,
        "prompt": {"chunks": [{"tokens": [5, 6, 7], "type": "encoded_text"}]},
        "sampling_params": {"max_tokens": 4, "seed": None, "stop": None, "temperature": 1, "top_k": -1, "top_p": 1},
        "base_model": stack.model,
        "prompt_logprobs": False,
    }

    def post(key):
        answer = http.post("/api/v1/asample", json=body, headers={"X-Idempotency-Key": key})
        assert answer.status_code == 200, answer.text
        return answer.json()["request_id"]

    first, other = post("c:unordered:1"), post("c:unordered:2")
    assert post("c:unordered:1") == first != other
    assert len(poll(http, first)["sequences"][0]["tokens"]) > 0
    direct = http.post("/api/v1/sample", json=body, headers={"X-Idempotency-Key": "c:unordered:1"})
    assert direct.status_code == 200 and direct.json() == poll(http, first)
    wrong = http.post("/api/v1/sample", json={**body, "prompt": {"chunks": [{"tokens": [70000], "type": "encoded_text"}]}})
    assert wrong.status_code == 400 and "70000" in wrong.text


def test_the_older_word_for_a_runs_checkpoints(stack, service, http):
    client = lora(service, stack.model)
    client.save_state("x").result()
    answer = http.get(f"/api/v1/models/{client.model_id}/checkpoints").json()
    assert [c["checkpoint_id"] for c in answer["checkpoints"]] == ["weights/x"]
