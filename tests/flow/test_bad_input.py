"""What goes wrong on the customer's side is answered clearly and disturbs nothing."""

import pathlib

import httpx
import pytest
import tinker
from sdk import batch_of, datum, lora, sampling, text, tokens_of, train
from stack import OURS
from waiting import wait_for
from tinker import types

UNKNOWN = "Qwen/Qwen3-235B-A22B"


def user_error(send):
    """The failed future's message; its category must be the user's."""
    with pytest.raises(tinker.RequestFailedError) as caught:
        send().result()
    assert caught.value.category.name.lower() == "user", caught.value
    return caught.value.message


def refused(send):
    """The same, or, where no number of a run is at stake, a 400 that says why."""
    try:
        return user_error(send)
    except tinker.BadRequestError as refusal:
        return str(refusal)


@pytest.fixture
def http(stack, first_account):
    with httpx.Client(base_url=stack.base_url, headers={"X-API-Key": first_account[1]}, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def all_alive_after(stack):
    """No process ended, whatever came in."""
    before = [stack.pid(name) for name in OURS]
    yield
    assert all(pathlib.Path(f"/proc/{pid}").exists() for pid in before)


# ------------------------------------------------------------ who asks


@pytest.mark.parametrize("headers", [{"X-API-Key": "tml-wrong-key"}, {"X-API-Key": ""}, {}])
def test_a_wrong_key_is_401(stack, headers):
    answer = httpx.post(f"{stack.base_url}/api/v1/create_session", headers=headers, json={}, timeout=60)
    assert answer.status_code == 401
    assert answer.json()["detail"]


def test_the_sdk_reports_a_wrong_key_as_such(stack):
    service = stack.service("tml-wrong-key")
    with pytest.raises(tinker.AuthenticationError):
        lora(service, stack.model)


def test_a_revoked_key_is_401(stack):
    account, key = stack.account("revoked")
    with stack.another_gateway(key_good_ms=500) as url:

        def status():
            return httpx.get(f"{url}/api/v1/get_server_capabilities", headers={"X-API-Key": key}, timeout=60).status_code

        assert status() == 200
        stack.tinworks("key", "revoke", key.split("-")[1])
        wait_for(lambda: status() == 401, "the revoked key to be refused")


def test_another_accounts_ids_are_404(stack, service):
    client = lora(service, stack.model)
    path = client.save_state("mine").result().path
    for_sampling = client.save_weights_for_sampler("mine").result().path
    sampler = service.create_sampling_client(base_model=stack.model).result()
    sampler_id = stack.sql("select id from samplers order by created_at desc limit 1")[0][0]
    run, (_, key) = client.model_id, stack.account("stranger")
    with httpx.Client(base_url=stack.base_url, headers={"X-API-Key": key}, timeout=60) as stranger:
        session = stranger.post(
            "/api/v1/create_session", json={"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"}
        ).json()["session_id"]

        def status(route, body):
            return stranger.post(f"/api/v1/{route}", json=body).status_code

        assert status("get_info", {"model_id": run}) == 404
        assert status("optim_step", {"model_id": run, "seq_id": 50, "adam_params": {"learning_rate": 1}}) == 404
        assert status("save_weights", {"model_id": run, "path": "theft", "seq_id": 50}) == 404
        assert status("weights_info", {"tinker_path": path}) == 404
        assert status(
            "create_sampling_session",
            {"session_id": session, "sampling_session_seq_id": 0, "model_path": for_sampling},
        ) == 404
        assert status("load_weights", {"session_id": session, "model_seq_id": 0, "path": path, "optimizer": True}) == 404
        assert status(
            "asample",
            {
                "sampling_session_id": sampler_id,
                "seq_id": 99,
                "num_samples": 1,
                "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5]}]},
                "sampling_params": {"max_tokens": 1},
            },
        ) == 404
        assert stranger.get(f"/api/v1/training_runs/{run}").status_code == 404
        assert stranger.get(f"/api/v1/samplers/{sampler_id}").status_code == 404
        mine = stack.sql("select job_id from job_outcomes where parent_id = %s limit 1", run)
        request = mine[0][0] if mine else f"{run}:create:0:0123456789abcdef"
        assert status("retrieve_future", {"request_id": request}) == 404
        assert status("session_heartbeat", {"session_id": run.split(":")[0]}) == 404
    assert len(train(client, 1)) == 1  # the owner is not disturbed
    assert sampler.compute_logprobs(text([5, 6])).result()[0] is None


# ------------------------------------------------------------ what is asked


def test_an_unknown_base_model_is_named_in_the_error(stack, service):
    with pytest.raises((tinker.RequestFailedError, tinker.APIStatusError)) as caught:
        lora(service, UNKNOWN)
    assert UNKNOWN in str(caught.value)
    if isinstance(caught.value, tinker.RequestFailedError):
        assert caught.value.category.name.lower() == "user"


WRONG_DATUMS = {
    "a token id outside the vocabulary": (lambda: datum([5, 6, 70000, 8]), "70000"),
    "a negative token id": (lambda: datum([5, -1, 7, 8]), "-1"),
    "a target outside the vocabulary": (
        lambda: types.Datum(
            model_input=text([5, 6]), loss_fn_inputs={"target_tokens": [6, 4096], "weights": [1.0, 1.0]}
        ),
        "4096",
    ),
    "weights of another length": (
        lambda: types.Datum(
            model_input=text([5, 6, 7]), loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [1.0, 1.0]}
        ),
        "weights",
    ),
    "targets of another length": (
        lambda: types.Datum(
            model_input=text([5, 6, 7]), loss_fn_inputs={"target_tokens": [6, 7], "weights": [1.0, 1.0, 1.0]}
        ),
        "target_tokens",
    ),
    "no weights": (
        lambda: types.Datum(model_input=text([5, 6]), loss_fn_inputs={"target_tokens": [6, 7]}),
        "weights",
    ),
    "a weight that is no number": (lambda: datum([5, 6, 7], [1.0, float("nan")]), "weights"),
    "a sequence above the context": (lambda: datum(tokens_of(1, 20000)), "context"),
}


