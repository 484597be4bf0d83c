"""Requests that can be read, with values that should not be there: rows H5 to H7, H9 and H11."""

import json
import pathlib
import urllib.parse

import httpx
import pytest
from raw import ADAM, datum
from tinker.proto import tinker_public_pb2 as pb


@pytest.fixture(scope="module")
def http(world, key):
    with httpx.Client(base_url=f"{world.base_url}/api/v1/", headers={"X-API-Key": key}, timeout=60) as client:
        yield client


def post(http, route, body, kind="application/json"):
    return http.post(route, content=body, headers={"Content-Type": kind})


def refused(answer):
    assert answer.status_code == 400, (answer.status_code, answer.text[:300])
    assert len(answer.json()["detail"]) > 5
    return answer.json()["detail"]


def failed(hostile, answer):
    """The error of a future that failed as the user's; a 400 says it too."""
    if answer.status_code == 400:
        return refused(answer)
    assert answer.status_code == 200, (answer.status_code, answer.text[:300])
    kind, body = hostile.raw.result(answer.json()["request_id"])
    told = json.loads(body)
    assert kind == "application/json" and told["category"] == "user", told
    return told["error"]


def goes_on(hostile):
    """The run takes its next step, whatever was refused."""
    kind, body = hostile.raw.result(hostile.run.step())
    assert "metrics" in json.loads(body), body


def numbered(hostile, body):
    hostile.run.seq += 1
    return {"model_id": hostile.run.id, "seq_id": hostile.run.seq, **body}


# ------------------------------------------------------------ H5

BROKEN_JSON = {
    "100,000 lists": b'{"a": ' + b"[" * 100000 + b"]" * 100000 + b"}",
    "100,000 open lists": b'{"a": ' + b"[" * 100000,
    "33 levels": b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}",
    "the same key twice": b'{"tags": [], "tags": ["x"]}',
    "the same key twice, once escaped": b'{"tags": [], "t\\u0061gs": ["x"]}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "1e400": b'{"a": 1e400}',
    "2^63": b'{"a": 9223372036854775808}',
    "a NUL by name": b'{"tags": ["a\\u0000b"]}',
    "a NUL": b'{"tags": ["a\0b"]}',
    "a lone surrogate": b'{"tags": ["\\ud800"]}',
    "a surrogate as UTF-8": b'{"tags": ["\xed\xa0\x80"]}',
    "an overlong slash": b'{"tags": ["\xc0\xaf"]}',
    "a byte order mark": b'\xef\xbb\xbf{"tags": []}',
    "UTF-16": '{"tags": []}'.encode("utf-16"),
    "trailing bytes": b'{"tags": []} {"tags": []}',
    "trailing NUL": b'{"tags": []}\0',
    "a comment": b'{"tags": [] /* none */}',
    "half": b'{"tags": [',
    "nothing": b"",
    "a list": b"[]",
    "a number": b"7",
}


@pytest.mark.parametrize("what", BROKEN_JSON)
def test_H05_json_that_is_none_is_400(http, what):
    for route in ("create_session", "asample", "optim_step", "retrieve_future", "forward_backward", "telemetry"):
        if route != "telemetry":
            refused(post(http, route, BROKEN_JSON[what]))
        else:
            assert post(http, route, BROKEN_JSON[what]).status_code in (200, 400)


@pytest.mark.parametrize("value", ["1e308", "-1", "1.7976931348623157e308", '"1"', "[]", "true", "9223372036854775807"])
def test_H05_a_number_that_cannot_be_right_fails_the_future(http, hostile, value):
    text = json.dumps(numbered(hostile, {"adam_params": {**ADAM, "beta1": "here"}})).replace('"here"', value)
    assert "beta1" in failed(hostile, post(http, "optim_step", text))
    goes_on(hostile)


@pytest.mark.parametrize("value", ["0", "-1", "2147483648", "9223372036854775807", "1.5", '"1"', "[]"])
def test_H05_a_number_of_a_call_that_cannot_be_right_is_400(http, hostile, value):
    text = json.dumps({"model_id": hostile.run.id, "seq_id": "here", "adam_params": ADAM}).replace('"here"', value)
    assert "seq_id" in refused(post(http, "optim_step", text))


# ------------------------------------------------------------ H6


def request_of(hostile):
    message = pb.ForwardBackwardRequest(model_id=hostile.run.id, seq_id=hostile.run.seq + 1, loss_fn="cross_entropy")
    it = message.data.add()
    it.model_input.add().encoded_text.tokens = bytes([5, 0, 0, 0, 6, 0, 0, 0])
    for name, kind in (("target_tokens", pb.DTYPE_INT64), ("weights", pb.DTYPE_FLOAT32)):
        tensor = it.loss_fn_inputs[name]
        tensor.dtype = kind
        tensor.shape.append(2)
        tensor.dense = bytes(16 if kind == pb.DTYPE_INT64 else 8)
    return message.SerializeToString()


