"""Who may do what, and how much of it: scopes, revoked keys, disabled accounts, guessed keys, and limits, as both SDKs meet them."""

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.client
import json
import pathlib
import re
import subprocess
import sys
import time

import httpx
import pytest
import sdk
import tinker
from compatibility import served
from sdk import end  # noqa: E402
from waiting import wait_for

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / ".tinworks" / "clients" / "hpcai"))  # made by ./tinworks test

import hpcai  # noqa: E402
import test_hpcai as hp  # noqa: E402

SCOPES = ("train", "sample", "read", "finance")
STEP = {"adam_params": {"learning_rate": 1e-3}}


@contextlib.contextmanager
def by_hand(url, key, **headers):
    with httpx.Client(base_url=f"{url}/api/v1", headers={"X-API-Key": key, **headers}, timeout=60) as client:
        yield client


# ------------------------------------------------------------ scopes

# What suffices for each address; docs/protocol.md says the same in words.
ANY = {
    ("POST", "telemetry"),
    ("POST", "client/config"),
    ("POST", "client/dynamic_config"),
    ("GET", "get_server_capabilities"),
    ("GET", "healthz"),
    ("GET", "files/*/*/*/*"),
    ("POST", "auth/token"),
    ("GET", "auth/apikey/me"),
    ("DELETE", "auth/apikey/me"),
}
NEEDS = {
    "retrieve_future": "train sample",
    "retrieve_futures": "train sample",
    "cancel_future": "sample",
    "asample": "sample",
    "sample": "sample",
    "forward_backward": "train",
    "forward": "train",
    "optim_step": "train",
    "session_heartbeat": "train sample",
    "create_session": "train sample",
    "sessions": "read",
    "sessions/search": "read",
    "sessions/*": "read",
    "sessions/*/finish": "train sample",
    "sessions/*/project": "train sample",
    "sessions/*/trace_export": "read",
    "create_model": "train",
    "get_info": "train sample read",
    "load_weights": "train",
    "unload_model": "train",
    "weights_info": "train sample read",
    "copy_weights": "train",
    "save_weights": "train",
    "save_weights_for_sampler": "train",
    "save_weights_external": "train",
    "create_sampling_session": "sample",
    "join_sampling_session": "sample",
    "samplers/*": "sample read",
    "training_runs": "read",
    "training_runs/*": "train read",
    "training_runs/*/checkpoints": "read",
    "models/*/checkpoints": "read",
    "checkpoints": "read",
    "training_runs/*/checkpoints/*/*": "train",
    "training_runs/*/checkpoints/*": "train",
    "training_runs/*/checkpoints/*/*/publish": "train",
    "training_runs/*/checkpoints/*/*/ttl": "train",
    "training_runs/*/checkpoints/*/*/external_weights_urls": "read",
    "training_runs/*/checkpoints/*/*/archive": "read",
    "training_runs/*/checkpoints/*/archive": "read",
    "billing/usage/events": "finance",
    "billing/usage/checkpoints/current": "finance",
    "audit": "read",
}


@pytest.fixture(scope="module")
def keys(stack):
    """One key a scope, of one account."""
    account, _ = stack.account("scopes")
    return {scope: stack.key(account, scope) for scope in (*SCOPES, "admin")}


@pytest.mark.parametrize("method, route", [r for r in served() if r not in ANY], ids=lambda v: v)
def test_a_call_needs_its_scope(stack, keys, method, route):
    needs = NEEDS[route].split()
    address = "/" + route.replace("*", "nothing")
    for scope, key in keys.items():
        with by_hand(stack.base_url, key) as http:
            answer = http.request(method, address, json={} if method in ("POST", "PUT") else None)
        if scope in needs or scope == "admin":
            assert answer.status_code != 403, (scope, answer.text)
        else:
            assert answer.status_code == 403, (scope, answer.text)
            assert f"with the scope {' or '.join(needs)}, this key has {scope} only" in answer.json()["detail"]


@pytest.mark.parametrize("scope", SCOPES)
def test_what_every_client_asks_first_needs_no_scope(stack, keys, scope):
    with by_hand(stack.base_url, keys[scope]) as http:
        for address in ("/client/config", "/client/dynamic_config", "/telemetry"):
            assert http.post(address, json={}).status_code == 200
        assert http.get("/get_server_capabilities").status_code == 200
        assert http.get("/auth/apikey/me").status_code == 200


