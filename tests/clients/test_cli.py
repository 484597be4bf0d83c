"""The `tinker` command line of SDK 0.38.0, each command against the stack."""

import csv
import datetime
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import tinker
from sdk import end, lora, train
from waiting import NotStaged

TINKER = pathlib.Path(sys.executable).with_name("tinker")
WEIGHTS = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def customer(stack):
    return stack.account("cli")


@pytest.fixture(scope="module")
def made(stack, customer):
    service = stack.service(customer[1])
    client = lora(service, stack.model, user_metadata={"from": "cli"})
    train(client, 1)
    it = {
        "run": client.model_id,
        "training": client.save_state("final").result().path,
        "external": client.save_weights_external("out").result().path,
        "sampler": client.save_weights_for_sampler("fast").result().path,
        "client": client,
    }
    yield it
    end(service)


@pytest.fixture
def tell(stack, customer, tmp_path):
    """Runs a command; gives its output, or its JSON for words that begin with --format json."""

    def run(*words, key=customer[1], url=stack.base_url, stdin="", fails=False):
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TINKER_")}
        environ |= {"TINKER_BASE_URL": url, "TINKER_TELEMETRY": "0", "HOME": str(tmp_path), "COLUMNS": "300"}
        if key:
            environ["TINKER_API_KEY"] = key
        try:
            done = subprocess.run(
                [TINKER, *words], env=environ, input=stdin, capture_output=True, text=True, timeout=120, cwd=tmp_path
            )
        except subprocess.TimeoutExpired as late:
            if not downloaded(words):
                raise
            # It closes its session without a time limit, and may wait for its own heartbeat then: see sdk.end().
            raise NotStaged(f"{late}; it had said {late.stderr}") from None
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        if fails:
            return done.stdout + done.stderr
        return json.loads(done.stdout) if words[:2] == ("--format", "json") else done.stdout

    return run


def downloaded(words):
    """Is it a command for a download, and is that there?"""
    if words[:2] != ("checkpoint", "download") or "--output" not in words:
        return False
    there = {p.name for p in pathlib.Path(words[words.index("--output") + 1]).glob("*/*")}
    return there >= WEIGHTS


def as_json(tell, *words):
    return tell("--format", "json", *words)


def test_version(tell):
    assert "0.38.0" in tell("version")


def test_model_list(tell, stack):
    assert stack.model in tell("model", "list")
    assert stack.model in tell("model", "list", "tiny")


def test_run_list_and_info(tell, made, stack):
    listed = as_json(tell, "run", "list", "--limit", "5")
    assert made["run"] in json.dumps(listed)
    shown = tell("run", "info", made["run"])
    assert stack.model in shown and made["run"] in shown
    assert "from" in json.dumps(as_json(tell, "run", "info", made["run"]))
    assert "not found" in tell("run", "info", "s:train:0", fails=True).lower()


def test_checkpoint_list_and_info(tell, made):
    everything = json.dumps(as_json(tell, "checkpoint", "list", "--limit", "0"))
    of_run = json.dumps(as_json(tell, "checkpoint", "list", "--run-id", made["run"]))
    for kind in ("training", "external", "sampler"):
        assert made[kind] in everything and made[kind] in of_run
    assert made["training"] in json.dumps(as_json(tell, "checkpoint", "info", made["training"]))


def public(tell, path):
    return as_json(tell, "checkpoint", "info", path)["public"]


def test_checkpoint_publish_and_unpublish(tell, made):
    assert public(tell, made["training"]) is False
    tell("checkpoint", "publish", made["training"])
    assert public(tell, made["training"]) is True
    tell("checkpoint", "unpublish", made["training"])
    assert public(tell, made["training"]) is False


def test_checkpoint_set_ttl(tell, made):
    tell("checkpoint", "set-ttl", made["training"], "--ttl", "7200")
    assert as_json(tell, "checkpoint", "info", made["training"])["expires_at"]
    tell("checkpoint", "set-ttl", made["training"], "--remove")
    assert not as_json(tell, "checkpoint", "info", made["training"])["expires_at"]


def test_checkpoint_delete(tell, made):
    paths = [made["client"].save_state(f"drop-{i}").result().path for i in range(3)]
    tell("checkpoint", "delete", "--yes", *paths[:2])
    left = json.dumps(as_json(tell, "checkpoint", "list", "--run-id", made["run"]))
    assert paths[0] not in left and paths[1] not in left and paths[2] in left
    tomorrow = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)).date()
    made["client"].save_weights_for_sampler("drop-s").result()
    tell("checkpoint", "delete", "--yes", "--run-id", made["run"], "--type", "sampler_weights", "--after", str(tomorrow))
    tell("checkpoint", "delete", paths[2], "--yes")
    assert paths[2] not in json.dumps(as_json(tell, "checkpoint", "list", "--run-id", made["run"]))


