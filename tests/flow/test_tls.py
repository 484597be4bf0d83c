"""HTTPS by configuration, with a certificate of our own making; and bodies that come compressed."""

import os
import re
import socket
import ssl
import subprocess
import sys

import httpx
import pytest
import tinker
from sdk import batch_of, end, lora, train
from stack import ROOT

SDK = """
import sys, tinker
sys.path[:0] = [sys.argv[3]]
from sdk import end, lora, train
service = tinker.ServiceClient(base_url=sys.argv[1], api_key=sys.argv[2])
client = lora(service, "tinworks/tiny")
print(train(client, 2))
end(service)
"""


def openssl(*words, folder):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """ca.pem, server.pem and server.key for 127.0.0.1, and other.key, which is nobody's."""
    folder = tmp_path_factory.mktemp("tls")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(
        "req",
        "-x509",
        *curve,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-days",
        "2",
        "-subj",
        "/CN=test authority",
        folder=folder,
    )
    openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1", folder=folder)
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
    openssl(
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "ext",
        "-out",
        "server.pem",
        folder=folder,
    )
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "other.key", folder=folder)
    return folder


@pytest.fixture(scope="module")
def secure(stack, certificates):
    """host:port of a gateway that speaks TLS."""
    flags = {"tls_certificate": certificates / "server.pem", "tls_key": certificates / "server.key"}
    with stack.another("gateway", rb"gateway\.ready listen=(\S+)", port=0, gateway_name="tls", **flags) as found:
        yield found.group(1).decode()


@pytest.fixture
def client(secure, certificates, first_account):
    trusted = ssl.create_default_context(cafile=certificates / "ca.pem")
    with httpx.Client(base_url=f"https://{secure}", verify=trusted, headers={"X-API-Key": first_account[1]}, timeout=60) as it:
        yield it


def test_a_client_that_trusts_the_certificate_is_served_on_one_connection(client):
    for _ in range(3):
        assert client.get("/api/v1/healthz").status_code == 200
    session = client.post("/api/v1/create_session", json={"tags": [], "sdk_version": "0.38.0"}).json()["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "base_model": "tinworks/tiny", "lora_config": {"rank": 8}}
    request = client.post("/api/v1/create_model", json=body).json()["request_id"]
    answer = client.post("/api/v1/retrieve_future", json={"request_id": request})  # parked, then answered
    while "try_again" in answer.text:
        answer = client.post("/api/v1/retrieve_future", json={"request_id": request})
    assert answer.json()["model_id"] == f"{session}:train:0"


def test_a_body_of_megabytes_and_a_refusal_go_through_tls(client):
    answer = client.post("/api/v1/forward_backward", content=b"x" * (12 << 20))
    assert answer.status_code == 400 and answer.json()["detail"]
    answer = client.post("/api/v1/telemetry", content=b"x" * (2 << 20))
    assert answer.status_code == 413


def test_the_sdk_trains_over_https(stack, secure, certificates, first_account):
    environ = {**os.environ, "SSL_CERT_FILE": str(certificates / "ca.pem"), "TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", SDK, f"https://{secure}", first_account[1], str(ROOT / "tests" / "support")]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    service = stack.service(first_account[1])
    assert done.stdout.strip().splitlines()[-1] == str(train(lora(service, stack.model), 2))  # the same bits as over http
    end(service)


def test_download_addresses_are_https(client, stack, first_account):
    service = stack.service(first_account[1])
    run = lora(service, stack.model)
    run.save_weights_external("over-tls").result()
    path = f"/api/v1/training_runs/{run.model_id}/checkpoints/external_weights/over-tls/external_weights_urls"
    url = client.get(path).json()["urls"]["adapter_config.json"]
    assert url.startswith("https://") and client.get(url).json()["peft_type"] == "LORA"
    end(service)


def test_who_speaks_something_else_gets_nothing(secure):
    host, port = secure.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as plain:
        plain.sendall(b"GET /api/v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            assert b"HTTP/" not in plain.recv(1000)
        except ConnectionError:
            pass
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, int(port)), timeout=60) as line, pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(line)


@pytest.mark.parametrize(
    "certificate, key, told",
    [
        ("missing.pem", "server.key", 'could not read the certificate ".*missing.pem": No such file'),
        ("server.pem", "missing.key", 'could not read the key ".*missing.key": No such file'),
        ("server.pem", "other.key", 'certificate ".*server.pem" and key ".*other.key" cannot be used'),
        ("server.csr", "server.key", "cannot be used"),
        ("ext", "server.key", "cannot be used"),
        ("server.pem", "", "TLS has a certificate and no key"),
        ("", "server.key", "TLS has a key and no certificate"),
    ],
)
def test_files_that_cannot_be_used_end_the_start_with_a_reason(stack, certificates, certificate, key, told):
    build = stack.environ.get("TINWORKS_BUILD_DIR", ROOT / "build" / "release")
    flags = {"tls-certificate": certificate and certificates / certificate, "tls-key": key and certificates / key}
    words = [f"{build}/gateway/tinworks-gateway", "--port=0", *(f"--{name}={value}" for name, value in flags.items() if value)]
    done = subprocess.run(words, env={**stack.environ, **stack.settings}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "gateway.ready" not in done.stderr
    assert re.search(told, done.stderr.replace('\\"', '"')), done.stderr


def test_compressed_bodies_are_the_same_jobs(stack, first_account, service):
    """The SDK is told to compress; what it computes is bit for bit the same."""
    plain = train(lora(service, stack.model), 2)
    with stack.another_gateway(zstd=1, log_requests=1) as url:
        packing = tinker.ServiceClient(base_url=url, api_key=first_account[1])
        assert train(lora(packing, stack.model), 2, make=batch_of) == plain
        end(packing)