def broken_messages(whole):
    deep = b""
    for _ in range(1000):  # Datum > model_input > ... of unknown field 15
        deep = b"\x7a" + varint(len(deep)) + deep
    yield "a truncated varint", whole + b"\x10\xff"
    yield "a varint of eleven bytes", whole + b"\x10" + b"\xff" * 10 + b"\x01"
    yield "a length beyond the end", whole + b"\x1a\xff\xff\xff\x7f\x00"
    yield "a length of 2^64", whole + b"\x1a" + b"\xff" * 9 + b"\x01"
    yield "a million groups", b"\x7b" * 1000000
    yield "a group that does not end", whole + b"\x7b"
    yield "a group's end", whole + b"\x7c"
    yield "field number 0", whole + b"\x00\x00"
    yield "wire type 7", whole + b"\x0f"
    yield "seq_id as text", whole.replace(b"\x10", b"\x12", 1)
    yield "model_id as a number", b"\x08\x05" + whole[2:]
    yield "model_id that is no UTF-8", b"\x0a\x04\xff\xfe\xff\xfe" + b"\x10\x01"
    yield "noise", bytes(range(256)) * 100
    yield "nothing", b""
    yield "a thousand levels", deep


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def test_H06_protobuf_that_is_none_is_400_or_a_failed_future(http, hostile):
    whole = request_of(hostile)
    for what, body in broken_messages(whole):
        answer = post(http, "forward_backward", body, "application/x-protobuf")
        assert answer.status_code in (400, 404), (what, answer.status_code, answer.text)
        assert answer.json()["detail"], what
    for cut in range(1, len(whole)):  # every prefix is no request, or one that lacks something
        answer = post(http, "forward_backward", whole[:cut], "application/x-protobuf")
        if answer.status_code == 200:
            hostile.run.seq += 1
            assert failed(hostile, answer)
            whole = request_of(hostile)
        else:
            assert answer.status_code in (400, 404), (cut, answer.text)
    goes_on(hostile)


def test_H06_packed_and_unpacked_shapes_are_the_same(http, hostile):
    def sent(body):
        hostile.run.seq += 1
        answer = post(http, "forward_backward", body, "application/x-protobuf")
        assert answer.status_code == 200, answer.text
        return hostile.raw.result(answer.json()["request_id"])

    packed = sent(request_of(hostile))
    assert sent(unpacked(pb.ForwardBackwardRequest.FromString(request_of(hostile)))) == packed


def unpacked(message):
    """The same message with every shape unpacked, written by hand from the inside out."""

    def field(number, value):
        return varint(number << 3 | 2) + varint(len(value)) + value

    [it] = message.data
    inputs = b"".join(
        field(
            2,
            field(1, name.encode())
            + field(2, field(1, t.dense) + b"\x18" + varint(t.dtype) + b"".join(b"\x20" + varint(n) for n in t.shape)),
        )
        for name, t in sorted(it.loss_fn_inputs.items())
    )
    data = field(3, field(1, field(1, field(1, it.model_input[0].encoded_text.tokens))) + inputs)
    return field(1, message.model_id.encode()) + b"\x10" + varint(message.seq_id) + data + field(4, message.loss_fn.encode())


# ------------------------------------------------------------ H7


def wrong_passes():
    def of(change):
        it = datum([5, 6, 7, 8])
        change(it)
        return [it]

    def tensor(it, name, **what):
        it["loss_fn_inputs"][name].update(what)

    def tokens(it, value):
        it["model_input"]["chunks"][0]["tokens"] = value

    yield "token -1", of(lambda it: tokens(it, [5, -1, 7]))
    yield "token beyond the vocabulary", of(lambda it: tokens(it, [5, 4096, 7]))
    yield "token 2^31", of(lambda it: tokens(it, [5, 2**31, 7]))
    yield "token 2^32 + 5", of(lambda it: tokens(it, [5, 2**32 + 5, 7]))
    yield "a token that is text", of(lambda it: tokens(it, [5, "6", 7]))
    yield "target -1", of(lambda it: tensor(it, "target_tokens", data=[6, -1, 8]))
    yield "a shape whose product overflows", of(lambda it: tensor(it, "weights", shape=[2**32, 2**32]))
    yield "a shape of 2^62", of(lambda it: tensor(it, "weights", shape=[2**62, 4]))
    yield "a negative shape", of(lambda it: tensor(it, "weights", shape=[-3]))
    yield "nine dimensions", of(lambda it: tensor(it, "weights", shape=[3] + [1] * 8))
    yield "fewer values than the shape", of(lambda it: tensor(it, "weights", data=[1.0]))
    yield "more targets than tokens", of(lambda it: tensor(it, "target_tokens", data=[6, 7, 8, 9], shape=[4]))
    yield "an unknown dtype", of(lambda it: tensor(it, "weights", dtype="float8"))
    yield "a weight beyond float32", of(lambda it: tensor(it, "weights", data=[1.0, 1e39, 1.0]))
    yield "no tokens", of(lambda it: tokens(it, []))
    yield "no chunks", of(lambda it: it["model_input"].update(chunks=[]))
    yield "no datums", []
    yield "1,025 datums", [datum([5, 6])] * 1025
    yield "no inputs", of(lambda it: it.update(loss_fn_inputs={}))


