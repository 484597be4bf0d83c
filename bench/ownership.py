"""Ownership: does the time to answer tell a stranger which ids exist?

    ./tinworks bench ownership [--json] [--rounds N]

An account makes one of everything; another one asks for it at every kind of address, over one connection, one call at a time.
Each round asks in random order for

  theirs    the other account's id
  missing   an id of the same form and length that never was, a new one each time
  control   the same as missing once more: how far two equal things lie apart
  forged    the other account's id with its last letter changed (a request id's tag, a checkpoint's name)

All are 404.  Shown are the median time of missing, and the medians of how far the others lie from missing in the same round, in
percent of it: what else the machine does meanwhile moves whole rounds, and cancels out.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import re
import secrets
import statistics
import subprocess
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}
CASES = ("theirs", "missing", "control", "forged")
WARM_ROUNDS = 20


def tinworks(*words):
    return subprocess.run([ROOT / "tinworks", *words], check=True, capture_output=True, text=True).stdout


class Account:
    def __init__(self, name):
        account = tinworks("account", "create", f"{name}-{secrets.token_hex(4)}", "--credit-usd", "1").strip().split("\n")[-1]
        tinworks("account", "limit", account, "--requests-per-minute", "0")
        self.key = re.search(r"tml-[a-z2-7-]+", tinworks("key", "create", "--account", account)).group()
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["TINKER_BASE_URL"]).netloc, timeout=60)

    def __call__(self, method, address, body=None):
        """(status, bytes, seconds)"""
        headers = {"X-API-Key": self.key, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        began = time.perf_counter()
        self.connection.request(method, f"/api/v1/{address}", data, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        return answer.status, content, time.perf_counter() - began

    def must(self, address, body):
        status, content, _ = self("POST", address, body)
        assert status == 200, content
        return json.loads(content)

    def result(self, submitted):
        while "try_again" in str(found := self.must("retrieve_future", {"request_id": submitted["request_id"]})):
            pass
        return found


def make_things(owner):
    """The ids of one of everything."""
    [model, *_] = json.loads(owner("GET", "get_server_capabilities")[1])["supported_models"]
    session = owner.must("create_session", {"tags": [], "sdk_version": "bench"})["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "base_model": model["model_name"], "lora_config": {"rank": 4}}
    run = owner.result(owner.must("create_model", body))["model_id"]
    owner.result(owner.must("save_weights", {"model_id": run, "seq_id": 1, "path": "kept"}))
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": model["model_name"]}
    sampler = owner.must("create_sampling_session", body)["sampling_session_id"]
    body = {"sampling_session_id": sampler, "seq_id": 0, "prompt": PROMPT, "sampling_params": {"max_tokens": 1}}
    return {"session": session, "run": run, "sampler": sampler, "name": "kept", "request": owner.must("asample", body)["request_id"]}


def unknown(things):
    """The same with a session that never was."""
    session = "s" + "".join(random.choices(BASE32, k=len(things["session"]) - 1))
    return {name: value.replace(things["session"], session) for name, value in things.items()}


def forged(things):
    return {name: value[:-1] + ("b" if value[-1] != "b" else "c") for name, value in things.items()}


def calls():
    """What is asked for, by the ids that it takes."""
    step = {"seq_id": 9, "adam_params": {}}
    config = {"model_seq_id": 70, "base_model": "x", "lora_config": {"rank": 4}}
    sample = {"seq_id": 7, "prompt": PROMPT, "sampling_params": {"max_tokens": 1}}
    return {
        "GET sessions/*": lambda t: ("GET", f"sessions/{t['session']}", None),
        "POST sessions/*/finish": lambda t: ("POST", f"sessions/{t['session']}/finish", {"reason": {"type": "success"}}),
        "POST session_heartbeat": lambda t: ("POST", "session_heartbeat", {"session_id": t["session"]}),
        "POST create_model": lambda t: ("POST", "create_model", {"session_id": t["session"], **config}),
        "GET training_runs/*": lambda t: ("GET", f"training_runs/{t['run']}", None),
        "GET training_runs/* accessible": lambda t: ("GET", f"training_runs/{t['run']}?access_scope=accessible", None),
        "GET training_runs/*/checkpoints": lambda t: ("GET", f"training_runs/{t['run']}/checkpoints", None),
        "POST get_info": lambda t: ("POST", "get_info", {"model_id": t["run"]}),
        "POST optim_step": lambda t: ("POST", "optim_step", {"model_id": t["run"], **step}),
        "POST weights_info": lambda t: ("POST", "weights_info", {"tinker_path": f"tinker://{t['run']}/weights/{t['name']}"}),
        "PUT .../ttl": lambda t: ("PUT", f"training_runs/{t['run']}/checkpoints/weights/{t['name']}/ttl", {"ttl_seconds": 3600}),
        "GET .../archive": lambda t: ("GET", f"training_runs/{t['run']}/checkpoints/weights/{t['name']}/archive", None),
        "DELETE .../checkpoints/*/*": lambda t: ("DELETE", f"training_runs/{t['run']}/checkpoints/weights/{t['name']}", None),
        "GET samplers/*": lambda t: ("GET", f"samplers/{t['sampler']}", None),
        "POST asample": lambda t: ("POST", "asample", {"sampling_session_id": t["sampler"], **sample}),
        "POST retrieve_future": lambda t: ("POST", "retrieve_future", {"request_id": t["request"]}),
        "POST cancel_future": lambda t: ("POST", "cancel_future", {"request_id": t["request"]}),
    }


def measure(stranger, make, things, rounds):
    """(median of missing in microseconds, {case: median distance from it in percent})"""
    times = {case: [] for case in CASES}
    for number in range(WARM_ROUNDS + rounds):
        order = {"theirs": things, "missing": unknown(things), "control": unknown(things), "forged": forged(things)}
        for case in random.sample(CASES, len(CASES)):
            status, content, seconds = stranger(*make(order[case]))
            assert status == 404, (case, status, content)
            if number >= WARM_ROUNDS:
                times[case].append(seconds * 1e6)
    base = statistics.median(times["missing"])
    return base, {
        case: statistics.median(a - b for a, b in zip(times[case], times["missing"])) / base * 100
        for case in ("theirs", "forged", "control")
    }


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    args.add_argument("--rounds", type=int, default=2000)
    args = args.parse_args()
    owner, stranger = Account("bench-owner"), Account("bench-stranger")
    things = make_things(owner)
    if not args.json:
        print(f"{'':34}{'missing':>10}{'theirs':>10}{'forged':>10}{'control':>10}")
    for name, make in calls().items():
        base, apart = measure(stranger, make, things, args.rounds)
        if args.json:
            row = {"bench": "ownership", "case": name}
            print(json.dumps({**row, "figure": "missing", "value": round(base, 1), "unit": "us"}))
            for case, value in apart.items():
                print(json.dumps({**row, "figure": f"{case} from missing", "value": round(value, 2), "unit": "%"}))
        else:
            print(f"{name:34}{base:7.0f} us" + "".join(f"{value:+9.2f}%" for value in apart.values()), flush=True)


if __name__ == "__main__":
    main()
