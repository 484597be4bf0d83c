"""The account's own things by way of RestClient and AdminClient: runs, checkpoints, sessions, downloads, the books."""

import datetime
import json
import pickle
import time
import urllib.error
import urllib.request

import httpx
import pytest
import tinker
from sdk import batch_of, bits, datum, end, lora, sampling, text, tokens_of, train
from waiting import wait_for
from tinker import types


@pytest.fixture(scope="module")
def customer(stack):
    return stack.account("rest")


@pytest.fixture(scope="module")
def owner(stack, customer):
    """A session with a run that has one checkpoint of each kind."""
    service = tinker.ServiceClient(
        base_url=stack.base_url,
        api_key=customer[1],
        project_id="research",
        display_name="First light of Rest",
        user_metadata={"team": "alpha", "step": "1"},
    )
    client = lora(service, stack.model, user_metadata={"run": "a"})
    train(client, 1)
    it = {
        "service": service,
        "client": client,
        "run": client.model_id,
        "session": client.model_id.split(":")[0],
        "training": client.save_state("t1", user_metadata={"note": "x"}).result().path,
        "sampler": client.save_weights_for_sampler("s1", ttl_seconds=7200).result().path,
        "external": client.save_weights_external("e1").result().path,
    }
    yield it
    end(service)


@pytest.fixture(scope="module")
def rest(stack, customer):
    return tinker.RestClient(base_url=stack.base_url, api_key=customer[1])


@pytest.fixture(scope="module")
def admin(stack, customer):
    return tinker.AdminClient(base_url=stack.base_url, api_key=customer[1])


@pytest.fixture(scope="module")
def stranger(stack):
    account, key = stack.account("rest-stranger")
    return tinker.RestClient(base_url=stack.base_url, api_key=key), key


@pytest.fixture
def http(stack, customer):
    with httpx.Client(base_url=stack.base_url, headers={"X-API-Key": customer[1]}, timeout=60) as client:
        yield client


# ------------------------------------------------------------ runs and checkpoints


def test_a_run_is_listed_and_shown_with_its_last_checkpoints(owner, rest):
    listed = rest.list_training_runs(limit=100, project_id="research").result()
    [run] = [r for r in listed.training_runs if r.training_run_id == owner["run"]]
    assert run == rest.get_training_run(owner["run"]).result()
    assert (run.is_lora, run.lora_rank, run.user_metadata) == (True, 8, {"run": "a"})
    assert run.last_checkpoint.tinker_path == owner["training"]
    assert run.last_sampler_checkpoint.tinker_path == owner["sampler"]
    assert rest.list_training_runs(project_id="other").result().training_runs == []
    assert rest.get_training_run_by_tinker_path(owner["training"], access_scope="accessible").result() == run


def test_pages_do_not_overlap(owner, rest, stack):
    extra = lora(owner["service"], stack.model)
    first, second = (rest.list_training_runs(limit=1, offset=n).result() for n in (0, 1))
    assert first.cursor.total_count >= 2
    assert first.training_runs[0].training_run_id == extra.model_id  # newest first
    assert second.training_runs[0].training_run_id != extra.model_id


def test_all_kinds_of_checkpoints_are_listed(owner, rest):
    of_run = rest.list_checkpoints(owner["run"]).result().checkpoints
    by_kind = {c.checkpoint_type: c for c in of_run}
    assert {k: c.tinker_path for k, c in by_kind.items() if k != "none"} == {
        kind: owner[kind] for kind in ("training", "sampler", "external")
    }
    assert by_kind["training"].user_metadata == {"note": "x"}
    assert by_kind["training"].size_bytes > by_kind["external"].size_bytes > 0
    assert by_kind["sampler"].expires_at > datetime.datetime.now(datetime.timezone.utc)
    assert by_kind["training"].expires_at is None
    everything = rest.list_user_checkpoints(limit=100).result()
    assert {c.tinker_path for c in of_run} <= {c.tinker_path for c in everything.checkpoints}
    assert everything.cursor.total_count == len(everything.checkpoints)


