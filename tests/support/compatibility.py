"""docs/compatibility.md: which client was answered by which endpoint, taken from the gateways' own logs.

An endpoint counts for a client when the real client called it in a test and got a success; what the tests call by hand
counts for nobody.  TINWORKS_WRITE_COMPATIBILITY=1 writes the document anew instead of comparing it."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "compatibility.md"
ROUTES = ROOT / "gateway" / "api" / "routes.c"
LINE = re.compile(r' http\.request method=(\S+) route=(\S+) agent="([^"]*)" status=(\d+)')

# What each client calls itself; hpcai 0.2.0 reports 0.1.5.
CLIENTS = {
    "tinker 0.38.0": ("AsyncTinker/Python 0.38.0",),
    "tinker 0.25.0": ("AsyncTinker/Python 0.25.0",),
    "hpcai 0.2.0": ("AsyncHpcAI/Python 0.1.5",),
}
# The command line's login and downloads go past the SDK's own HTTP client.
BESIDE = {
    ("GET", "auth/apikey/me"): "tinker 0.38.0",
    ("DELETE", "auth/apikey/me"): "tinker 0.38.0",
    ("GET", "files/*/*/*/*"): "tinker 0.38.0",
}
# Sent every ten seconds: only a client whose session lasts through the tests is sure to get there.
LONG = {("POST", "session_heartbeat"): "tinker 0.38.0"}
PENDING = {("POST", "retrieve_future"): 408}

# Served for completeness: no client of the table has a method that calls it, or not in the form served.
BY_HAND = {
    ("POST", "sample"): "only in hpcai's low-level client",
    ("GET", "healthz"): "only in the low-level clients",
    ("GET", "models/*/checkpoints"): "only in hpcai's low-level client",
    ("GET", "files/*/*/*/*"): "by its signed address, without a key",
}

# In a client, and not offered.
NOT_OFFERED = {
    ("POST", "create_custom_loss"): "the switch custom_loss_server_side is off, so the SDK evaluates the loss itself",
}

# The published recipes that tests/recipes runs, each by a test that is marked with its name; test_zz_recipes.py asks that
# all passed.  In the second column what the test asks for.
RECIPES = {
    "hpcai.cookbook.recipes.sl_basic": "loss falls",
    "hpcai.cookbook.recipes.sl_loop": "loss falls",
    "hpcai.cookbook.recipes.math_rl.train": "`importance_sampling`; each step's sampler under one name",
    "hpcai.cookbook.recipes.rl_basic": "`importance_sampling`",
    "hpcai.cookbook.recipes.chat_sl.train": "loss falls; with the gateway killed in the middle; beside a tinker recipe on one worker",
    "tinker_cookbook.recipes.sl_basic": "loss falls",
    "tinker_cookbook.recipes.sl_loop": "loss falls",
    "tinker_cookbook.recipes.chat_sl.train": "loss falls; rolling checkpoints; with the gateway killed in the middle; beside an hpcai recipe",
    "tinker_cookbook.recipes.rl_basic": "`importance_sampling`",
    "tinker_cookbook.recipes.rl_loop": "`importance_sampling`, `cispo`, `gspo`",
    "tinker_cookbook.recipes.math_rl.train": "`importance_sampling` and `ppo`; several steps a batch, off-policy, minibatches; gateway killed",
    "tinker_cookbook.recipes.prompt_distillation": "its teacher's labels, then its training script",
    "tinker_cookbook.recipes.preference.dpo.train": "a loss of the user's own falls from log 2",
}
NOT_RUN = {
    "`tinker_cookbook.recipes.decisions.forecasting`": "the SDK's `to_torch` of a sparse tensor needs PyTorch 2 (`TINWORKS_TORCH` names a"
    " folder with one; its test has not been run so)",
    "`rl_loop`, `math_rl.train` without `loss_fn=`": "their default loss `stable_reinforce` is not public: an error that names the losses we have (a test)",
    "`hpcai.cookbook.recipes.rl_loop`": "hpcai 0.2.0's own client refuses its `create_sampling_client(model_path=...)` before any request:"
    ' "base_model must be provided" (a test)',
}


def served():
    """(method, pattern) of each route, from the table that serves them."""
    found = re.findall(r'^\s+(GET|POST|PUT|DELETE)(?:_OF)?\("([^"]+)"', ROUTES.read_text(), re.MULTILINE)
    assert len(found) > 50
    return found


def answered(logs):
    """{(method, pattern): clients} of the successes in these logs."""
    by_agent = {agent: client for client, agents in CLIENTS.items() for agent in agents}
    found = {}
    for log in logs:
        for method, route, agent, status in LINE.findall(log.read_text(errors="replace")):
            key = method, route.removeprefix("/api/v1/")
            good = status.startswith("2") or int(status) == PENDING.get(key)
            client = by_agent.get(agent)
            if client is None and agent.startswith(("python-httpx/", "Python-urllib/")):
                client = BESIDE.get(key)
            if good and client and LONG.get(key, client) == client:
                found.setdefault(key, set()).add(client)
    return found


def document(found):
    lines = [
        "# Compatibility",
        "",
        "Made by the tests, not by hand: `TINWORKS_WRITE_COMPATIBILITY=1 ./tinworks test clients`. **passed**: the real client",
        "called that address in a test that passed and was answered with success. A dash: that client does not call it in any test.",
        "",
        "| address | " + " | ".join(CLIENTS) + " | note |",
        "|---|" + "---|" * (len(CLIENTS) + 1),
    ]
    for key in served():
        cells = ["passed" if client in found.get(key, ()) else "-" for client in CLIENTS]
        note = BY_HAND.get(key, "") if key not in found else ""
        lines.append(f"| `{key[0]} {key[1]}` | " + " | ".join(cells) + f" | {note} |")
    for key, why in NOT_OFFERED.items():
        cells = ["not offered"] + ["-"] * (len(CLIENTS) - 1)
        lines.append(f"| `{key[0]} {key[1]}` | " + " | ".join(cells) + f" | {why} |")
    return "\n".join(lines) + "\n" + TEXT + recipes()


def recipes():
    lines = [
        "",
        "## Published recipes",
        "",
        "hpcai 0.2.0's and tinker-cookbook 0.6.1's scripts, unchanged, offline, each in a process of its own against a stack of `./tinworks up`",
        "with the folder of `./tinworks recipes`. In all, exit code, number of steps and the bill in Postgres are compared, the bill with what a",
        "proxy between recipe and gateway counted. `./tinworks test --recipes` runs all, `./tinworks test` a few, and fails when one that is called passed here did not.",
        "The PyTorch beside them is Debian's 1.13, although tinker-cookbook asks for 2.10, and tml-renderers is not installed: PyPI has no version that it takes.",
        "",
        "| recipe | | asked for beside that |",
        "|---|---|---|",
        *(f"| `{name}` | passed | {what} |" for name, what in RECIPES.items()),
        *(f"| {name} | does not run | {why} |" for name, why in NOT_RUN.items()),
    ]
    return "\n".join(lines) + "\n"


TEXT = """
`*` stands for one segment of the address. A checkpoint's id has two (`weights/name`); hpcai's plain paths have the name alone.

