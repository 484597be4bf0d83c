"""Bytes that are no proper request: rows H1 to H4."""

import concurrent.futures
import pathlib
import re
import resource
import threading
import time

import httpx
import pytest
import zstandard
from wire import Line, exchange, head, statuses
from waiting import wait_for

MIB = 1 << 20
PASS_MAX = 12 * MIB  # of forward_backward, on the wire and unpacked
IDLE = 5000
STRANGERS = ("127.0.0.2", "127.0.0.3")  # one address may have 4,096 connections


def resident(world, what="VmRSS"):
    status = pathlib.Path(f"/proc/{world['gateway'].pid}/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status).group(1)) * 1024


# ------------------------------------------------------------ H1


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["Content-Length: 12582913"], 413),
        (["Content-Length: 1099511627776"], 413),
        (["Content-Length: 99999999999999999999999999"], 413),
        (["Transfer-Encoding: chunked"], 411),
        ([], 411),
    ],
    ids=["one byte too long", "a tebibyte", "no number holds it", "chunked", "no length"],
)
def test_H01_a_body_over_its_limit_is_refused_and_the_connection_closed(world, address, key, lines, expected):
    before = resident(world)
    body = b"1000\r\n" + b"x" * (4 * MIB)
    for _ in range(8):
        answer = exchange(address, head("POST", "/api/v1/forward_backward", *lines, key=key) + body)
        assert set(statuses(answer)) <= {expected}  # none, when our own bytes in flight were answered with a reset
    with Line(address) as line:  # who waits for the answer gets it, and then the end
        line.send(head("POST", "/api/v1/forward_backward", *lines, key=key))
        assert statuses(line.to_the_end())[0] == expected
    assert resident(world) < before + 8 * MIB


def test_H01_a_client_that_sends_too_much_is_told(world, key):
    """A whole client in the middle of sending still hears why."""
    answer = httpx.post(
        f"{world.base_url}/api/v1/forward_backward", content=b"x" * (PASS_MAX + 1), headers={"X-API-Key": key}, timeout=60
    )
    assert answer.status_code == 413 and "12582913 bytes" in answer.json()["detail"]


# ------------------------------------------------------------ H2