def test_tinker_says_which_scope_is_missing(stack, keys):
    service = stack.service(keys["sample"])
    with pytest.raises(tinker.PermissionDeniedError, match="with the scope train, this key has sample only"):
        sdk.lora(service, stack.model)
    sampler = service.create_sampling_client(base_model=stack.model).result()
    assert sampler.sample(sdk.text([5, 6, 7]), 1, sdk.sampling(max_tokens=2)).result().sequences
    hour = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
    with pytest.raises(tinker.PermissionDeniedError, match="with the scope finance"):
        tinker.AdminClient(base_url=stack.base_url, api_key=keys["sample"]).get_billing_usage(hour, hour + datetime.timedelta(hours=1)).result()
    end(service)
    reader = stack.service(keys["read"])
    assert tinker.RestClient(base_url=stack.base_url, api_key=keys["read"]).list_training_runs().result().training_runs == []
    with pytest.raises(tinker.PermissionDeniedError, match="with the scope train or sample, this key has read only"):
        sdk.lora(reader, stack.model)


def test_hpcai_says_which_scope_is_missing(stack, keys):
    service = hpcai.ServiceClient(base_url=stack.base_url, api_key=keys["sample"])
    with pytest.raises(hpcai.PermissionDeniedError, match="with the scope train, this key has sample only"):
        hp.lora(service, stack.model)
    sampler = service.create_sampling_client(base_model=stack.model)
    params = hp.types.SamplingParams(max_tokens=2, seed=5, temperature=1.0, stop=[])
    assert sampler.sample(hp.types.ModelInput.from_ints([5, 6, 7]), 1, params).result().sequences
    reader = hpcai.ServiceClient(base_url=stack.base_url, api_key=keys["read"])
    assert reader.create_rest_client().list_training_runs(limit=5).result().training_runs == []
    with pytest.raises(hpcai.PermissionDeniedError, match="this key has read only"):
        hp.lora(reader, stack.model)


def test_a_token_has_its_keys_scopes(stack, keys):
    with stack.another_gateway(tokens=1) as url, by_hand(url, keys["sample"]) as http:
        http.headers["X-API-Key"] = http.post("/auth/token", json={}).json()["jwt"]
        assert http.post("/create_session", json={}).status_code == 200
        answer = http.post("/create_model", json={})
        assert answer.status_code == 403 and "with the scope train, this key has sample only" in answer.json()["detail"]


def test_keys_are_listed_with_their_scopes_and_wrong_scopes_are_named(stack, keys):
    listed = stack.tinworks("key", "list").stdout
    assert re.search(rf"{keys['finance'].split('-')[1]}\s.*\sfinance\s", listed)
    for key in keys.values():
        assert key not in listed
    refused = stack.tinworks("key", "create", "--account", "scopes", "--scopes", "train,owner", check=False)
    assert refused.returncode != 0 and '"owner", expected some of train, sample' in refused.stderr


def test_another_accounts_key_opens_its_checkpoints_only_when_it_may_read(stack, service):
    """The weights access token is a key too."""
    client = sdk.lora(service, stack.model)
    path = client.save_state("lent").result().path
    [(account,)] = stack.sql("select account_id from runs where id = %s", client.model_id)
    _, borrower = stack.account("borrower")
    with by_hand(stack.base_url, borrower) as http:
        copy = {"source_path": path, "destination_project_id": "p"}

        def status(scope):
            token = {"X-Tinker-Weights-Access-Token": stack.key(account, scope)}
            return http.post("/copy_weights", json=copy, headers=token).status_code

        assert [status(scope) for scope in ("finance", "sample", "read")] == [400, 400, 200]


# ------------------------------------------------------------ revoked, disabled


@pytest.fixture
def attentive(stack):
    """A gateway that soon notices a revoked key and a disabled account, and service(key) of it, whose session ends before it stops."""
    with stack.another_gateway(key_good_ms=500) as url, contextlib.ExitStack() as sessions:

        def service(key):
            it = tinker.ServiceClient(base_url=url, api_key=key)
            sessions.callback(end, it)
            return it

        yield url, service


