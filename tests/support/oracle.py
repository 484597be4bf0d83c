"""The same seeded work, once undisturbed and once with faults: whatever can be compared must be equal, bit for bit.

Sessions have random ids, so evidence names a run or sampler by its role: the session's role and the number within it."""

import collections
import concurrent.futures
import dataclasses
import hashlib

import tinker
from checker import Facts
from sdk import ADAM, bits, datum, end, floats, sampling, text, tokens_of
from waiting import wait_for

VOCAB_MAX = 5000  # not in the tiny model's vocabulary


@dataclasses.dataclass
class Work:
    """What one execution of a workload left: which session had which role, and what its clients saw."""

    roles: dict = dataclasses.field(default_factory=dict)  # session id: role
    accounts: dict = dataclasses.field(default_factory=dict)  # account id: role
    seen: dict = dataclasses.field(default_factory=dict)  # role: what the SDK answered, exactly
    prompts: list = dataclasses.field(default_factory=list)


def batch(seed, step, count=4, length=24):
    return [datum(tokens_of(7919 * seed + 101 * step + i, length + i)) for i in range(count)]


def chunked(seed):
    """So many datums that the SDK sends them in two chunks, the first one last."""
    return [datum(tokens_of(seed + i, 3)) for i in range(1030)]


def steps(client, seed, first, count):
    """Sent all at once; awaited afterwards."""
    sent = []
    for step in range(first, first + count):
        sent.append((client.forward_backward(batch(seed, step), "cross_entropy"), client.optim_step(ADAM)))
    return sent


def await_steps(sent):
    return [(bits(gradient.result()), update.result().metrics) for gradient, update in sent]


def draw(sampler, seed, count):
    seen = []
    for i in range(count):
        response = sampler.sample(text(tokens_of(seed + i, 9 + i)), 2, sampling(max_tokens=6, seed=seed + i, stop=[])).result()
        seen.append([(tuple(s.tokens), floats(s.logprobs)) for s in response.sequences])
    return seen


def user_error(client):
    try:
        client.forward_backward([datum([5, 6, VOCAB_MAX, 7])], "cross_entropy").result()
    except tinker.RequestFailedError as e:
        return e.category.name.lower(), e.message.split(" for self.request_id")[0]  # which names the session
    raise AssertionError("a token outside of the vocabulary was taken")


def trainer(service, model, seed, rounds, chunks, met):
    """SFT in chunks, an error of the user's, saves, a load into the same run, a copy, samples.  met(id) is told of runs."""
    client = service.create_lora_training_client(base_model=model, rank=8, seed=seed).result()
    met(client.model_id)
    seen = []
    for r in range(rounds):
        sent = steps(client, seed, 10 * r, 3)
        path = client.save_state(f"round-{r}")
        seen += await_steps(sent)
        seen.append(user_error(client))
        sampler = client.save_weights_and_get_sampling_client().result()
        seen.append(draw(sampler, 1000 * seed + 10 * r, 2))
        sent = steps(client, seed, 10 * r + 5, 2)
        if r % 2 == 0:  # back to the round's beginning; what came after is forgotten
            seen += await_steps(sent)
            client.load_state_with_optimizer(path.result().path).result()
            sent = steps(client, seed, 10 * r + 8, 1)
        seen += await_steps(sent)
    if chunks:
        gradient, update = client.forward_backward(chunked(seed), "cross_entropy"), client.optim_step(ADAM)
        seen.append((bits(gradient.result()), update.result().metrics))
    copy = service.create_training_client_from_state_with_optimizer(path.result().path).result()
    met(copy.model_id)
    seen += await_steps(steps(copy, seed + 1, 0, 2))
    seen.append(bits(copy.forward(batch(seed, 99), "cross_entropy").result()))
    return seen