def test_weights_info_names_what_was_trained(owner, rest, stack):
    info = rest.get_weights_info_by_tinker_path(owner["training"]).result()
    assert (info.base_model, info.is_lora, info.lora_rank) == (stack.model, True, 8)
    assert info.train_attn and info.train_mlp and info.train_unembed


def test_a_time_is_set_and_taken_away(owner, rest):
    def expires():
        [c] = [c for c in rest.list_checkpoints(owner["run"]).result().checkpoints if c.tinker_path == owner["training"]]
        return c.expires_at

    rest.set_checkpoint_ttl_from_tinker_path(owner["training"], 3600).result()
    left = expires() - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(minutes=50) < left <= datetime.timedelta(minutes=60)
    rest.set_checkpoint_ttl_from_tinker_path(owner["training"], None).result()
    assert expires() is None


@pytest.mark.parametrize("ttl", [0, 10, 3599, 315360001, "soon"])
def test_a_time_out_of_range_is_refused(owner, http, ttl):
    answer = http.put(f"/api/v1/training_runs/{owner['run']}/checkpoints/weights/t1/ttl", json={"ttl_seconds": ttl})
    assert answer.status_code == 400 and "ttl_seconds" in answer.json()["detail"]


def test_a_published_checkpoint_is_readable_by_others_until_it_is_taken_back(stack, owner, rest, stranger):
    other, key = stranger
    service = stack.service(key)
    path = owner["training"]

    def invisible():
        for look in (
            lambda: other.get_weights_info_by_tinker_path(path),
            lambda: other.get_training_run(owner["run"], access_scope="accessible"),
            lambda: other.list_checkpoints(owner["run"]),
        ):
            with pytest.raises(tinker.NotFoundError):
                look().result()

    invisible()
    rest.publish_checkpoint_from_tinker_path(path).result()
    rest.publish_checkpoint_from_tinker_path(path).result()  # again is fine
    assert other.get_weights_info_by_tinker_path(path).result().base_model == stack.model
    seen = other.get_training_run(owner["run"], access_scope="accessible").result()
    assert seen.user_metadata == {} and seen.last_sampler_checkpoint is None
    assert [c.tinker_path for c in other.list_checkpoints(owner["run"]).result().checkpoints] == [path]
    assert other.list_user_checkpoints().result().checkpoints == []  # found by its path, never listed
    copy = service.create_training_client_from_state_with_optimizer(path).result()
    mine = owner["service"].create_training_client_from_state_with_optimizer(path).result()
    assert train(copy, 1, first=5) == train(mine, 1, first=5)
    with pytest.raises(tinker.NotFoundError):
        other.delete_checkpoint_from_tinker_path(path).result()
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    invisible()
    assert len(train(copy, 1, first=6)) == 1  # what was loaded stays loaded
    end(service)


def test_a_deleted_checkpoint_is_gone_and_its_files_too(stack, owner, rest):
    path = owner["client"].save_state("short-lived").result().path
    [(folder,)] = stack.sql("select dir from checkpoints where run_id = %s and name = 'short-lived'", owner["run"])
    assert (stack.home / "data" / folder).is_dir()
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert not (stack.home / "data" / folder).exists()
    assert path not in [c.tinker_path for c in rest.list_checkpoints(owner["run"]).result().checkpoints]
    with pytest.raises(tinker.NotFoundError):
        rest.get_weights_info_by_tinker_path(path).result()


def test_saving_again_needs_overwrite(stack, owner):
    client = lora(owner["service"], stack.model)
    train(client, 1)
    path = client.save_state("again").result().path
    with pytest.raises(tinker.RequestFailedError) as caught:
        client.save_state("again").result()
    assert "again" in caught.value.message and "overwrite" in caught.value.message
    train(client, 1, first=1)
    assert client.save_state("again", overwrite=True).result().path == path
    expected = bits(client.forward(batch_of(9), "cross_entropy").result())
    copy = owner["service"].create_training_client_from_state(path).result()
    assert bits(copy.forward(batch_of(9), "cross_entropy").result()) == expected


# ------------------------------------------------------------ downloads