def test_a_revoked_key_and_a_disabled_account_end_soon(stack, attentive):
    """A disabled account may read what it has, finished futures among it, and ask for nothing new."""
    url, service = attentive
    _, revoked = stack.account("revoked-soon")
    account, key = stack.account("disabled-soon")
    client = sdk.lora(service(key), stack.model)
    path = client.save_state("kept").result().path
    run = client.model_id
    with by_hand(url, revoked) as gone, by_hand(url, key) as http:
        request = http.post("/optim_step", json={"model_id": run, "seq_id": 2, **STEP}).json()["request_id"]
        assert gone.get("/sessions").status_code == 200
        stack.tinworks("key", "revoke", revoked.split("-")[1])
        stack.tinworks("account", "disable", account)

        def refused():
            return http.put("/sessions/none/project", json={"project_id": "p"}).status_code == 403

        wait_for(lambda: gone.get("/sessions").status_code == 401, "the revoked key's end")
        wait_for(refused, "the account's end")
        answer = http.post("/optim_step", json={"model_id": run, "seq_id": 3, **STEP})
        assert answer.status_code == 403 and "this account is disabled" in answer.json()["detail"]
        with pytest.raises(tinker.PermissionDeniedError, match="this account is disabled"):
            sdk.train(client, 1)
        with pytest.raises(hpcai.PermissionDeniedError, match="this account is disabled"):
            hp.lora(hpcai.ServiceClient(base_url=url, api_key=key), stack.model)

        wait_for(lambda: "metrics" in http.post("/retrieve_future", json={"request_id": request}).json(), "the step's result")
        assert "kept" in http.get(f"/training_runs/{run}/checkpoints").text
        assert http.get(f"/training_runs/{run}/checkpoints/weights/kept/archive").status_code == 200
        assert http.post("/weights_info", json={"tinker_path": path}).status_code == 200
        stack.tinworks("account", "enable", account)
        wait_for(lambda: not refused(), "the account's return")
        step = http.post("/optim_step", json={"model_id": run, "seq_id": 3, **STEP}).json()
        wait_for(lambda: "metrics" in http.post("/retrieve_future", json=step).json(), "the next step")