@pytest.mark.parametrize("kind", ["training", "external"])
def test_checkpoint_download(tell, made, stack, tmp_path, kind):
    tell("checkpoint", "download", made[kind], "--output", str(tmp_path / "models"))
    [folder] = (tmp_path / "models").iterdir()
    assert {p.name for p in folder.iterdir()} >= WEIGHTS
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (8, 32, "LORA")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in header
    # The weights are those that the run has, whichever way they came.
    [(folder_here,)] = stack.sql("select dir from checkpoints where run_id = %s and name = 'out'", made["run"])
    assert weights == (stack.home / "data" / folder_here / "adapter_model.safetensors").read_bytes()
    # The temporary export is gone again.
    assert "external_weights/download" not in json.dumps(as_json(tell, "checkpoint", "list", "--limit", "0"))


def test_a_samplers_checkpoint_is_not_downloaded(tell, made):
    assert "Sampler checkpoints cannot be downloaded" in tell("checkpoint", "download", made["sampler"], fails=True)


def test_session_export_trace(tell, made):
    session = made["run"].split(":")[0]
    assert "records no timelines" in tell("session", "export-trace", session, fails=True)


def test_billing_usage(tell, stack, customer, made):
    stack.billed([made["run"]], 3)
    now = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
    hours = [(now + datetime.timedelta(hours=h)).strftime("%Y-%m-%dT%H:%M:%SZ") for h in (-2, 1)]
    usage = as_json(tell, "billing", "usage", *hours)
    tokens = sum(e["event_info"]["token_count"] for e in usage["data"] if e["event_info"]["type"] == "training")
    [(billed,)] = stack.sql(
        "select sum(tokens)::bigint from usage_hours where account_id = %s and kind = 'train'", customer[0]
    )
    assert tokens == billed > 0
    rows = list(csv.DictReader(io.StringIO(tell("billing", "usage", *hours, "--csv", "-"))))
    assert made["run"].split(":")[0] in {row["session_id"] for row in rows}
    assert "training" in tell("billing", "usage", *hours)


def test_billing_checkpoint_storage(tell, made):
    stored = as_json(tell, "billing", "checkpoint-storage")
    assert sum(item["checkpoint_count"] for item in stored["data"]) >= 3


def test_auth_login_status_and_logout(tell, stack, tmp_path):
    _, key = stack.account("cli-login")
    said = tell("auth", "login", key=None, stdin=key + "\n")
    assert "Logged in as cli-login (cli-login)" in said
    stored = json.loads((tmp_path / ".tinker" / "credentials.json").read_text())
    assert [k["key"] for k in stored["keys"].values()] == [key]
    tell("auth", "status", key=None)
    assert "still active" in tell("auth", "logout", key=None)
    assert "Could not validate" in tell("auth", "login", key=None, stdin="tml-wrong-key\n", fails=True)


def test_auth_logout_deletes_a_key_that_an_older_command_line_made(tell, stack, tmp_path):
    _, key = stack.account("cli-old-login")
    tell("auth", "login", key=None, stdin=key + "\n")
    file = tmp_path / ".tinker" / "credentials.json"
    stored = json.loads(file.read_text())
    for record in stored["keys"].values():
        record["type"] = "generated"
        record.pop("note", None)
    file.write_text(json.dumps(stored))
    assert "deleted its API key on the server" in tell("auth", "logout", key=None)
    assert stack.sql("select revoked_at is not null from api_keys where id = %s", key.split("-")[1]) == [(True,)]


def test_auth_whoami_needs_tokens(tell, stack, customer):
    tell("auth", "whoami", fails=True)
    with stack.another_gateway(tokens=1) as url:
        assert customer[0] in tell("auth", "whoami", url=url)
        # When nothing fits, the command line asks who one is, to say for whom nothing was found.
        assert "No model name contains" in tell("model", "list", "no-such-model", url=url, fails=True)


# ------------------------------------------------------------ tokens, with the SDK


def test_with_tokens_on_the_sdk_trains_with_one(stack, customer):
    with stack.another_gateway(tokens=1, log_requests=1) as url:
        service = tinker.ServiceClient(base_url=url, api_key=customer[1])
        assert len(train(lora(service, stack.model), 1)) == 1
        who = tinker.RestClient(base_url=url, api_key=customer[1]).whoami().result()
        assert who.user_urn == customer[0] and who.org_urn.endswith(customer[0])
        end(service)


def test_a_token_ends_with_its_key_and_cannot_make_another(stack):
    import httpx

    account, key = stack.account("tokens")
    with stack.another_gateway(tokens=1) as url, httpx.Client(base_url=url, timeout=60) as http:

        def get(credential):
            return http.get("/api/v1/sessions", headers={"X-API-Key": credential})

        token = http.post("/api/v1/auth/token", json={}, headers={"X-API-Key": key}).json()["jwt"]
        assert re.fullmatch(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", token) and get(token).status_code == 200
        again = http.post("/api/v1/auth/token", json={}, headers={"X-API-Key": token})
        assert again.status_code == 401
        forged = get(token[:-2] + ("AA" if token[-2:] != "AA" else "BB"))
        assert forged.status_code == 401
        # With tokens off it is a key like any other wrong one.
        assert httpx.get(f"{stack.base_url}/api/v1/sessions", headers={"X-API-Key": token}).status_code == 401
        assert http.delete("/api/v1/auth/apikey/me", headers={"X-API-Key": token}).status_code == 204
        ended = get(token)
        assert ended.status_code == 401 and 'error="invalid_token"' in ended.headers["WWW-Authenticate"]
        assert get(key).status_code == 401