def work(world, seed=1, customers=2, rounds=2, chunks=True):
    """Every customer is an account with one session, in a thread of its own."""
    done = Work()

    def customer(number):
        role = f"customer-{number}"
        account, key = world.account(role)
        done.accounts[account] = role
        service = world.service(key)

        def met(run):
            done.roles.setdefault(run.split(":")[0], role)

        done.seen[role] = trainer(service, world.model, 10 * seed + number, rounds, chunks and number == 0, met)
        end(service)

    with concurrent.futures.ThreadPoolExecutor(customers) as pool:
        for finished in [pool.submit(customer, i) for i in range(customers)]:
            finished.result()
    return done


# ------------------------------------------------------------ evidence


@dataclasses.dataclass
class Evidence:
    """Comparable with == after normalisation."""

    seen: dict
    jobs: dict  # (role, kind, seq): (status, digest of the payload, tokens, amount)
    states: dict  # run's role: (seq, state digest) of its last snapshot
    checkpoints: dict  # (run's role, seq): (kind, name, sha256 of the folder)
    charges: dict  # account's role: pico-dollars


def used_samplers(roles, parents):
    """Each sampler by its place among those of its session that were used: a client whose call was answered with 503 takes the next
    number for its second try."""
    numbers = collections.defaultdict(set)
    for parent in parents:
        session, _, number = parent.partition(":sample:")
        if number:
            numbers[session].add(int(number))
    return {f"{s}:sample:{n}": f"{roles[s]}:sample:#{i}" for s, ns in numbers.items() for i, n in enumerate(sorted(ns))}


def normaliser(roles, parents):
    names = dict(sorted(used_samplers(roles, parents).items(), key=lambda item: -len(item[0]))) | roles  # the longest first

    def normal(it):
        for id, role in names.items():
            it = it.replace(id.encode() if isinstance(it, bytes) else id, role.encode() if isinstance(it, bytes) else role)
        return it

    return normal


def final_states(world, facts: Facts, sessions):
    """The state digest of every run after its last job that was decided, once there is a snapshot of it."""
    last = collections.defaultdict(int)
    for r in facts.official.values():
        if r.topic.endswith(".train.results") and r.parent.split(":")[0] in sessions:
            last[r.parent] = max(last[r.parent], r.seq)

    def all_there():
        rows = world.sql("select run_id, seq, state_digest from run_snapshots order by epoch")
        found = {run: (seq, digest) for run, seq, digest in rows if last.get(run) == seq}
        return found if found.keys() == last.keys() else None

    return wait_for(all_there, f"snapshots of {len(last)} quiet runs")


def evidence(world, done: Work, facts: Facts):
    """The facts must be settled: everything decided and billed."""
    mine = {id: r for id, r in facts.official.items() if r.parent.split(":")[0] in done.roles}
    normal = normaliser(done.roles, {r.parent for r in mine.values()})
    amounts = dict(world.sql("select job_id, amount_pico from job_outcomes"))
    jobs, charges = {}, collections.Counter()
    for id, r in mine.items():
        key = normal(r.parent), r.kind, r.seq
        assert key not in jobs, key
        jobs[key] = (r.status, hashlib.sha256(normal(r.value)).hexdigest(), r.tokens, amounts[id])
        charges[done.accounts[r.headers["tw_tenant"]]] += amounts[id]
    states = {normal(run): state for run, state in final_states(world, facts, done.roles).items()}
    rows = world.sql("select run_id, seq, kind, name, sha256 from checkpoints where deleted_at is null")
    checkpoints = {
        (normal(run), seq): (kind, name, sha256) for run, seq, kind, name, sha256 in rows if run.split(":")[0] in done.roles
    }
    return Evidence(done.seen, jobs, states, checkpoints, dict(charges))


def differences(expected: Evidence, found: Evidence):
    """Readable, one a line; empty when they are the same to the bit."""
    lines = []
    for field in dataclasses.fields(Evidence):
        a, b = getattr(expected, field.name), getattr(found, field.name)
        for key in sorted(a.keys() | b.keys(), key=str):
            if a.get(key) != b.get(key):
                lines.append(f"{field.name} {key}: {str(b.get(key))[:200]}, undisturbed {str(a.get(key))[:200]}")
    return lines


def same(expected: Evidence, found: Evidence):
    lines = differences(expected, found)
    assert not lines, f"{len(lines)} differences\n" + "\n".join(lines[:20])