def test_a_key_is_asked_for_again_after_half_a_minute_unless_told_otherwise(stack):
    """What docs/security.md promises of a revoked key."""
    gateway = stack.program("gateway")
    shown = subprocess.run([gateway, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(r"^  --key-good-ms .*\n.*; default 30000$", shown, re.M)
    refused = subprocess.run([gateway, "--key-good-ms=300001"], capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "key_good_ms is 300001, expected 0 to 300000" in refused.stderr


# ------------------------------------------------------------ guessed keys (H14)


@pytest.fixture(scope="module")
def door(stack):
    """What is held against an address here is not held against the other tests."""
    with stack.another_gateway() as url:
        yield url


def statuses(door, guesses):
    """Of a look at one's sessions with each (address, key)."""
    seen, connections = [], {}
    host = door.removeprefix("http://")
    for address, key in guesses:
        connection = connections.get(address)
        if connection is None:
            connection = connections[address] = http.client.HTTPConnection(host, timeout=60, source_address=(address, 0))
        connection.request("GET", "/api/v1/sessions", headers={"X-API-Key": key})
        answer = connection.getresponse()
        seen.append((answer.status, answer.headers.get("Retry-After")))
        answer.read()
    for connection in connections.values():
        connection.close()
    return seen


def windows(began):
    """Minutes begun since, each of which has ten tries."""
    return int((time.monotonic() - began) // 60) + 2


def test_guesses_from_one_address_are_turned_away_untried(stack, door):
    account, _ = stack.account("guessed-1")
    used, fresh = stack.key(account), stack.key(account)
    me = "127.0.0.7"
    assert statuses(door, [(me, used)]) == [(200, None)]
    began = time.monotonic()
    seen = statuses(door, [(me, f"tml-none{i}-{i:052d}") for i in range(10_000)])
    assert {status for status, _ in seen} == {401, 429}
    assert 10 <= sum(status == 401 for status, _ in seen) <= 10 * windows(began)
    assert all(1 <= int(after) <= 60 for status, after in seen if status == 429)
    # A key in use goes on; one that was not seen yet cannot be told from a guess, until the minute is over.
    [(status, _), (late, after)] = statuses(door, [(me, used), (me, fresh)])
    assert status == 200
    assert late == 429 and int(after) <= 60 or windows(began) > 2
    assert statuses(door, [("127.0.0.8", fresh)]) == [(200, None)]


def test_guesses_for_one_key_id_are_turned_away_from_wherever_they_come(stack, door):
    account, _ = stack.account("guessed-2")
    used, fresh = stack.key(account), stack.key(account)
    began = time.monotonic()
    for key in (used, fresh):
        name = key.rsplit("-", 1)[0]
        if key == used:
            assert statuses(door, [("127.0.1.1", key)]) == [(200, None)]
        guesses = [(f"127.0.{2 + i % 5}.{1 + i % 97}", f"{name}-{i:052d}") for i in range(5_000)]
        seen = statuses(door, guesses)
        assert {status for status, _ in seen} == {401, 429}
        assert sum(status == 401 for status, _ in seen) <= 10 * windows(began)
    (status, _), (late, after) = statuses(door, [("127.0.1.1", used), ("127.0.1.2", fresh)])
    assert status == 200
    assert late == 429 and int(after) <= 60 or windows(began) > 2


def test_keys_are_not_guessed_by_way_of_the_weights_access_token_either(stack, door, first_account):
    account, key = stack.account("guessed-3")
    other = stack.key(stack.account("guessed-4")[0])
    name = other.rsplit("-", 1)[0]
    with by_hand(door, key) as http:
        seen = []
        for i in range(40):
            body = {"source_path": "tinker://s:train:0/weights/x", "destination_project_id": "p"}
            token = {"X-Tinker-Weights-Access-Token": f"{name}-{i:052d}"}
            seen.append(http.post("/copy_weights", json=body, headers=token).status_code)
        assert seen == [400] * 10 + [503] * 30


def token_of(stack, account, key, expires_s):
    """Signed as the gateway signs (gateway/api/token.h), with an end of our choice."""
    secret = bytes.fromhex(pathlib.Path(stack.settings["TINWORKS_SECRET_FILE"]).read_text().strip())
    claims = {"sub": account, "org_id": account, "email": "", "kid": key.split("-")[1], "iat": 1000, "exp": expires_s}
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    text = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    mac = hmac.digest(hmac.digest(secret, b"tinworks token", hashlib.sha256), text.encode(), hashlib.sha256)
    return f"{text}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def test_an_expired_weights_access_token_is_no_guess_and_a_forged_one_is(stack):
    account, key = stack.account("expired")
    fresh, revoked = stack.key(account), stack.key(account)
    stack.tinworks("key", "revoke", revoked.split("-")[1])
    now = int(time.time())
    expired, good = token_of(stack, account, key, now - 1), token_of(stack, account, key, now + 3600)
    ended = token_of(stack, account, revoked, now + 3600)
    forged = good[:-2] + ("AA" if good[-2:] != "AA" else "BB")
    body = {"source_path": "tinker://s:train:0/weights/x", "destination_project_id": "p"}
    with stack.another_gateway(tokens=1) as url, by_hand(url, key) as http:

        def tried(token, times):
            headers = {"X-Tinker-Weights-Access-Token": token}
            answers = [http.post("/copy_weights", json=body, headers=headers) for _ in range(times)]
            return [it.status_code for it in answers], answers[0].json()["detail"]

        statuses, text = tried(expired, 20)
        assert statuses == [400] * 20 and text == "the weights access token has expired"
        statuses, text = tried(ended, 20)
        assert statuses == [400] * 20 and "is nobody's" in text
        assert tried(fresh, 1)[0] == [404]  # looked up, and the checkpoint is what is not there
        began = time.monotonic()
        statuses, text = tried(forged, 40)
        assert "is nobody's" in text and set(statuses) == {400, 503}
        assert statuses.count(400) <= 10 * windows(began)
        assert tried(good, 1)[0] == [404]


# ------------------------------------------------------------ limits


def limit(stack, name, **flags):
    """Before the account's first call: a gateway knows the limits of a key that it has seen for a while."""
    account, key = stack.account(name)
    words = [w for flag, value in flags.items() for w in (f"--{flag.replace('_', '-')}", str(value))]
    shown = stack.tinworks("account", "limit", account, *words).stdout
    return account, key, shown


def held_up(stack):
    return stack.counters("gateway:0")["limited"]


def test_limits_are_set_shown_and_taken_back(stack):
    account, _, shown = limit(stack, "limits", requests_per_minute=600, runs=0)
    assert re.search(r"requests a minute +600\n", shown) and re.search(r"open training runs +no limit\n", shown)
    assert re.search(r"tokens in flight +default\n", shown) and re.search(r"bytes of checkpoints +default\n", shown)
    shown = stack.tinworks("account", "limit", account, "--requests-per-minute", "default", "--storage-bytes", "5").stdout
    assert re.search(r"requests a minute +default\n", shown) and re.search(r"bytes of checkpoints +5\n", shown)
    assert stack.tinworks("account", "limit", account).stdout == shown
    for wrong in ("-1", "ten", "1e3", ""):
        refused = stack.tinworks("account", "limit", account, "--runs", wrong, check=False)
        assert refused.returncode != 0 and f'--runs is "{wrong}", expected a whole number' in refused.stderr


def test_tinker_waits_where_it_sends_too_often(stack, service):
    _, key, _ = limit(stack, "often-tinker", requests_per_minute=20)
    before = held_up(stack)
    slow = stack.service(key)
    assert sdk.train(sdk.lora(slow, stack.model), 12) == sdk.train(sdk.lora(service, stack.model), 12)
    wait_for(lambda: held_up(stack) > before, "the counter")
    end(slow)


def test_hpcai_waits_where_it_sends_too_often(stack, first_account):
    _, key, _ = limit(stack, "often-hpcai", requests_per_minute=12)
    before = held_up(stack)
    slow = hpcai.ServiceClient(base_url=stack.base_url, api_key=key)
    plain = hpcai.ServiceClient(base_url=stack.base_url, api_key=first_account[1])
    assert hp.train(hp.lora(slow, stack.model), 8) == hp.train(hp.lora(plain, stack.model), 8)
    wait_for(lambda: held_up(stack) > before, "the counter")


def test_polls_are_no_requests(stack):
    _, key, _ = limit(stack, "polls", requests_per_minute=2)
    with by_hand(stack.base_url, key) as http:
        http.post("/client/config", json={})  # the key is known from here on
        assert [http.get("/sessions").status_code for _ in range(3)] == [200, 200, 429]
        for _ in range(5):
            assert http.post("/retrieve_future", json={"request_id": "none"}).status_code == 404
            assert http.post("/session_heartbeat", json={"session_id": "none"}).status_code == 404
        answer = http.get("/sessions")
        assert answer.status_code == 429 and 1 <= int(answer.headers["Retry-After"]) <= 30
        assert "more than its 2 requests a minute" in answer.json()["detail"]


def test_tinker_waits_where_it_has_too_many_tokens_in_flight(stack, service):
    """One step's 92 tokens fit, two do not; and a call of three chunks, larger than the limit, still comes through."""
    _, key, _ = limit(stack, "tokens-tinker", tokens_in_flight=100)
    before = held_up(stack)
    slow = stack.service(key)
    client, plain = sdk.lora(slow, stack.model), sdk.lora(service, stack.model)
    assert sdk.train(client, 6) == sdk.train(plain, 6)
    wait_for(lambda: held_up(stack) > before, "the counter")
    many = [sdk.datum([3, 4, 5 + i % 90]) for i in range(2100)]
    sent = [client.forward_backward(many, "cross_entropy") for _ in range(2)]
    assert [len(f.result().loss_fn_outputs) for f in sent] == [2100, 2100]
    end(slow)


def test_tinker_waits_where_its_samples_have_too_many_tokens_in_flight(stack):
    _, key, _ = limit(stack, "samples-tinker", tokens_in_flight=40)
    before = held_up(stack)
    service = stack.service(key)
    sampler = service.create_sampling_client(base_model=stack.model).result()
    sent = [sampler.sample(sdk.text([5, 6, 7 + i]), 1, sdk.sampling(max_tokens=16, stop=[])) for i in range(8)]
    assert [len(f.result().sequences[0].tokens) for f in sent] == [16] * 8
    wait_for(lambda: held_up(stack) > before, "the counter")
    end(service)


def test_hpcai_waits_where_it_has_too_many_tokens_in_flight(stack, first_account):
    _, key, _ = limit(stack, "tokens-hpcai", tokens_in_flight=100)
    slow = hpcai.ServiceClient(base_url=stack.base_url, api_key=key)
    plain = hpcai.ServiceClient(base_url=stack.base_url, api_key=first_account[1])
    client = hp.lora(slow, stack.model)
    assert hp.train(client, 6) == hp.train(hp.lora(plain, stack.model), 6)
    data = [hp.datum(sdk.tokens_of(i, 6)) for i in range(300)]  # three of its chunks
    assert len(client.forward_backward(data, "cross_entropy").result().loss_fn_outputs) == 300
    sampler = slow.create_sampling_client(base_model=stack.model)
    params = hp.types.SamplingParams(max_tokens=16, seed=5, temperature=1.0, stop=[])
    sent = [sampler.sample(hp.types.ModelInput.from_ints([5, 6, 7 + i]), 4, params) for i in range(6)]
    assert [len(s.tokens) for f in sent for s in f.result().sequences] == [16] * 24


def test_polls_of_an_account_that_is_held_up_say_why(stack):
    _, key, _ = limit(stack, "told", requests_per_minute=6, tokens_in_flight=4)
    with stack.another_gateway(poll_hold_ms=300) as url, by_hand(url, key) as http:
        service = tinker.ServiceClient(base_url=url, api_key=key)
        client = sdk.lora(service, stack.model)
        # Number 2 waits for number 1, so its future is pending as long as we like.
        late = http.post("/optim_step", json={"model_id": client.model_id, "seq_id": 2, **STEP}).json()["request_id"]
        while http.get("/sessions").status_code == 200:
            pass
        for agent, status in (("AsyncTinker/Python 0.38.0", 408), ("AsyncHpcAI/Python 0.1.5", 200)):
            answer = http.post("/retrieve_future", json={"request_id": late}, headers={"User-Agent": agent})
            assert answer.status_code == status
            assert answer.json()["queue_state"] == "paused_rate_limit"
            assert "more than its 6 requests a minute" in answer.json()["queue_state_reason"]
            assert "waiting costs nothing" in answer.json()["queue_state_reason"]
        seq_1 = {"model_id": client.model_id, "seq_id": 1, **STEP}
        wait_for(lambda: http.post("/optim_step", json=seq_1).status_code == 200, "room for the first step")
        wait_for(lambda: "metrics" in http.post("/retrieve_future", json={"request_id": late}).json(), "the second step")
        end(service)


def test_more_runs_than_allowed_are_a_clear_error(stack):
    account, key, _ = limit(stack, "runs", runs=2)
    service, other = stack.service(key), hpcai.ServiceClient(base_url=stack.base_url, api_key=key)
    sdk.lora(service, stack.model)
    unloaded = hp.lora(other, stack.model)
    why = "this account has 2 open training runs, as many as it may"
    with pytest.raises(tinker.RequestFailedError, match=why) as caught:
        sdk.lora(service, stack.model)
    assert caught.value.category.name.lower() == "user"
    with pytest.raises(ValueError, match=why):
        hp.lora(other, stack.model)
    unloaded.unload_model().result()
    client = sdk.lora(service, stack.model)
    path = client.save_state("one").result().path
    with pytest.raises(tinker.RequestFailedError, match=why):
        service.create_training_client_from_state(path).result()
    end(service)  # and with its session its runs
    fresh = stack.service(key)
    assert sdk.train(sdk.lora(fresh, stack.model), 1)
    end(fresh)


def test_more_storage_than_allowed_is_a_clear_error_and_the_run_goes_on(stack):
    _, key, _ = limit(stack, "storage", storage_bytes=1)
    service, other = stack.service(key), hpcai.ServiceClient(base_url=stack.base_url, api_key=key)
    client, theirs = sdk.lora(service, stack.model), hp.lora(other, stack.model)
    path = client.save_state("fits").result().path  # it was below until now
    why = r"this account stores \d+ bytes of checkpoints, its limit is 1"
    for save in (client.save_state, client.save_weights_for_sampler):
        with pytest.raises(tinker.RequestFailedError, match=why) as caught:
            save("more").result()
        assert caught.value.category.name.lower() == "user"
    with pytest.raises(ValueError, match=why):
        theirs.save_state("more").result()
    rest = tinker.RestClient(base_url=stack.base_url, api_key=key)
    with pytest.raises(tinker.BadRequestError, match=why):
        rest.copy_weights(path, destination_project_id="p").result()
    assert sdk.train(client, 1) and hp.train(theirs, 1)
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert client.save_state("again").result().path.endswith("/weights/again")
    end(service)


def lora_body(session, number, model):
    config = {"rank": 4, "seed": 1}
    return {"session_id": session, "model_seq_id": number, "base_model": model, "lora_config": config}


def test_a_repeated_create_model_is_not_asked_for_room_again(stack):
    """Its answer was lost; when the client repeats it others have taken the room."""
    _, key, _ = limit(stack, "repeated-run", runs=1)
    agents = ("AsyncTinker/Python 0.38.0", "AsyncHpcAI/Python 0.2.0")
    with by_hand(stack.base_url, key) as http, stack.another_gateway() as url, by_hand(url, key) as elsewhere:
        for agent in agents:
            session = http.post("/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()["session_id"]
            headers = {"User-Agent": agent, "X-Idempotency-Key": f"repeated {agent}"}
            body = lora_body(session, 0, stack.model)
            if agent == agents[1]:
                del body["session_id"], body["model_seq_id"]
            first = http.post("/create_model", json=body, headers=headers).json()
            http.post("/unload_model", json={"model_id": first["model_id"]})
            other = http.post("/create_model", json=lora_body(session, 1, stack.model)).json()
            refused = http.post("/create_model", json=lora_body(session, 2, stack.model)).json()
            for client in (http, elsewhere):
                again = client.post("/create_model", json=body, headers=headers)
                assert (again.status_code, again.json()) == (200, first)
            found = wait_for(lambda: result_of(http, refused), "the refusal")
            assert "this account has 1 open training runs" in found["error"]
            assert wait_for(lambda: result_of(http, first), "the first model")["model_id"] == first["model_id"]
            http.post("/unload_model", json={"model_id": other["model_id"]})
            # What was refused stays refused.
            assert http.post("/create_model", json=lora_body(session, 2, stack.model)).json() == refused


def test_a_repeated_load_into_a_new_model_is_not_asked_for_room_again(stack):
    _, key, _ = limit(stack, "repeated-load", runs=2)
    service = stack.service(key)
    client = sdk.lora(service, stack.model)
    path = client.save_state("it").result().path
    with by_hand(stack.base_url, key) as http:
        session = http.post("/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()["session_id"]
        body = {"session_id": session, "model_seq_id": 0, "path": path, "optimizer": True}
        first = http.post("/load_weights", json=body).json()
        http.post("/unload_model", json={"model_id": first["model_id"]})
        http.post("/create_model", json=lora_body(session, 1, stack.model))
        again = http.post("/load_weights", json=body)
        assert (again.status_code, again.json()) == (200, first)
        assert wait_for(lambda: result_of(http, first), "the model")["path"] == path
    end(service)


def result_of(http, job):
    """None while it is pending."""
    found = http.post("/retrieve_future", json={"request_id": job["request_id"]}).json()
    return None if found.get("type") == "try_again" else found


SAVES = {
    "save_weights": lambda n: {"path": f"n{n}"},
    "save_weights_for_sampler": lambda n: {"path": f"n{n}"},
    "save_weights_for_sampler unnamed": lambda n: {"sampling_session_seq_id": 70 + n},
    "save_weights_external": lambda n: {"path": f"n{n}"},
}


@pytest.mark.parametrize("call", SAVES)
def test_a_repeated_save_is_not_asked_for_room_again(stack, call):
    """What the first copy was told, all are told, by any gateway: it was let in and the storage is full since, or was refused
    and there is room since."""
    _, key, _ = limit(stack, f"repeated {call}", storage_bytes=1)
    service = stack.service(key)
    run = sdk.lora(service, stack.model).model_id
    with by_hand(stack.base_url, key) as http, stack.another_gateway() as url, by_hand(url, key) as elsewhere:

        def save(seq, client=http):
            return client.post("/" + call.split()[0], json={"model_id": run, "seq_id": seq, **SAVES[call](seq)}).json()

        def told(job):
            return wait_for(lambda: result_of(http, job), "the save").get("error", "")

        later, first = save(3), save(1)  # number 3 waits for number 2
        assert told(first) == ""
        assert [save(1), save(1, elsewhere), save(3), save(3, elsewhere)] == [first, first, later, later]
        refused = save(2)
        assert "its limit is 1" in told(refused) and told(later) == ""
        stack.sql("update checkpoints set deleted_at = now() where run_id = %s returning 1", run)
        assert [save(2), save(2, elsewhere)] == [refused, refused]
        assert told(save(4)) == ""
    end(service)
