"""Every address that names a thing by its id answers a stranger as if there were no such thing."""

import re

import httpx
import pytest
from compatibility import served
from sdk import end, lora, train

PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}


# What names nothing of anybody's by an id.
FREE = {
    ("GET", "healthz"),
    ("GET", "get_server_capabilities"),
    ("POST", "client/config"),
    ("POST", "client/dynamic_config"),
    ("POST", "telemetry"),
    ("POST", "auth/token"),
    ("GET", "auth/apikey/me"),
    ("DELETE", "auth/apikey/me"),
    ("POST", "create_session"),
    ("GET", "sessions"),
    ("GET", "training_runs"),
    ("GET", "checkpoints"),
    ("GET", "billing/usage/events"),
    ("GET", "billing/usage/checkpoints/current"),
    ("GET", "audit"),
}

LISTS = ["sessions", "training_runs", "checkpoints", "billing/usage/checkpoints/current", "audit"]


@pytest.fixture(scope="module")
def things(stack):
    """One of everything, of an account of its own."""
    _, key = stack.account("ownership")
    service = stack.service(key)
    client = lora(service, stack.model)
    train(client, 1)
    session = client.model_id.split(":")[0]
    with httpx.Client(base_url=f"{stack.base_url}/api/v1", headers={"X-API-Key": key}, timeout=60) as http:
        sampler = http.post(
            "/create_sampling_session",
            json={"session_id": session, "sampling_session_seq_id": 50, "base_model": stack.model},
        ).json()["sampling_session_id"]
        sample = {"sampling_session_id": sampler, "seq_id": 0, "prompt": PROMPT, "sampling_params": {"max_tokens": 1}}
        request = http.post("/asample", json=sample).json()["request_id"]
        step = http.post("/optim_step", json={"model_id": client.model_id, "seq_id": 3, "adam_params": {}}).json()
    it = {
        "key": key,
        "run": client.model_id,
        "session": session,
        "sampler": sampler,
        "request": request,
        "step": step["request_id"],
    }
    end(service)
    owner = stack.service(key)
    it["service"] = owner
    fresh = lora(owner, stack.model)
    it["path"] = fresh.save_state("mine").result().path
    it["sampler_path"] = fresh.save_weights_for_sampler("mine").result().path
    it["saved_run"] = fresh.model_id
    yield it
    end(owner)


