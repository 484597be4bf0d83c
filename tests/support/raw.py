"""A client of the HTTP protocol without the SDK: one call at a time, so that a test can say which job is where.  It repeats what was
not answered, as a client must, and remembers every status it was given."""

import http.client
import json
import time
import urllib.parse

ADAM = {"learning_rate": 2e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.0}


def datum(tokens):
    targets = tokens[1:]
    return {
        "model_input": {"chunks": [{"type": "encoded_text", "tokens": tokens[:-1]}]},
        "loss_fn_inputs": {
            "target_tokens": {"data": targets, "dtype": "int64", "shape": [len(targets)]},
            "weights": {"data": [1.0] * len(targets), "dtype": "float32", "shape": [len(targets)]},
        },
    }


class Raw:
    def __init__(self, base_url, key, patience_s=240):
        self.address = urllib.parse.urlsplit(base_url).netloc
        self.key, self.patience_s = key, patience_s
        self.statuses, self.repeats = [], 0
        self.connection = None

    def once(self, path, body, accept="application/json"):
        """(status, content type, bytes); ConnectionError when there was no answer."""
        try:
            if not self.connection:
                self.connection = http.client.HTTPConnection(self.address, timeout=60)
            headers = {"X-API-Key": self.key, "Content-Type": "application/json", "Accept": accept}
            self.connection.request("POST", f"/api/v1/{path}", json.dumps(body), headers)
            reply = self.connection.getresponse()
            data = reply.read()
        except (OSError, http.client.HTTPException) as e:
            self.connection.close()
            self.connection = None
            raise ConnectionError(str(e)) from None
        self.statuses.append(reply.status)
        return reply.status, reply.headers.get("Content-Type", ""), data

    def call(self, path, body):
        """Repeated until it is answered: ids are derived, so it cannot run twice."""
        end = time.monotonic() + self.patience_s
        while True:
            try:
                status, _, data = self.once(path, body)
                if status < 400:
                    return json.loads(data)
                if status < 500 and status != 429:
                    raise AssertionError(f"{path}: {status} {data[:300]}")
                why = f"{status} {data[:300]}"
            except ConnectionError as e:
                why = str(e)
            if time.monotonic() > end:
                raise AssertionError(f"{path} was not answered in {self.patience_s} s: {why}")
            self.repeats += 1
            time.sleep(0.1)

    def poll(self, request_id):
        """One poll: None while pending, else (content type, bytes)."""
        status, kind, data = self.once("retrieve_future", {"request_id": request_id}, "application/x-protobuf")
        if status != 200:
            raise AssertionError(f"retrieve_future: {status} {data[:300]}")
        if kind.startswith("application/json") and b'"try_again"' in data:
            return None
        return kind.split(";")[0], data

    def result(self, request_id):
        """Polls until it is settled: (content type, bytes)."""
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:
            try:
                if found := self.poll(request_id):
                    return found
            except ConnectionError:
                time.sleep(0.1)
        raise AssertionError(f"{request_id} was not settled in {self.patience_s} s")

    def session(self):
        return RawSession(self, self.call("create_session", {"tags": [], "sdk_version": "0.38.0"})["session_id"])


class RawSession:
    def __init__(self, raw, session_id):
        self.raw, self.id, self.models, self.samplers = raw, session_id, 0, 0

    def model(self, base_model, seed=7, rank=8):
        body = {
            "session_id": self.id,
            "model_seq_id": self.models,
            "base_model": base_model,
            "lora_config": {"rank": rank, "seed": seed},
        }
        self.models += 1
        answer = self.raw.call("create_model", body)
        return RawModel(self, answer["model_id"], answer["request_id"])

    def sampler(self, base_model=None, path=None):
        body = {"session_id": self.id, "sampling_session_seq_id": self.samplers}
        body |= {"base_model": base_model} if base_model else {"model_path": path}
        self.samplers += 1
        return self.raw.call("create_sampling_session", body)["sampling_session_id"]


class RawModel:
    """Every method sends one job and returns its request id; self.jobs has them all."""

    def __init__(self, session, model_id, created):
        self.session, self.raw, self.id = session, session.raw, model_id
        self.seq, self.jobs = 0, [created]

    def send(self, path, body, seq=None):
        if seq is None:
            self.seq = seq = self.seq + 1
        self.jobs.append(self.raw.call(path, {"model_id": self.id, "seq_id": seq, **body})["request_id"])
        return self.jobs[-1]

    def gradient(self, *tokens, seq=None):
        body = {"forward_backward_input": {"data": [datum(list(t)) for t in tokens], "loss_fn": "cross_entropy"}}
        return self.send("forward_backward", body, seq)

    def forward(self, *tokens, seq=None):
        body = {"forward_backward_input": {"data": [datum(list(t)) for t in tokens], "loss_fn": "cross_entropy"}}
        return self.send("forward", body, seq)

    def step(self, seq=None):
        return self.send("optim_step", {"adam_params": ADAM}, seq)

    def save(self, name, seq=None, **more):
        return self.send("save_weights", {"path": name, **more}, seq)

    def save_sampler(self, name, seq=None):
        return self.send("save_weights_for_sampler", {"path": name}, seq)

    def load(self, path, optimizer=True, seq=None):
        return self.send("load_weights", {"path": path, "optimizer": optimizer}, seq)

    def results(self):
        return [self.raw.result(job) for job in self.jobs]


def sample(raw, sampler, seq, tokens, num_samples=1, max_tokens=4, seed=11):
    body = {
        "sampling_session_id": sampler,
        "seq_id": seq,
        "num_samples": num_samples,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]},
        "sampling_params": {"max_tokens": max_tokens, "seed": seed, "temperature": 1.0, "stop": []},
    }
    return raw.call("asample", body)["request_id"]