@pytest.mark.parametrize("what", WRONG_DATUMS)
def test_a_wrong_datum_fails_its_future_and_the_run_goes_on(stack, service, what):
    make, named = WRONG_DATUMS[what]
    bad, good = lora(service, stack.model), lora(service, stack.model)
    expected = train(good, 2)
    message = user_error(lambda: bad.forward_backward([datum(tokens_of(1, 9)), make()], "cross_entropy"))
    assert named in message
    # Nothing of the failed call is left: the next steps are those of a run that never made it.
    assert train(bad, 2) == expected


def test_an_unknown_loss_names_those_that_there_are(stack, service):
    client = lora(service, stack.model)
    message = user_error(lambda: client.forward_backward(batch_of(0), "stable_reinforce"))
    assert "importance_sampling" in message and "ppo" in message
    assert len(train(client, 1)) == 1


def test_policy_losses_want_their_arrays(stack, service):
    client = lora(service, stack.model)
    assert "logprobs" in user_error(lambda: client.forward_backward(batch_of(0), "importance_sampling"))
    assert len(train(client, 1)) == 1


def test_bad_optimizer_settings_fail_the_step_only(stack, service):
    client, other = lora(service, stack.model), lora(service, stack.model)
    user_error(lambda: client.optim_step(types.AdamParams(learning_rate=-1.0)))
    user_error(lambda: client.optim_step(types.AdamParams(beta1=1.5)))
    assert train(client, 2) == train(other, 2)


@pytest.mark.parametrize("rank", [0, -3, 5000])
def test_a_rank_out_of_range_is_the_users_error(stack, service, rank):
    with pytest.raises((tinker.RequestFailedError, tinker.APIStatusError)) as caught:
        lora(service, stack.model, rank=rank)
    assert "rank" in str(caught.value)


@pytest.mark.parametrize(
    "prompt, params, named",
    [
        ([5000], {}, "5000"),
        ([], {}, "prompt"),
        (tokens_of(1, 20000), {}, "context"),
        ([5], {"temperature": -1.0}, "temperature"),
        ([5], {"top_p": 1.5}, "top_p"),
        ([5], {"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_wrong_sample_fails_alone(stack, service, prompt, params, named):
    sampler = service.create_sampling_client(base_model=stack.model).result()
    right = sampler.sample(text([5, 6]), 1, sampling())
    message = refused(lambda: sampler.sample(text(prompt), 1, sampling(**params)))
    assert named in message
    assert len(right.result().sequences[0].tokens) > 0


# ------------------------------------------------------------ bytes that are no request


@pytest.mark.parametrize(
    "route, kind, body",
    [
        ("forward_backward", "application/x-protobuf", b"\xff\xff\xff\xff this is no message"),
        ("forward_backward", "application/x-protobuf", b"\x1a\xff\xff\xff\x7f"),  # a length far beyond the body
        ("forward_backward", "application/json", b'{"forward_backward_input": '),
        ("optim_step", "application/json", b"not json"),
        ("optim_step", "application/json", b"[1, 2, 3]"),
        ("create_session", "application/json", b"\x00\x01\x02"),
        ("asample", "application/json", b'{"prompt": {"chunks": [' * 200),
        ("retrieve_future", "application/json", b'{"request_id": 7}'),
        ("create_model", "application/json", b"{}"),
    ],
)
def test_malformed_bytes_are_400_with_a_reason(http, route, kind, body):
    answer = http.post(f"/api/v1/{route}", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert int(answer.headers["content-length"]) > 0
    assert len(answer.json()["detail"]) > 5


def test_an_unknown_path_is_404_and_a_wrong_method_405_or_404(http):
    assert http.post("/api/v1/no_such_thing", json={}).status_code == 404
    assert http.get("/etc/passwd").status_code == 404
    assert http.get("/api/v1/optim_step").status_code in (404, 405)


def test_an_unknown_request_id_is_404(http):
    assert http.post("/api/v1/retrieve_future", json={"request_id": "s:train:0:optim_step:1:00"}).status_code == 404
