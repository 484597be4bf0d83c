"""Recovery: how long a run waits when its worker dies, and when it is drained.

    ./tinworks bench recovery [--json] [--steps N] [--times N]

A run is trained for some steps; then its worker is killed (kill -9) or asked to stop (SIGTERM), started again by
./tinworks up at once, and a job sent in that moment is waited for.  The time is split by the lines of the worker's log:

  lease_s    until the shard was taken over: the rest of the dead worker's lease, and the start of the process
  replay_s   from there to the answer: scan of the results, load of the snapshot, replay, the job itself
  replayed   jobs whose effect was done again (they are never billed)
"""

import argparse
import datetime
import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import time

import redis
import tinker
from tinker import types

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOME = pathlib.Path(os.environ["TINWORKS_BENCH_HOME"])


def batch(step):
    choose = random.Random(step)
    tokens = [[choose.randrange(3, 1000) for _ in range(65)] for _ in range(8)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(t[:-1]),
            loss_fn_inputs={"target_tokens": t[1:], "weights": [1.0] * 64},
        )
        for t in tokens
    ]


def stop_worker(sign):
    pid = int((HOME / "run" / "worker.pid").read_text().split()[0])
    os.kill(pid, sign)
    while sign == signal.SIGTERM:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)


def taken_since(began):
    """When the shards were taken over, by the worker's log."""
    for line in (HOME / "log" / "worker.log").read_text().splitlines():
        match = re.match(r"(\S+)Z info shard\.taken stream=train", line)
        if match:
            at = datetime.datetime.fromisoformat(match[1]).replace(tzinfo=datetime.UTC).timestamp()
            if at >= began:
                yield at


def replayed(store):
    return int(store.hget("worker:0", "replayed") or 0)


def once(client, step, sign, store):
    began = time.time()
    stop_worker(sign)
    subprocess.run([ROOT / "tinworks", "up"], check=True, capture_output=True)
    client.forward(batch(step), "cross_entropy").result()
    ended = time.time()
    taken = max(taken_since(began))
    time.sleep(1.2)  # the worker shows its counters every second
    return {"total_s": ended - began, "lease_s": taken - began, "replay_s": ended - taken, "replayed": replayed(store)}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    args.add_argument("--steps", type=int, default=20, help="training steps before each stop")
    args.add_argument("--times", type=int, default=3, help="stops of each kind")
    args = args.parse_args()

    store = redis.Redis.from_url(os.environ["TINWORKS_REDIS"], decode_responses=True)
    service = tinker.ServiceClient()
    model = tinker.RestClient().get_server_capabilities().result().supported_models[0].model_name
    client = service.create_lora_training_client(base_model=model, rank=32).result()
    step = 0
    for case, sign in (("kill -9 of the worker", signal.SIGKILL), ("drain of the worker", signal.SIGTERM)):
        figures = []
        for _ in range(args.times):
            for _ in range(args.steps):
                step += 1
                gradient = client.forward_backward(batch(step), "cross_entropy")
                client.optim_step(types.AdamParams(learning_rate=1e-4)).result()
                gradient.result()
            figures.append(once(client, step, sign, store))
        for name in figures[0]:
            value = statistics.median(f[name] for f in figures)
            unit = "jobs" if name == "replayed" else "s"
            row = {"bench": "recovery", "case": case, "figure": name, "value": round(value, 3), "unit": unit}
            print(json.dumps(row) if args.json else f"{case:24} {name:10} {value:10.3f} {unit}", flush=True)
    service.close("success").result()


if __name__ == "__main__":
    main()