def fetch(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
        return response.status, response.headers, response.read()


def test_external_weights_are_files_behind_signed_addresses(owner, rest):
    answer = rest.get_external_weights_urls(owner["external"]).result()
    left = answer.expires - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(0) < left <= datetime.timedelta(minutes=15)
    assert set(answer.urls) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(fetch(answer.urls["adapter_config.json"])[2])
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (8, 32, "LORA")
    status, headers, whole = fetch(answer.urls["adapter_model.safetensors"])
    assert status == 200 and int(headers["Content-Length"]) == len(whole) and headers["Accept-Ranges"] == "bytes"
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in header


def test_parts_of_a_file_can_be_fetched(owner, rest):
    url = rest.get_external_weights_urls(owner["external"]).result().urls["adapter_model.safetensors"]
    whole = fetch(url)[2]
    status, headers, part = fetch(url, Range="bytes=100-299")
    assert (status, part) == (206, whole[100:300])
    assert headers["Content-Range"] == f"bytes 100-299/{len(whole)}"
    assert fetch(url, Range=f"bytes={len(whole) - 5}-")[2] == whole[-5:]
    assert fetch(url, Range="bytes=-7")[2] == whole[-7:]
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(url, Range=f"bytes={len(whole)}-")
    assert refused.value.code == 416


def test_a_signed_address_cannot_be_changed(stack, owner, rest):
    urls = rest.get_external_weights_urls(owner["external"]).result().urls
    url = urls["adapter_config.json"]
    for changed in (
        url.replace("adapter_config.json", "adapter_model.safetensors"),
        url.replace("adapter_config.json", "optimizer.safetensors"),
        url.replace("expires=", "expires=9"),
        url.replace("account=", "account=x"),
        url.replace(owner["run"], owner["run"][:-1] + "9"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.partition("?")[0],
    ):
        answer = httpx.get(changed, timeout=60)
        assert answer.status_code == 403, changed
    assert httpx.post(url, timeout=60).status_code == 405
    assert httpx.get(url, timeout=60).status_code == 200


def test_an_address_ends_with_the_checkpoint(owner, rest):
    path = owner["client"].save_weights_external("leaves").result().path
    url = rest.get_external_weights_urls(path).result().urls["adapter_config.json"]
    assert httpx.get(url, timeout=60).status_code == 200
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert httpx.get(url, timeout=60).status_code == 404


def test_encryption_is_refused_and_not_left_out_silently(owner):
    with pytest.raises(tinker.RequestFailedError) as caught:
        owner["client"].save_weights_external("sealed", age_encryption_recipients=["age1xyz"]).result()
    assert "age_encryption_recipients" in caught.value.message


# ------------------------------------------------------------ copies


def test_a_checkpoint_is_copied_into_a_project(stack, owner, rest):
    path = rest.copy_weights(owner["training"], destination_project_id="shelf", ttl_seconds=7200).result()
    assert path != owner["training"] and path.endswith("/weights/t1")
    run = rest.get_training_run_by_tinker_path(path).result()
    assert run.training_run_id in [
        r.training_run_id for r in rest.list_training_runs(project_id="shelf").result().training_runs
    ]
    assert run.last_checkpoint.expires_at is not None
    copy = owner["service"].create_training_client_from_state_with_optimizer(path).result()
    mine = owner["service"].create_training_client_from_state_with_optimizer(owner["training"]).result()
    assert train(copy, 1, first=7) == train(mine, 1, first=7)
    # The copy lives on its own.
    again = owner["client"].save_state("to-copy").result().path
    kept = rest.copy_weights(again, destination_project_id="shelf").result()
    rest.delete_checkpoint_from_tinker_path(again).result()
    loaded = owner["service"].create_training_client_from_state(kept).result()
    assert len(train(loaded, 1)) == 1


def test_the_same_key_is_the_same_copy(owner, http):
    def copy(key):
        answer = http.post(
            "/api/v1/copy_weights",
            json={"source_path": owner["training"], "destination_project_id": "shelf"},
            headers={"X-Idempotency-Key": key},
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["tinker_path"]

    assert copy("k1") == copy("k1") != copy("k2")


def test_a_second_copy_under_one_number_leaves_the_first_alone(stack, owner, rest, http):
    session = owner["session"]

    def copy(path):
        body = {"source_path": path, "session_id": session, "model_seq_id": 900}
        answer = http.post("/api/v1/copy_weights", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["tinker_path"]

    first = copy(owner["sampler"])  # without optimizer state
    assert copy(owner["training"]) == first
    service = owner["service"]
    sampler = service.create_sampling_client(model_path=first).result()
    assert len(sampler.sample(text([5, 6]), 1, sampling()).result().sequences) == 1


def test_a_copied_run_is_not_trained(owner, rest, http):
    run = rest.copy_weights(owner["training"], destination_project_id="shelf").result().split("/")[2]
    answer = http.post("/api/v1/optim_step", json={"model_id": run, "seq_id": 1, "adam_params": {}})
    assert answer.status_code == 400 and "copied" in answer.json()["detail"]


def test_anothers_checkpoint_is_copied_and_loaded_with_their_token(stack, owner, customer, stranger):
    other, key = stranger
    with pytest.raises(tinker.NotFoundError):
        other.copy_weights(owner["training"], destination_project_id="mine").result()
    with pytest.raises(tinker.BadRequestError):
        other.copy_weights(owner["training"], destination_project_id="mine", weights_access_token="tml-no-one").result()
    path = other.copy_weights(
        owner["training"], destination_project_id="mine", weights_access_token=customer[1]
    ).result()
    assert other.get_weights_info_by_tinker_path(path).result().lora_rank == 8
    service = stack.service(key)
    with pytest.raises(tinker.NotFoundError):
        service.create_training_client_from_state(owner["training"]).result()
    client = service.create_training_client_from_state(owner["training"], weights_access_token=customer[1]).result()
    assert len(train(client, 1)) == 1
    end(service)


# ------------------------------------------------------------ sessions


def test_a_session_shows_what_it_made(owner, rest, stack):
    sampler = owner["client"].save_weights_and_get_sampling_client().result()
    assert len(sampler.sample(text([5, 6]), 1, sampling()).result().sequences) == 1
    session = rest.get_session(owner["session"]).result()
    assert owner["run"] in session.training_run_ids and len(session.sampler_ids) >= 1
    assert session.user_metadata == {"team": "alpha", "step": "1"}
    assert session.display_name == "First light of Rest"
    shown = rest.get_sampler(session.sampler_ids[0]).result()
    assert shown.base_model == stack.model
    assert owner["session"] in rest.list_sessions().result().sessions


def test_sessions_are_found_by_what_is_known_of_them(stack, customer, owner, rest):
    ended = tinker.ServiceClient(
        base_url=stack.base_url, api_key=customer[1], display_name="second", user_metadata={"team": "beta"}
    )
    client = lora(ended, stack.model)
    id_ended = client.model_id.split(":")[0]
    end(ended, "errored", detail="ran out of luck")

    def search(**what):
        return rest.search_sessions(types.SessionSearchRequest(**what)).result()

    def ids(**what):
        return [s.session_id for s in search(**what).sessions]

    assert owner["session"] in ids() and id_ended in ids()
    assert ids(session_id=id_ended) == [id_ended]
    assert owner["session"] in ids(display_name="light FIRST") and id_ended not in ids(display_name="light FIRST")
    assert ids(user_metadata={"team": "beta"}) == [id_ended]
    assert id_ended not in ids(project_ids=["research"]) and owner["session"] in ids(project_ids=["research"])
    assert owner["session"] in ids(statuses=[{"type": "active"}])
    assert ids(statuses=[{"type": "client_finished", "reasons": ["errored"]}]) == [id_ended]
    assert ids(statuses=[{"type": "failed"}]) == []
    [summary] = search(session_id=id_ended).sessions
    assert summary.status.reason.type == "errored" and summary.status.detail == "ran out of luck"
    [summary] = search(session_id=owner["session"]).sessions
    assert summary.checkpoints_count >= 3 and summary.checkpoint_storage_bytes > 0
    everything = ids()
    paged, cursor = [], None
    while True:
        page = search(limit=1, cursor=cursor)
        paged += [s.session_id for s in page.sessions]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert paged == everything


def test_a_session_moves_into_another_project(stack, customer, rest):
    service = stack.service(customer[1])
    run = lora(service, stack.model).model_id
    session = run.split(":")[0]
    rest.assign_session_project(session, "elsewhere").result()
    listed = rest.list_training_runs(project_id="elsewhere").result().training_runs
    assert [r.training_run_id for r in listed] == [run]
    with pytest.raises(tinker.BadRequestError) as caught:
        rest.assign_session_project(session, "no such/name").result()
    assert "project_id" in str(caught.value)
    end(service)


def test_the_first_reason_of_an_end_stays_and_heartbeats_end(stack, customer, http):
    service = stack.service(customer[1])
    session = lora(service, stack.model).model_id.split(":")[0]
    end(service, "interrupted")
    again = http.post(f"/api/v1/sessions/{session}/finish", json={"reason": {"type": "success"}, "detail": None})
    assert again.status_code == 204
    [(reason,)] = stack.sql("select finish_reason from sessions where id = %s", session)
    assert reason == "interrupted"
    assert http.post("/api/v1/session_heartbeat", json={"session_id": session}).status_code == 410


def test_no_trace_is_promised(owner, rest):
    with pytest.raises(RuntimeError, match="records no timelines"):
        rest.export_session_trace(owner["session"]).result()


# ------------------------------------------------------------ the books


def test_usage_is_that_of_the_ledger(stack, customer, owner, admin):
    client = lora(owner["service"], stack.model)
    client.forward_backward([datum(tokens_of(1, 40))], "cross_entropy").result()
    stack.billed([client.model_id], 2)
    now = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
    hour = datetime.timedelta(hours=1)
    usage = admin.get_billing_usage(now - hour, now + hour).result()
    billed = stack.sql(
        "select kind, sum(tokens)::bigint, sum(amount_pico)::bigint from usage_hours where account_id = %s group by kind",
        customer[0],
    )
    names = {"train": "training", "prefill": "sampling_prefill", "sample": "sampling_sample"}
    for kind, tokens, pico in billed:
        rows = [row for row in usage.data if row.event_info.type == names[kind]]
        assert sum(row.event_info.token_count for row in rows) == tokens
        assert sum(row.estimated_cost_usd for row in rows) == pytest.approx(pico / 1e12)
    [mine] = [r for r in usage.data if r.session_id == owner["session"] and r.event_info.type == "training"]
    assert mine.project_id == "research" and mine.base_model == stack.model
    assert mine.effective_rate_usd_per_million_tokens == pytest.approx(0.22)
    assert usage.sessions[owner["session"]].user_metadata["team"] == "alpha"
    assert admin.get_billing_usage(now - 3 * hour, now - 2 * hour).result().data == []


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"starting_on": "2026-11-01T00:00:00Z"},
        {"starting_on": "yesterday", "ending_before": "2026-11-02T00:00:00Z"},
        {"starting_on": "2026-11-01T00:00:00Z", "ending_before": "2026-11-20T00:00:00Z"},
        {"starting_on": "2026-11-01T00:30:00Z", "ending_before": "2026-11-02T00:00:00Z"},
        {"starting_on": "2026-11-02T00:00:00Z", "ending_before": "2026-11-01T00:00:00Z"},
    ],
)
def test_a_period_that_is_none_is_refused(http, query):
    answer = http.get("/api/v1/billing/usage/events", params=query)
    assert answer.status_code == 400 and answer.json()["detail"]


def test_storage_is_counted_by_project(stack, customer, owner, admin):
    usage = admin.get_current_checkpoint_storage_usage().result()
    [(count, size)] = stack.sql(
        "select count(*), sum(size_bytes)::bigint from checkpoints where account_id = %s and deleted_at is null",
        customer[0],
    )
    assert sum(item.checkpoint_count for item in usage.data) == count
    assert sum(item.size_bytes for item in usage.data) == size
    [one] = admin.get_current_checkpoint_storage_usage(project_id="research").result().data
    assert one.project_id == "research" and one.size_gigabytes == pytest.approx(one.size_bytes / 1e9)


def test_the_audit_log_says_what_was_done(owner, rest, admin):
    path = owner["client"].save_state("audited").result().path
    rest.publish_checkpoint_from_tinker_path(path).result()
    rest.set_checkpoint_ttl_from_tinker_path(path, 4000).result()
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    rest.delete_checkpoint_from_tinker_path(path).result()
    entries = admin.get_audit_log().result().entries
    mine = [e for e in entries if e.tinker_path == path]
    assert [e.event for e in mine] == [
        f"checkpoint.{what}" for what in ("created", "published", "ttl_set", "unpublished", "deleted")
    ]
    assert mine[2].event_details == {"ttl_seconds": 4000}
    assert "project.created" in {e.event for e in admin.get_audit_log("projects").result().entries}
    today = datetime.datetime.now(datetime.timezone.utc).date()
    assert admin.get_audit_log("checkpoints", today).result().entries
    assert admin.get_audit_log("checkpoints", today - datetime.timedelta(days=1)).result().entries == []
    assert admin.get_audit_log("teams").result().entries == []


# ------------------------------------------------------------ samples by the session


def test_many_samples_are_polled_as_one_session(stack, owner):
    sampler = owner["service"].create_sampling_client(model_path=owner["sampler"]).result()
    prompts = [text(tokens_of(i, 5)) for i in range(40)]
    sent = [sampler.sample(p, 1, sampling(seed=i, stop=[])) for i, p in enumerate(prompts)]
    tokens = [s.result().sequences[0].tokens for s in sent]
    assert all(len(t) == 8 for t in tokens)
    again = [sampler.sample(p, 1, sampling(seed=i, stop=[])) for i, p in enumerate(prompts)]
    assert [s.result().sequences[0].tokens for s in again] == tokens


def test_the_cursor_of_a_session_goes_on_after_redis_was_lost(stack, owner, http):
    import redis

    session = http.post("/api/v1/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()["session_id"]
    sampler = http.post(
        "/api/v1/create_sampling_session",
        json={"session_id": session, "sampling_session_seq_id": 0, "base_model": stack.model},
    ).json()["sampling_session_id"]

    def sample(seq):
        answer = http.post(
            "/api/v1/asample",
            json={
                "sampling_session_id": sampler,
                "seq_id": seq,
                "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]},
                "sampling_params": {"max_tokens": 2},
            },
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["request_id"]

    def poll(cursor, clone=0, **more):
        target = {"type": "sampling_session", "sampling_session_id": sampler, "cloned_sampler_id": clone}
        answer = http.post("/api/v1/retrieve_futures", json={"target": target, "prev_cursor": cursor, **more})
        assert answer.status_code == 200, answer.text
        return {c["request_id"]: c["state"] for c in answer.json()["completions"]}, answer.json()["cursor"]

    def poll_until(wanted, cursor, clone=0):
        got = {}
        while not wanted <= set(got):
            done, cursor = poll(cursor, clone)
            got.update(done)
        return got, cursor

    first = {sample(n) for n in range(3)}
    clone = {sample(2 * 10**9 + 5)}
    got, cursor = poll_until(first, 0)
    assert set(got) == first and set(got.values()) == {"finished"}
    assert set(poll_until(clone, 0, clone=2)[0]) == clone
    assert poll(cursor, timeout=0) == ({}, cursor) or poll(cursor, timeout=0)[1] >= cursor
    failed = http.post(
        "/api/v1/asample",
        json={
            "sampling_session_id": sampler,
            "seq_id": 9,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [70000]}]},
            "sampling_params": {"max_tokens": 2},
        },
    ).json()["request_id"]
    got, cursor = poll_until({failed}, cursor)
    assert got == {failed: "failed"}

    stack.billed([sampler], 5)
    with redis.Redis.from_url(stack.settings["TINWORKS_REDIS"]) as store:
        store.flushall()
    got, again = poll_until(first | {failed}, 0)
    assert set(got) == first | {failed} and again >= cursor
    late = sample(20)
    got, _ = poll_until({late}, cursor)
    assert late in got