@pytest.fixture(scope="module")
def stranger(stack):
    _, key = stack.account("ownership-stranger")
    with httpx.Client(base_url=f"{stack.base_url}/api/v1", headers={"X-API-Key": key}, timeout=60) as http:
        http.session = http.post("/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()["session_id"]
        yield http


def body_of(route, t, mine):
    """A request that would be right if the thing were the caller's; `mine` is the caller's own session."""
    target = {"type": "sampling_session", "sampling_session_id": t["sampler"], "cloned_sampler_id": 0}
    step = {"model_id": t["run"], "seq_id": 9}
    pass_input = {
        "data": [
            {
                "model_input": PROMPT,
                "loss_fn_inputs": {
                    "target_tokens": {"data": [6, 7], "dtype": "int64", "shape": [2]},
                    "weights": {"data": [1.0, 1.0], "dtype": "float32", "shape": [2]},
                },
            }
        ],
        "loss_fn": "cross_entropy",
    }
    config = {"rank": 4, "train_attn": True, "train_mlp": True, "train_unembed": True}
    sample = {"prompt": PROMPT, "sampling_params": {"max_tokens": 1}}
    return {
        "retrieve_future": {"request_id": t["request"]},
        "cancel_future": {"request_id": t["request"]},
        "retrieve_futures": {"target": target, "prev_cursor": 0, "timeout": 0},
        "asample": {**sample, "sampling_session_id": t["sampler"], "seq_id": 7},
        "sample": {**sample, "model_path": t["sampler_path"]},
        "forward_backward": {**step, "forward_backward_input": pass_input},
        "forward": {**step, "forward_input": pass_input},
        "optim_step": {**step, "adam_params": {}},
        "session_heartbeat": {"session_id": t["session"]},
        "sessions/*/finish": {"reason": {"type": "success"}, "detail": None},
        "sessions/*/project": {"project_id": "theft"},
        "create_model": {"session_id": t["session"], "model_seq_id": 70, "base_model": "x", "lora_config": config},
        "get_info": {"model_id": t["run"]},
        "load_weights": {"session_id": mine, "model_seq_id": 0, "path": t["path"], "optimizer": True},
        "unload_model": {"model_id": t["run"]},
        "weights_info": {"tinker_path": t["path"]},
        "copy_weights": {"source_path": t["path"], "destination_project_id": "theft"},
        "save_weights": {**step, "path": "theft"},
        "save_weights_for_sampler": {**step, "path": "theft", "kind": "snapshot"},
        "save_weights_external": {**step, "path": "theft"},
        "create_sampling_session": {"session_id": mine, "sampling_session_seq_id": 0, "model_path": t["sampler_path"]},
        "join_sampling_session": {"sampling_session_id": t["sampler"]},
        "training_runs/*/checkpoints/*/*/ttl": {"ttl_seconds": 3600},
        "sessions/search": {"session_id": t["session"], "user_metadata": {}, "owner": {"type": "accessible"}},
    }.get(route, {})


def address_of(route, t):
    parts = {
        "sessions/*": [t["session"]],
        "samplers/*": [t["sampler"]],
        "training_runs/*": [t["saved_run"], "weights", "mine"],
        "models/*": [t["saved_run"]],
        "files/*": [t["saved_run"], "1", "1", "adapter_config.json"],
    }
    if route.count("*") == 2 and route.startswith("training_runs/*/checkpoints/*"):
        values = iter([t["saved_run"], "mine"])
    else:
        values = iter(next((v for k, v in parts.items() if route.startswith(k)), []))
    return "/" + re.sub(r"\*", lambda _: next(values), route)


@pytest.mark.parametrize("method, route", [r for r in served() if r not in FREE], ids=lambda v: v)
def test_a_strangers_call_finds_nothing(stack, things, stranger, method, route):
    body = body_of(route, things, stranger.session)
    address = address_of(route, things)
    answer = stranger.request(method, address, json=body if method in ("POST", "PUT") else None)
    if route == "sessions/search":
        assert answer.json()["sessions"] == []
        return
    if route.startswith("files/"):  # whatever it names: an address without its signature was never given out
        assert answer.status_code == 403, answer.text
        assert answer.json()["detail"] == "this is not an address that was given out here"
        return
    assert answer.status_code == 404, answer.text
    # The same words as for what never was.
    assert "not found" in answer.json()["detail"]


@pytest.mark.parametrize("route", LISTS)
def test_a_strangers_lists_hold_nothing_of_ours(things, stranger, route):
    answer = stranger.get(f"/{route}", params={"access_scope": "accessible", "limit": 1000})
    assert answer.status_code == 200
    assert things["session"] not in answer.text and things["saved_run"] not in answer.text


def test_a_training_request_of_ours_is_a_strangers_404(things, stranger):
    assert stranger.post("/retrieve_future", json={"request_id": things["step"]}).status_code == 404


def test_a_session_of_ours_holds_no_strangers_run(things, stranger):
    body = {"session_id": things["session"], "sampling_session_seq_id": 1, "base_model": "tinworks/tiny"}
    assert stranger.post("/create_sampling_session", json=body).status_code == 404


@pytest.fixture(scope="module")
def another_door(stack):
    """Wrong keys are counted by address, and this test's are not to be held against the next one."""
    with stack.another_gateway() as url:
        yield url


@pytest.mark.parametrize("method, route", [r for r in served() if r != ("GET", "healthz")], ids=lambda v: v)
def test_without_a_key_nothing_is_served(another_door, things, method, route):
    """Ten wrong tries a minute are allowed, so most answers are 429; none is an answer."""
    address = f"{another_door}/api/v1{address_of(route, things)}"
    answer = httpx.request(method, address, json={} if method in ("POST", "PUT") else None, timeout=60)
    expected = (403,) if route.startswith("files/") else (401, 429)
    assert answer.status_code in expected


def test_nothing_happened_to_what_is_ours(stack, things):
    with httpx.Client(base_url=f"{stack.base_url}/api/v1", headers={"X-API-Key": things["key"]}, timeout=60) as http:
        listed = http.get(f"/training_runs/{things['saved_run']}/checkpoints").json()["checkpoints"]
    assert {(c["checkpoint_id"], c["public"], c["expires_at"]) for c in listed} == {
        ("weights/mine", False, None),
        ("sampler_weights/mine", False, None),
    }
    assert stack.sql("select project_id, finished_at is null from sessions where id = %s", things["saved_run"].split(":")[0]) == [(None, True)]
    assert stack.sql("select unloaded_at from runs where id = %s", things["run"]) == [(None,)]
