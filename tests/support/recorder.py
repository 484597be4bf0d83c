"""A proxy between a client and the gateway that counts, from the bytes of both, what the bill must be.

It knows the SDKs' messages and nothing of our servers: what was asked is counted once for each request_id, whatever was
repeated; what was sampled, from the answers; what failed costs nothing.  When the gateway does not answer, the client's
connection is closed without an answer, as a client that spoke to the gateway would see it."""

import http.client
import http.server
import json
import threading
import urllib.parse

from tinker.proto import tinker_public_pb2 as pb

KINDS = ("prefill", "sample", "train")
NOT_PASSED_ON = ("connection", "transfer-encoding", "content-length", "keep-alive")


class Counts:
    def __init__(self):
        self.lock = threading.Lock()
        self.asked = {}  # request_id: (kind, tokens)
        self.sampled = {}  # request_id: tokens
        self.failed = set()

    def note(self, path, kind, body, reply_kind, reply):
        """One call that was answered with 200."""
        word = path.removeprefix("/api/v1/")
        if word in ("forward_backward", "forward"):
            what = passes_of(kind, body, word)
        elif word == "asample":
            what = "prefill", tokens_of(json.loads(body)["prompt"])
        elif word == "retrieve_future":
            self.settle(json.loads(body)["request_id"], reply_kind, reply)
            return
        else:
            return
        with self.lock:
            self.asked[json.loads(reply)["request_id"]] = what

    def settle(self, request_id, reply_kind, reply):
        with self.lock:
            kind, _ = self.asked.get(request_id, (None, 0))
            if "protobuf" in reply_kind:
                if kind == "prefill":  # of a forward pass it has no sequences
                    self.sampled[request_id] = sum(len(s.tokens) // 4 for s in sequences_of(reply))
                return
            answer = json.loads(reply)
            if "error" in answer:
                self.failed.add(request_id)
            elif "sequences" in answer:
                self.sampled[request_id] = sum(len(s["tokens"]) for s in answer["sequences"])

    def tokens(self):
        with self.lock:
            total = dict.fromkeys(KINDS, 0)
            for request_id, (kind, count) in self.asked.items():
                if request_id not in self.failed:
                    total[kind] += count
            total["sample"] = sum(self.sampled.values())
            return total


def tokens_of(model_input):
    return sum(len(chunk["tokens"]) for chunk in model_input["chunks"])


def passes_of(kind, body, word):
    if "protobuf" in kind:
        request = pb.ForwardBackwardRequest.FromString(body)
        count = sum(len(chunk.encoded_text.tokens) // 4 for datum in request.data for chunk in datum.model_input)
        return ("prefill" if request.forward_only else "train"), count
    body = json.loads(body)
    data = body["forward_input" if word == "forward" else "forward_backward_input"]["data"]
    return ("prefill" if word == "forward" else "train"), sum(tokens_of(datum["model_input"]) for datum in data)


def sequences_of(reply):
    """None in the result of a pass; its fields have other types under the same numbers."""
    try:
        return pb.SampleResponse.FromString(reply).sequences
    except Exception:  # protobuf's DecodeError has no public home
        return []


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


class Recorder:
    """with Recorder(base_url) as it: the client is given it.base_url."""

    def __init__(self, upstream):
        self.counts = Counts()
        self.tokens = self.counts.tokens
        address, counts = urllib.parse.urlsplit(upstream).netloc, self.counts

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                try:
                    status, headers, reply = ask(address, self.command, self.path, self.headers, body)
                except (OSError, http.client.HTTPException):
                    self.close_connection = True
                    return
                kinds = [h.get("Content-Type", "") for h in (self.headers, headers)]
                if status == 200:
                    counts.note(self.path, kinds[0], body, kinds[1], reply)
                self.answer(status, headers, reply)

            def answer(self, status, headers, reply):
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in NOT_PASSED_ON:
                        self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def ask(address, method, path, headers, body):
    """(status, headers, body) of the gateway's answer."""
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() not in (*NOT_PASSED_ON, "accept-encoding"):
                connection.putheader(name, value)
        if body or method == "POST":
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()