def test_clients_that_share_a_sampler_get_different_numbers(stack, owner, http):
    [sampler] = stack.sql("select id from samplers where account_id = (select account_id from runs where id = %s) limit 1", owner["run"])
    numbers = [
        http.post("/api/v1/join_sampling_session", json={"sampling_session_id": sampler[0]}).json()["client_counter"]
        for _ in range(3)
    ]
    assert 0 not in numbers and len(set(numbers)) == 3


def test_a_pickled_sampling_client_samples_under_a_number_of_its_own(stack, owner, customer, monkeypatch):
    monkeypatch.setenv("TINKER_API_KEY", customer[1])
    monkeypatch.setenv("TINKER_BASE_URL", stack.base_url)
    sampler = owner["service"].create_sampling_client(base_model=stack.model).result()
    copy = pickle.loads(pickle.dumps(sampler))
    wanted = sampler.sample(text([5, 6]), 1, sampling(stop=[])).result().sequences[0].tokens
    assert copy.sample(text([5, 6]), 1, sampling(stop=[])).result().sequences[0].tokens == wanted


def test_a_cancelled_sample_is_told_to_the_server(stack, owner):
    sampler = owner["service"].create_sampling_client(base_model=stack.model).result()

    def calls(route):
        return (stack.home / "log" / "gateway.log").read_text().count(f"route=/api/v1/{route} ")

    asked, cancelled = calls("asample"), calls("cancel_future")
    many = [sampler.sample(text(tokens_of(i, 4)), 64, sampling(max_tokens=200, stop=[])) for i in range(8)]
    wait_for(lambda: calls("asample") >= asked + len(many), "all of them to be submitted")
    last = many.pop()
    time.sleep(0.5)  # its client knows that by now, most likely; the wait below is what decides
    last.cancel()
    wait_for(lambda: calls("cancel_future") > cancelled, "the wish to be sent", 30)
    for sample in many:
        assert len(sample.result().sequences) == 64