## How the clients differ, and what we do

| | tinker 0.38.0 | tinker 0.25.0 | hpcai 0.2.0 |
|---|---|---|---|
| passes and their results | protobuf | protobuf | JSON |
| a session | its own | its own | none: one stands in for each model, one for all samplers |
| order of training calls | `seq_id` | `seq_id` | as they arrive, numbered under `X-Idempotency-Key` |
| pending | 408 | 408 | 200 `try_again`, 0.5 s apart |
| in line behind others | `paused_capacity` | `paused_capacity` | `in_queue` |
| too much to do | 429 | 429 | 503 on polls, 429 on submits |
| over its account's requests or tokens | 429 on submits, `paused_rate_limit` on polls | the same | the same |
| checkpoints | `tinker://run/weights/name` | the same | `hpcai://run/training/weights/name`; without the inner word too |
| loading a state | with or without optimizer, as asked | the same | with the optimizer's state, as it has no say |
| download | files by signed addresses | address of a tar | the tar.gz itself |
| encryption with age | refused by name | - | - |
| `inflight` samplers | made as snapshots | - | - |
| trace export | answered "failed": no timelines are recorded | - | - |

One thing is the client's alone: `ServiceClient.close()` of tinker 0.38.0 may wait for ever. It cancels its poller of futures and its heartbeat, and a cancellation that meets the answer
which one of them waits for is lost (8 of 500 sessions that were closed ten seconds after they began, just when they send a heartbeat; all had been finished at the server). Whoever
closes in a program gives `.result()` a timeout. `tinker checkpoint download` of a training checkpoint closes without one, and may hang when all is done.
"""