@pytest.mark.parametrize("what, data", list(wrong_passes()), ids=[what for what, _ in wrong_passes()])
def test_H07_wrong_datums_fail_their_future_and_the_run_goes_on(http, hostile, what, data):
    body = numbered(hostile, {"forward_backward_input": {"data": data, "loss_fn": "cross_entropy"}})
    answer = http.post("forward_backward", json=body)
    assert answer.status_code == 200, answer.text  # it has a number, which must not stay open
    assert failed(hostile, answer)
    goes_on(hostile)


@pytest.mark.parametrize("bits", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"], ids=["NaN", "+inf", "-inf"])
def test_H07_weights_that_are_no_numbers_fail_their_future(http, hostile, bits):
    message = pb.ForwardBackwardRequest.FromString(request_of(hostile))
    message.data[0].loss_fn_inputs["weights"].dense = bits + bytes(4)
    hostile.run.seq += 1
    assert "weights" in failed(hostile, post(http, "forward_backward", message.SerializeToString(), "application/x-protobuf"))
    goes_on(hostile)


@pytest.mark.parametrize(
    "prompt, params",
    [
        ([], {}),
        ([-1], {}),
        ([2**31], {}),
        ([4096], {}),
        ([5], {"max_tokens": -1}),
        ([5], {"temperature": 1e308 * 10}),
        ([5], {"stop": [""]}),
    ],
)
def test_H07_wrong_samples_fail_alone(http, hostile, prompt, params):
    hostile.asked = getattr(hostile, "asked", 0) + 1
    body = {
        "sampling_session_id": hostile.sampler_id,
        "seq_id": hostile.asked,
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": prompt}]},
        "sampling_params": {"max_tokens": 4, **params},
    }
    assert failed(hostile, post(http, "asample", json.dumps(body)))


# ------------------------------------------------------------ H9

BAD_NAMES = [
    "../x",
    "a/../../b",
    "%2e%2e",
    "%2e%2e%2fx",
    "..",
    ".",
    "",
    "-rf",
    ".hidden",
    "a/b",
    "a\\b",
    "a b",
    "a" * 129,
    "a" * 300,
    "ａ",
    "а",
    "a\u202eb",
    "a\n",
    "~",
    "$(id)",
]


def test_H09_names_that_lead_elsewhere_are_refused(world, http, hostile):
    before = {p for p in pathlib.Path(world.environ["TINWORKS_DATA"]).rglob("*")}
    for name in BAD_NAMES:
        for route in ("save_weights", "save_weights_for_sampler", "save_weights_external"):
            if name == "" and route == "save_weights_for_sampler":
                continue  # a sampler without a name is a thing of its own
            assert failed(hostile, http.post(route, json=numbered(hostile, {"path": name}))), (route, name)
    made = {p for p in pathlib.Path(world.environ["TINWORKS_DATA"]).rglob("*")} - before
    assert all(hostile.run.id.split(":")[0] in str(p) for p in made), made
    assert not [p for p in world.home.parent.rglob("*") if p.name in BAD_NAMES]
    goes_on(hostile)


def test_H09_paths_that_lead_elsewhere_are_refused(http, hostile):
    run = hostile.run.id
    for path in (
        f"tinker://{run}/weights/../../x",
        f"tinker://{run}/../weights/x",
        "tinker://../weights/x",
        f"tinker://{run}/weights/%2e%2e",
        "file:///etc/passwd",
        f"tinker://{run}/weights/",
        "tinker://",
        "/etc/passwd",
        f"tinker://{run}/weights/{'a' * 300}",
    ):
        assert http.post("weights_info", json={"tinker_path": path}).status_code in (400, 404), path
        assert failed(hostile, http.post("load_weights", json=numbered(hostile, {"path": path, "optimizer": True}))), path
    for path in (
        "training_runs/%2e%2e/checkpoints",
        "training_runs/..%2f..%2fx",
        f"training_runs/{run}/checkpoints/weights/%2e%2e/archive",
        f"training_runs/{run}/checkpoints/weights/..%2fx/archive",
        "files/%2e%2e/0/1/secret",
        "files/x/0/1/..%2f..%2fsecret",
        "%2e%2e/%2e%2e/etc/passwd",
    ):
        assert http.get(path).status_code in (400, 403, 404), path
    assert http.get(f"training_runs/{run}/checkpoints/weights/a%00b/archive").status_code == 400
    goes_on(hostile)


def test_H09_a_planted_link_is_not_followed(world, http, hostile):
    job = hostile.run.send("save_weights_external", {"path": "linked"})
    told = json.loads(hostile.raw.result(job)[1])
    assert "path" in told, told
    [(folder,)] = world.sql("select dir from checkpoints where run_id = %s and name = 'linked'", hostile.run.id)
    url = f"training_runs/{hostile.run.id}/checkpoints/external_weights/linked/external_weights_urls"
    address = http.get(url).json()["urls"]["adapter_model.safetensors"]
    assert httpx.get(address, timeout=60).status_code == 200
    file = pathlib.Path(world.environ["TINWORKS_DATA"]) / folder / "adapter_model.safetensors"
    file.unlink()
    file.symlink_to(world.home / "secret")
    answer = httpx.get(address, timeout=60)
    assert answer.status_code in (404, 500) and world.secret not in answer.text
    folder = file.parent
    folder.rename(folder.with_name(folder.name + ".away"))
    folder.symlink_to(world.home)
    answer = httpx.get(address.replace("adapter_model.safetensors", "adapter_config.json"), timeout=60)
    assert answer.status_code in (403, 404, 500)
    folder.unlink()
    folder.with_name(folder.name + ".away").rename(folder)
    goes_on(hostile)


# ------------------------------------------------------------ H11

METACHARACTERS = [
    "'; drop table accounts; --",
    "' or '1'='1",
    "$1",
    "%s%n%x",
    "\\'; select pg_sleep(60); --",
    "*\r\n$4\r\nPING\r\n",
    "a\r\nSet-Cookie: x=y",
    '{"a": 1}',
    "<script>alert(1)</script>",
    "x\u2028y\u2029\u202e",
    "\x7f\x1b[2J",
    "%00",
    "\U0001f4a3" * 20,
]


@pytest.mark.parametrize("text", METACHARACTERS)
def test_H11_metacharacters_are_data(world, http, hostile, text):
    log = world["gateway"].log
    before, accounts = log.stat().st_size, world.sql("select count(*) from accounts")
    made = http.post(
        "create_session",
        json={"tags": [text], "user_metadata": {"k": text, text: "v"}, "sdk_version": text, "project_id": None},
    )
    if made.status_code == 200:
        session = made.json()["session_id"]
        assert world.sql("select tags->>0, user_metadata->>'k' from sessions where id = %s", session) == [(text, text)]
        assert http.get(f"sessions/{session}").status_code == 200
    else:
        refused(made)
    answers = [
        http.post("create_session", json={"tags": [], "sdk_version": "0", "project_id": text}),
        http.post("sessions/search", json={"query": text}),
        http.post("get_info", json={"model_id": text}),
        http.post("retrieve_future", json={"request_id": text}),
        http.post("cancel_future", json={"request_id": text}),
        http.post("create_sampling_session", json={"session_id": text, "sampling_session_seq_id": 0, "base_model": text}),
        http.post(
            "create_model", json={"session_id": hostile.id, "model_seq_id": 900, "base_model": text, "lora_config": {"rank": 8}}
        ),
        http.post("weights_info", json={"tinker_path": text}),
        http.post("telemetry", json={"events": [{"event": text}], "session_id": text}),
        http.get("training_runs", params={"project_id": text, "limit": text}),
        http.get("audit", params={"day": text}),
        http.get(f"sessions/{urllib.parse.quote(text, safe='')}"),
    ]
    for answer in answers:
        assert answer.status_code in (200, 400, 404), (answer.request.url, answer.status_code, answer.text)
        assert "Set-Cookie" not in answer.headers
    assert world.sql("select count(*) from accounts") == accounts
    with log.open("rb") as f:
        f.seek(before)
        lines = f.read()
    assert b"PING\r\n" not in lines and b"\x1b" not in lines and b" error " not in lines, lines
    goes_on(hostile)