def test_telemetry_is_accepted(stack, customer, monkeypatch):
    monkeypatch.setenv("TINKER_TELEMETRY", "1")
    before = stack.counters("gateway:0").get("telemetry_events", 0)
    service = stack.service(customer[1])
    lora(service, stack.model)
    end(service)
    wait_for(lambda: stack.counters("gateway:0").get("telemetry_events", 0) > before, "the events to be counted")


def test_an_inflight_sampler_is_a_snapshot(stack, owner, http):
    client = lora(owner["service"], stack.model)
    session = client.model_id.split(":")[0]

    def save(kind):
        answer = http.post(
            "/api/v1/save_weights_for_sampler",
            json={"model_id": client.model_id, "seq_id": save.seq, "sampling_session_seq_id": 900 + save.seq, "kind": kind},
        ).json()["request_id"]
        save.seq += 1
        result = {"type": "try_again"}
        while result.get("type") == "try_again":
            result = http.post("/api/v1/retrieve_future", json={"request_id": answer}).json()
        return result

    save.seq = 1
    assert save("inflight")["sampling_session_id"] == f"{session}:sample:901"
    assert "kind" in save("other")["error"]


# ------------------------------------------------------------ keys


def test_a_key_shows_and_deletes_itself(stack):
    account, key = stack.account("key-holder")
    headers = {"X-API-Key": key}
    url = f"{stack.base_url}/api/v1/auth/apikey/me"
    shown = httpx.get(url, headers=headers, timeout=60).json()
    assert isinstance(shown["key_id"], int) and shown["details"]["org_details"]["name"] == "key-holder"
    assert httpx.delete(url, headers=headers, timeout=60).status_code == 204
    assert httpx.get(url, headers=headers, timeout=60).status_code == 401


def test_tokens_are_off_unless_a_setting_turns_them_on(stack, http, rest):
    assert http.post("/api/v1/client/config", json={}).json()["pjwt_auth_enabled"] is False
    assert http.post("/api/v1/auth/token", json={}).status_code == 404
    with pytest.raises(Exception):
        rest.whoami().result()
