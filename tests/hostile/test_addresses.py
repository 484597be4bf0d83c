"""Signed addresses in wrong hands: row H13."""

import json
import re
import time

import httpx
import pytest
from raw import Raw
from waiting import staged, wait_for

SHORT_S = 5


@pytest.fixture(scope="module")
def other(world):
    """A second gateway, whose addresses end soon."""
    it = world.process("gateway", "gateway9", url_s=SHORT_S).start()
    yield it
    assert it.drain() == 0


@pytest.fixture(scope="module")
def checkpoint(hostile):
    told = json.loads(hostile.raw.result(hostile.run.send("save_weights_external", {"path": "signed"}))[1])
    assert "path" in told, told
    return f"/api/v1/training_runs/{hostile.run.id}/checkpoints/external_weights/signed/external_weights_urls"


def urls(base, path, key):
    answer = httpx.get(base + path, headers={"X-API-Key": key}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["urls"]


def test_H13_an_address_ends(world, other, checkpoint, key):
    began = time.monotonic()
    url = urls(other.url, checkpoint, key)["adapter_config.json"]
    early = httpx.get(url, timeout=60).status_code
    staged(time.monotonic() - began < SHORT_S - 1, "the address is used while it is good")  # its end is a whole second
    assert early == 200
    wait_for(lambda: httpx.get(url, timeout=60).status_code == 403, "the address to end", 60)
    later = str(int(time.time()) + 600)
    assert httpx.get(re.sub(r"expires=\d+", f"expires={later}", url), timeout=60).status_code == 403


def test_H13_another_method_is_not_signed_for(world, checkpoint, key):
    url = urls(world.base_url, checkpoint, key)["adapter_config.json"]
    for method in ("POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        answer = httpx.request(method, url, timeout=60)
        assert answer.status_code in (403, 405), (method, answer.status_code)
        assert b"peft_type" not in answer.content
    assert httpx.get(url, timeout=60).status_code == 200


def test_H13_every_changed_byte_is_refused(world, checkpoint, key):
    url = urls(world.base_url, checkpoint, key)["adapter_config.json"]
    begin = url.index("/api/v1/files/") + len("/api/v1/files/")
    with httpx.Client(timeout=60) as client:
        for at in range(begin, len(url)):
            if url[at] in "/?&=":
                continue
            changed = url[:at] + ("0" if url[at] != "0" else "1") + url[at + 1 :]
            answer = client.get(changed)
            assert answer.status_code in (403, 404), (at, changed)
            assert answer.status_code == 403 or "?" not in url[:at], changed  # what is signed is looked at first
        assert client.get(url).status_code == 200


def test_H13_another_file_or_account_needs_another_signature(world, checkpoint, key, hostile):
    both = urls(world.base_url, checkpoint, key)
    stranger = Raw(world.base_url, world.account("stranger")[1])
    weights, config = both["adapter_model.safetensors"], both["adapter_config.json"]
    for wrong in (
        config.replace("adapter_config.json", "adapter_model.safetensors"),
        config.split("?")[0] + "?" + weights.split("?")[1],
        config.split("?")[0],
        config + "&account=x",
        config.replace("account=", "account=x&account="),
        re.sub("signature=.*", "signature=", config),
        re.sub("signature=.*", "signature=" + "0" * 64, config),
    ):
        answer = httpx.get(wrong, headers={"X-API-Key": stranger.key}, timeout=60)
        assert answer.status_code == 403 or wrong == config + "&account=x", wrong