def bomb(size, window_log=20, says_size=False):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log, write_content_size=says_size)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size if says_size else -1)
    zeros = bytes(MIB)
    return b"".join(packer.compress(zeros) for _ in range(size // MIB)) + packer.flush()


def packed(world, key, body, route="forward_backward"):
    headers = {"X-API-Key": key, "Content-Encoding": "zstd", "Content-Type": "application/x-protobuf"}
    return httpx.post(f"{world.base_url}/api/v1/{route}", content=body, headers=headers, timeout=60)


def test_H02_a_bomb_is_stopped_at_the_limit(world, key):
    before = resident(world, "VmHWM")
    bombs = {
        "a gibibyte": bomb(1024 * MIB),
        "and it says so": bomb(1024 * MIB, says_size=True),
        "a window of 128 MiB": bomb(256 * MIB, window_log=27),
        "one byte over": zstandard.compress(b"x" * (PASS_MAX + 1)),
    }
    for what, body in bombs.items():
        assert packed(world, key, body).status_code == 413, what
    assert resident(world, "VmHWM") < before + 64 * MIB


def test_H02_frames_in_frames_and_halves_are_400(world, key):
    inner = zstandard.compress(b"\x0a\x01x" * 1000)
    for body in (zstandard.compress(inner), inner + inner, inner[:-3], b"", b"plain", b"\x28\xb5\x2f\xfd"):
        assert packed(world, key, body).status_code == 400, body[:40]
    assert packed(world, key, inner, "optim_step").status_code == 415


# ------------------------------------------------------------ H3

SMUGGLED = '{"tags": ["smuggled"], "sdk_version": "0.38.0"}'


def smuggled(key):
    return head("POST", "/api/v1/create_session", f"Content-Length: {len(SMUGGLED)}", key=key) + SMUGGLED.encode()


AMBIGUOUS = {
    "both lengths": ["Content-Length: 4", "Transfer-Encoding: chunked"],
    "the other way round": ["Transfer-Encoding: chunked", "Content-Length: 4"],
    "two lengths": ["Content-Length: 4", "Content-Length: 0"],
    "the same length twice": ["Content-Length: 0", "Content-Length: 0"],
    "a list of lengths": ["Content-Length: 0, 0"],
    "a sign": ["Content-Length: +0"],
    "minus": ["Content-Length: -0"],
    "hexadecimal": ["Content-Length: 0x0"],
    "an empty length": ["Content-Length:"],
    "a bare LF": ["Content-Length: 4\nTransfer-Encoding: chunked"],
    "a bare LF in front": ["X: y\nContent-Length: 0"],
    "a bare CR": ["X: y\rContent-Length: 0"],
    "a folded header": ["Content-Length: 0", "X: a\r\n b"],
    "a folded length": ["Content-Length:\r\n 0"],
    "a space before the colon": ["Content-Length : 0"],
    "a tab before the colon": ["Content-Length\t: 0"],
    "a line that is no header": ["Content-Length: 0", "what is this"],
    "a NUL": ["Content-Length: 0", "X: a\0b"],
    "a name with a space": ["Content-Length: 0", "X Y: a"],
    "an encoding that is not ours": ["Transfer-Encoding: gzip, chunked"],
    "an encoding in disguise": ["Transfer-Encoding: xchunked"],
    "a chunk size that overflows": ["Transfer-Encoding: chunked"],
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_H03_what_could_be_read_in_two_ways_is_one_refusal(world, address, key, what):
    chunks = b"fffffffffffffffff0\r\n\r\n" if "overflows" in what else b"0\r\n\r\n"
    request = head("POST", "/api/v1/optim_step", *AMBIGUOUS[what], key=key) + chunks + smuggled(key)
    answers = exchange(address, request)
    assert statuses(answers) and set(statuses(answers)) <= {400, 411}, answers
    assert b"session_id" not in answers
    assert world.sql("select count(*) from sessions where tags ? 'smuggled'") == [(0,)]


def test_H03_an_empty_line_that_is_a_bare_LF_is_refused(world, address, key):
    for end in (b"\n\r\n", b"\r\n\n", b"\n\n"):
        request = head("GET", "/api/v1/healthz")[:-4] + end + smuggled(key)
        answers = exchange(address, request)
        assert set(statuses(answers)) == {400} and b"session_id" not in answers, answers


def test_H03_heads_without_end_are_refused(address, key):
    assert 414 in statuses(exchange(address, head("GET", "/api/v1/" + "a" * 8192)))
    assert set(statuses(exchange(address, head("GET", "/api/v1/" + "a" * 100000)))) <= {414}
    many = [f"X-{i}: 1" for i in range(100)]
    assert 431 in statuses(exchange(address, head("GET", "/api/v1/healthz", *many)))
    assert set(statuses(exchange(address, head("GET", "/api/v1/healthz", "X: " + "y" * 9000)))) == {431}
    assert set(statuses(exchange(address, head("GET", "/api/v1/healthz", "X: " + "y" * 100000)))) <= {431}
    assert 200 in statuses(exchange(address, head("GET", "/api/v1/healthz", *many[:90], "Connection: close")))


# ------------------------------------------------------------ H4


def drip(address, first, source):
    """One byte a second until we are cut: for how many seconds that was allowed."""
    with Line(address, source) as line:
        line.send(first)
        began = time.monotonic()
        line.socket.settimeout(1)
        for _ in range(60):
            try:
                if not line.socket.recv(1):
                    break
            except TimeoutError:
                pass
            except ConnectionError:
                break
            try:
                line.send(b"a")
            except ConnectionError:
                break
        else:
            raise AssertionError("a client may drip for a minute")
    return time.monotonic() - began


def test_H04_slow_clients_and_idle_connections_are_cut_and_nobody_else_notices(world, address, key, good):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < IDLE + 1000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, IDLE + 1000), hard))
    served, expected = good
    cuts = world.counters("gateway:0").get("connections_cut", 0)
    body = head("POST", "/api/v1/optim_step", "Content-Length: 1000", key=key)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        slow = [
            pool.submit(drip, address, first, STRANGERS[0]) for first in (b"GET /api/v1/healthz HTTP/1.1\r\nX: ", b"G", body)
        ]
        idle = [Line(address, STRANGERS[i % len(STRANGERS)]) for i in range(IDLE)]
        for _ in range(20):
            assert served() == expected
        assert all(5 <= it.result() <= 40 for it in slow), [it.result() for it in slow]
    for line in idle:
        line.socket.settimeout(60)
        assert line.to_the_end() == b""
        line.socket.close()
    wait_for(lambda: world.counters("gateway:0")["connections_cut"] >= cuts + IDLE + 3, "the cuts to be counted")


@pytest.fixture
def patient(world):
    """The address of a gateway that waits long for a head."""
    it = world.process("gateway", "gateway8", head_s=600).start()
    yield it.url.removeprefix("http://")
    assert it.drain() == 0


def test_H04_one_address_has_so_many_connections_and_no_more(patient):
    lines, refused = [], threading.Event()
    end = time.monotonic() + 120
    while not refused.is_set() and time.monotonic() < end:
        line = Line(patient, "127.0.0.4")
        lines.append(line)
        if len(lines) > 4000:  # then it is closed at once, without a byte
            line.socket.settimeout(0.05)
            try:
                refused.set() if line.socket.recv(1) == b"" else None
            except TimeoutError:
                pass
            except ConnectionError:
                refused.set()
    assert refused.is_set() and 4000 < len(lines) <= 4100
    for line in lines:
        line.socket.close()
