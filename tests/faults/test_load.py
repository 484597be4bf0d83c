"""Load and order: rows L1 to L12 of tests/faults/ROWS.md.

A raw client says which record lies where in the log.  What must be the same is compared bit for bit with a run that nobody
disturbed."""

import base64
import collections
import concurrent.futures
import itertools
import json
import math
import pathlib
import random
import signal
import threading
import time

import pytest
from checker import Log, inspect, read_facts
from raw import ADAM, Raw, datum, sample
from sdk import tokens_of
from world import LEASE_MS, World
from waiting import staged, wait_for


def client(world, name="load"):
    return Raw(world.base_url, world.account(name)[1])


def run_of(world, seed=7, raw=None):
    """A run of a new account, made."""
    raw = raw or client(world)
    model = raw.session().model(world.model, seed=seed)
    raw.result(model.jobs[0])
    return model


def failure(found):
    """(category, text) of a future that failed."""
    kind, body = found
    assert kind == "application/json", body[:200]
    answer = json.loads(body)
    return answer["category"], answer["error"]


def fine(found):
    assert b'"error"' not in found[1], found[1][:300]
    return found


def rows_of(world, run):
    """seq: (kind, status, amount) of what was billed, or not."""

    def all_there():
        rows = world.sql("select job_id, seq, kind, status, amount_pico from job_outcomes where parent_id = %s", run)
        asked = {id for id, job in read_facts(world).accepted.items() if job.parent == run}
        return rows if {row[0] for row in rows} == asked else None

    return wait_for(all_there, f"the outcomes of {run}")


def state_of_run(world, run, seq):
    """The digest of the snapshot at seq, once it is there."""
    text = "select state_digest from run_snapshots where run_id = %s and seq = %s order by epoch desc limit 1"
    return wait_for(lambda: world.sql(text, run, seq), f"a snapshot of {run} at {seq}")[0][0]


@pytest.fixture
def made(servers):
    """made(**settings): a world with those settings; all are closed at the end."""
    worlds = []

    def make(**settings):
        worlds.append(World(servers, **settings))
        return worlds[-1].start()

    yield make
    for it in worlds:
        it.close()


# ------------------------------------------------------------ L1: chunks in any order

CHUNKS = [tokens_of(300 + i, 12 + 5 * i) for i in range(5)]


def in_order(world, raw, order):
    """The results of one batch of five chunks that were sent in this order, of a step and of a forward; the run."""
    model = run_of(world, raw=raw)
    sent = {seq: model.gradient(CHUNKS[seq - 1], seq=seq) for seq in order}
    model.seq = len(order)
    jobs = [sent[seq] for seq in sorted(sent)] + [model.step(), model.forward(tokens_of(1, 20))]
    return [fine(raw.result(job)) for job in jobs], model.id


def test_L1_chunks_of_one_batch_in_any_order(world, full):
    orders = list(itertools.permutations(range(1, 6)))
    if not full:
        orders = [(2, 3, 4, 5, 1), (5, 4, 3, 2, 1), *random.Random(1).sample(orders, 10)]
    raw = client(world)
    expected, first = in_order(world, raw, (1, 2, 3, 4, 5))
    digest = state_of_run(world, first, 7)
    runs = {}
    for order in orders:
        results, run = in_order(world, raw, order)
        assert results == expected, order
        runs[run] = order
    sent = collections.defaultdict(list)
    for job in sorted(read_facts(world).jobs, key=lambda job: job.place):
        if job.kind == "forward_backward":
            sent[job.parent].append(job.seq)
    assert {run: tuple(sent[run]) for run in runs} == runs  # they lay in the log as we said
    assert {state_of_run(world, run, 7) for run in runs} == {digest}
    inspect(world).check()


# ------------------------------------------------------------ L2, L3: gaps that are given up

EXPIRE_S = 2


@pytest.fixture(scope="module")
def impatient_world(servers):
    it = World(servers, expire_s=EXPIRE_S, train_partitions=1, snapshot_idle_ms=3600000, snapshot_replay_ms=3600000)
    try:
        yield it.start()
    finally:
        it.close()


@pytest.fixture
def impatient(impatient_world):
    """A run behind a gap is given up two seconds after its client's last sign of life.  Snapshots when the test wants them."""
    yield impatient_world
    impatient_world.calm()


def expiries(world, run, facts=None):
    """The expire records of the run that are in the log, the first one first."""
    found = [job for job in (facts or read_facts(world)).jobs if job.kind == "expire" and job.parent == run]
    return sorted(found, key=lambda job: job.offset)


def not_given_up_in_time(world, model, held, filling):
    """By the log: a run whose gap was filled before its time was over has no expire record; whose gap was not, does not count."""
    facts = read_facts(world)
    records = expiries(world, model.id, facts)
    if records:
        held, filling = facts.accepted[held], facts.accepted[filling]
        in_time = filling.offset < records[0].offset and filling.at - held.at < 1000 * EXPIRE_S
        assert not in_time, f"{model.id} was given up {records[0].at - filling.at} ms after its gap was filled"
    staged(not records, "the early job comes in time")


def redrain(world):
    """The worker's state goes through snapshots."""
    assert world["worker"].drain() == 0
    world["worker"].start()
    wait_for(lambda: world["worker"].says("shard.taken stream=train"), "the take-over")


def test_L2_a_gap_that_is_never_filled(impatient):
    world = impatient
    model, calm = run_of(world), run_of(world)
    for it in (model, calm):
        fine(it.raw.result(it.gradient(CHUNKS[0])))
    held = [model.step(seq=3), model.gradient(CHUNKS[1], seq=4)]
    wait_for(lambda: expiries(world, model.id), "the run to be given up")
    facts = read_facts(world)
    staged(facts.accepted[held[1]].offset < expiries(world, model.id, facts)[0].offset, "both wait when it is given up")
    for job in held:
        category, text = failure(model.raw.result(job))
        assert category == "user" and "job 2 was missing" in text
    assert len(expiries(world, model.id)) == 1
    model.seq = 4  # whoever comes back goes on with the state from before the gap
    after = fine(model.raw.result(model.forward(CHUNKS[2])))
    assert after == calm.raw.result(calm.forward(CHUNKS[2]))
    redrain(world)
    assert state_of_run(world, model.id, 5) == state_of_run(world, calm.id, 2)
    found = {row[1]: row[2:] for row in rows_of(world, model.id)}
    assert found[3] == ("optim_step", "failed", 0) and found[4] == ("forward_backward", "failed", 0)
    inspect(world).check()


def test_L2_a_gap_that_its_client_keeps_open(made):
    """The client lives and sends more and more behind it.  What waits is told so and its shard goes on; the run, too."""
    world = made(gap_max_s=2, train_partitions=1)
    model, calm = run_of(world), run_of(world)
    for it in (model, calm):
        fine(it.raw.result(it.gradient(CHUNKS[0])))
    held = [model.forward(CHUNKS[1], seq=3)]
    while not expiries(world, model.id):
        held.append(model.forward(CHUNKS[1], seq=len(held) + 3))
        time.sleep(0.2)
    model.seq = len(held) + 2
    after = fine(model.raw.result(model.forward(CHUNKS[2])))
    facts = read_facts(world)
    given_up = expiries(world, model.id, facts)[0].offset  # a slow worker gets another
    staged(len(held) > 1 and facts.accepted[held[1]].offset < given_up, "its client sent more behind the gap")
    for job in held:
        if facts.accepted[job].offset > given_up:  # sent before we saw it: the gap was over
            fine(model.raw.result(job))
            continue
        category, text = failure(model.raw.result(job))
        assert category == "user" and "job 2 was missing" in text
    assert after == calm.raw.result(calm.forward(CHUNKS[2]))
    last = max(job.offset for job in read_facts(world).jobs)
    passed = "select 1 from shards where stream = 'train' and resume_offset > %s"
    wait_for(lambda: world.sql(passed, last), "the shard to pass them")
    inspect(world).check()


def test_L3_a_gap_that_is_filled_in_the_last_moment(impatient):
    """Once before the time is over, and once when the dispatcher has decided and not written yet: the log decides."""
    world, dispatcher = impatient, impatient["dispatcher"]
    early, late, gone, calm = (run_of(world) for _ in range(4))
    dispatcher.arm("dp.before_expire", "stop", match=late.id)
    held = [it.step(seq=2) for it in (early, late, gone)]
    filled = [early.gradient(CHUNKS[0], seq=1)]
    dispatcher.wait_frozen()
    filled.append(late.gradient(CHUNKS[0], seq=1))
    landed = wait_for(lambda: read_facts(world).accepted.get(filled[1]), "the late job")
    dispatcher.thaw()
    assert failure(gone.raw.result(held[2]))[0] == "user"
    wait_for(lambda: expiries(world, late.id), "the record that comes after the gap was filled")
    not_given_up_in_time(world, early, held[0], filled[0])
    staged(landed.offset < expiries(world, late.id)[0].offset, "the late job lies before the record")
    filled = [fine(it.raw.result(job)) for it, job in zip((early, late), filled)]
    expected = [fine(calm.raw.result(job)) for job in (calm.gradient(CHUNKS[0]), calm.step())]
    assert [filled[0], early.raw.result(held[0])] == expected
    assert [filled[1], late.raw.result(held[1])] == expected
    inspect(world).check()


def test_L3_a_job_that_comes_after_it_was_given_up(impatient):
    """It fails, also when the worker that gave it up is dead and its successor has the state from a snapshot only."""
    world, worker = impatient, impatient["worker"]
    model = run_of(world)
    fine(model.raw.result(model.gradient(CHUNKS[0])))
    held = model.step(seq=6)
    assert failure(model.raw.result(held))[0] == "user"  # 2, 3, 4 and 5 were given up with it

    def late(seq):
        found = model.raw.result(model.gradient(CHUNKS[1], seq=seq))
        assert failure(found) == ("user", "the session ended before this job arrived"), seq
        return found

    first = late(2)
    worker.shoot()
    worker.start()  # replays the gap, the expiry and the late job
    assert late(2) == first
    late(3)
    redrain(world)
    late(4)  # 4 is known from the snapshot only
    assert late(2) == first
    worker.shoot()
    worker.start()
    late(4)
    late(5)
    redrain(world)
    for seq in (2, 3, 4, 5):
        late(seq)
    model.seq = 6
    fine(model.raw.result(model.step()))
    report = inspect(world).check()
    assert report.counts["copies"] == 0
    assert sum(job.parent == model.id and job.kind == "forward_backward" and job.seq == 2 for job in report.facts.jobs) == 4


def test_L3_a_number_that_another_kind_of_request_has_used(fresh_world):
    """The first one runs, the second one is told; whether the first is held, over, or only in a snapshot."""
    world = fresh_world
    model, calm = run_of(world), run_of(world)

    def told(job):
        category, text = failure(model.raw.result(job))
        assert category == "user" and "was used before by another kind of request" in text
        return job

    held = model.step(seq=2)
    told(model.forward(CHUNKS[1], seq=2))
    over = model.gradient(CHUNKS[0], seq=1)
    fine(model.raw.result(over))
    told(model.step(seq=1))
    redrain(world)
    told(model.save("mine", seq=1))
    told(model.forward(CHUNKS[1], seq=2))  # a copy of the one above
    told(model.step(seq=1))
    redrain(world)
    told(model.save("mine", seq=1))
    model.seq = 2
    after = model.raw.result(model.forward(CHUNKS[2]))
    expected = [calm.raw.result(job) for job in (calm.gradient(CHUNKS[0]), calm.step(), calm.forward(CHUNKS[2]))]
    assert [model.raw.result(over), model.raw.result(held), after] == expected
    report = inspect(world).check()
    assert report.counts["copies"] == 0


def test_L3_a_jump_of_the_databases_clock_gives_nobody_up(made, clocked):
    """Postgres is an hour ahead from one moment to the next; who is behind a gap just then goes on when it is filled."""
    world = made(expire_s=20, train_partitions=1)
    clock = clocked("postgres")
    model, dispatcher = run_of(world), world["dispatcher"]
    dispatcher.freeze()
    last = "select last_request_at from runs where id = %s"
    before = world.sql(last, model.id)
    held = model.step(seq=2)
    wait_for(lambda: world.sql(last, model.id) != before, "the client's last sign of life")
    clock.set(3600)
    now = "select extract(epoch from clock_timestamp())::float8 from pg_sleep(0.1)"  # a new backend knows the old clock for 20 ms
    wait_for(lambda: world.sql(now)[0][0] - time.time() > 3500, "the clock to jump")  # a process looks for it every 20 ms
    dispatcher.thaw()
    asked = (
        "select 1 from pg_stat_activity where datname = current_database() and state = 'idle'"
        " and application_name = 'tinworks-dispatcher-expiry' and query like '%%heartbeat_at%%'"
    )
    wait_for(lambda: world.sql(asked), "the dispatcher to ask how long the client was silent")
    time.sleep(0.5)  # time to write a record, if it thinks so
    assert not expiries(world, model.id)
    fine(model.raw.result(model.gradient(CHUNKS[0], seq=1)))
    fine(model.raw.result(held))
    inspect(world).check()


# ------------------------------------------------------------ L4: refused at the door


@pytest.mark.parametrize(
    "path, body, said",
    [
        ("optim_step", {"adam_params": {**ADAM, "learning_rate": "fast"}}, "learning_rate"),
        ("forward_backward", {"forward_backward_input": {"data": [{"model_input": 5}], "loss_fn": "ppo"}}, "model_input"),
        ("load_weights", {"path": "no path at all", "optimizer": True}, "no path at all"),
    ],
)  # fmt: skip
def test_L4_a_job_that_is_refused_at_the_door_leaves_no_hole(world, path, body, said):
    model, calm = run_of(world), run_of(world)
    for it in (model, calm):
        for chunk in CHUNKS[:2]:
            it.gradient(chunk)
            it.step()
    refused = model.send(path, body)  # number 5
    after = model.raw.result(model.forward(CHUNKS[3]))  # number 6
    category, text = failure(model.raw.result(refused))
    assert category == "user" and said in text
    assert after == fine(calm.raw.result(calm.forward(CHUNKS[3])))
    report = inspect(world).check()
    [record] = [r for r in report.facts.official.values() if r.parent == model.id and r.seq == 5]
    assert record.status == "failed" and not any(record.tokens)


# ------------------------------------------------------------ L5, L6: more work than one worker can do


def rss_kb(process):
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def flood(model, count, padding):
    """Gradients with an unknown key, as some later client may send one; it cannot be compressed."""
    noise = base64.b64encode(random.Random(count).randbytes(padding * 3 // 4)).decode()
    body = {"forward_backward_input": {"data": [datum(CHUNKS[0])], "loss_fn": "cross_entropy"}, "padding": noise}
    return [model.send("forward_backward", body) for _ in range(count)]


def waits(facts, greedy, asked):
    """How many jobs of the greedy run were answered while each of those waited that were asked beside them, by the broker's clock."""
    flooded = [r.at for r in facts.official.values() if r.parent == greedy.id]
    spans = [(facts.accepted[job].at, facts.official[job].at) for job in asked]
    return [sum(began < at < answered for at in flooded) for began, answered in spans if answered < max(flooded)]


def test_L5_a_worker_that_is_much_slower_than_its_clients(made):
    """Far more jobs than anybody may hold wait for a worker that stands still and then needs 20 ms for each: nobody takes them all
    into memory.  Then as many as it may hold: another tenant does not wait behind them."""
    jobs_max = 4
    world = made(train_partitions=1, held_mb=1, batch_jobs_max=jobs_max, plan_jobs_max=jobs_max, plan_queue_max=20)
    worker, dispatcher, gateway = world["worker"], world["dispatcher"], world["gateway"]
    greedy, other = run_of(world), run_of(world)
    results = Log(world.brokers, [f"{world.topic_prefix}tinworks--tiny.train.results"])
    worker.arm("wk.mid_batch", "delay", ms=20, keep=True)

    def done():
        return sum(r.headers.get("tw_run") == greedy.id for r in results.read()) - 1  # its creation

    def peaks(count):
        """The most memory that each of ours took while so many jobs of 1.2 MB waited."""
        before = done()
        worker.freeze()
        flood(greedy, count, padding=1_200_000)
        worker.thaw()
        most = {it.name: 0 for it in (worker, dispatcher, gateway)}
        while done() < before + count:
            for it in (worker, dispatcher, gateway):
                most[it.name] = max(most[it.name], rss_kb(it))
            time.sleep(0.1)
        return most

    idle = {it.name: rss_kb(it) for it in (worker, dispatcher, gateway)}
    most = peaks(200)
    print(f"kB idle {idle}, with 240 MB of jobs {most}")
    assert dispatcher.says("planner.pause")  # its cap was reached
    for name in idle:  # a reader holds 16 MiB, and what it is being sent, a few times over
        assert most[name] - idle[name] < 120_000, f"{name}: {idle[name]} kB, with 240 MB of jobs {most[name]}"

    jobs, asked = done(), []
    jobs += len(flood(greedy, 300, padding=0))
    while done() < jobs - 8 * jobs_max:
        asked.append(other.forward(CHUNKS[1]))
        fine(other.raw.result(asked[-1]))
    worker.disarm("wk.mid_batch")
    results.close()
    facts = inspect(world, serve=50).check().facts
    waited = waits(facts, greedy, asked)
    print(f"jobs of the greedy one while the other one waited: {waited}")
    staged(len(waited) > 3, "the flood lasts until something can be seen")
    assert sorted(waited)[-2] <= 6 * jobs_max  # the batch in hand, and what was planned already


def test_L5_one_shard_that_is_full_keeps_no_other_one_waiting(made):
    """Of one worker with room for a job: a tenant's large ones wait on one shard, another tenant works on the other."""
    world = made(train_partitions=2, held_mb=1, batch_jobs_max=1, plan_jobs_max=1)
    worker, greedy = world["worker"], run_of(world)
    shard = "select shard from runs where id = %s"
    while world.sql(shard, (other := run_of(world)).id) == world.sql(shard, greedy.id):
        pass
    worker.arm("wk.mid_batch", "delay", match=greedy.id, ms=40, keep=True)
    worker.freeze()
    flood(greedy, 120, padding=1_200_000)
    wait_for(lambda: world.counters("dispatcher:0").get("jobs", 0) >= 120, "the dispatcher to have read them")
    worker.thaw()
    asked = []
    while len(asked) < 40:
        asked.append(other.forward(CHUNKS[1]))
        fine(other.raw.result(asked[-1]))
    waited = waits(inspect(world, serve=50).check().facts, greedy, asked)
    print(f"jobs of the greedy one while the other one waited: {waited}")
    staged(len(waited) >= 5, "the flood lasts until something can be seen")
    assert sorted(waited)[len(waited) // 2] <= 6  # the one in hand and what was planned


def test_L6_one_tenant_floods_and_the_quiet_ones_do_not_wait(made, full):
    jobs_max, quiet_count = 8, 100 if full else 20
    world = made(train_partitions=1, batch_jobs_max=jobs_max, plan_jobs_max=jobs_max)
    raw = client(world, "flood")
    greedy = [run_of(world, raw=raw) for _ in range(6)]
    quiet = [run_of(world) for _ in range(quiet_count)]
    world["worker"].freeze()
    flooding = {model.gradient(CHUNKS[0]) for _ in range(30) for model in greedy}
    waiting = {model.gradient(CHUNKS[0]) for model in quiet}
    world["worker"].thaw()
    for model in quiet:
        model.results()
    facts = inspect(world, serve=50).check().facts
    order = [r.id for r in sorted(facts.official.values(), key=lambda r: r.offset) if r.id in flooding | waiting]
    before = sum(id in flooding for id in order[: max(order.index(id) for id in waiting)])
    batches = math.ceil(quiet_count / (jobs_max - 1))
    print(f"{before} jobs of the flood before the last of {quiet_count} quiet tenants")
    # Two plans were made before anybody else came; afterwards the flood has one place in each batch, as everybody has.
    assert before <= 2 * jobs_max + batches + jobs_max


def test_L6_tenants_share_evenly_however_many_runs_they_have(made):
    jobs_max = 8
    world = made(train_partitions=1, batch_jobs_max=jobs_max, plan_jobs_max=jobs_max)
    tenants = [client(world, f"share {i}") for i in range(3)]
    runs = [[run_of(world, raw=raw) for _ in range(count)] for raw, count in zip(tenants, (6, 2, 1))]
    world["worker"].freeze()
    owner = {}
    for tenant, models in enumerate(runs):
        for n in range(144 // len(models)):
            for model in models:
                owner[model.gradient(CHUNKS[0])] = tenant
    world["worker"].thaw()
    for models in runs:
        for model in models:
            model.raw.result(model.jobs[-1])
    facts = inspect(world, serve=50).check().facts
    order = [owner[r.id] for r in sorted(facts.official.values(), key=lambda r: r.offset) if r.id in owner]
    contested = order[order.index(2) :]  # before, the worker had not read the last one's jobs
    contested = contested[: min(len(contested) - contested[::-1].index(t) for t in range(3))]  # all three want more
    shares = collections.Counter(contested)
    print(f"shares of {len(contested)} jobs: {dict(shares)}")
    even = len(contested) / 3
    assert all(abs(shares[t] - even) <= 0.1 * even for t in range(3)), shares


# ------------------------------------------------------------ L8, L9, L12: workers come and go


def test_L8_a_take_over_with_a_full_reorder_buffer(fresh_world, full):
    """Many jobs wait behind a gap (in full: as many as may), and one too many; the worker that holds them dies; then the gap is
    filled."""
    world, window = fresh_world, 4096 if full else 800
    raw = client(world)
    model, calm = run_of(world, raw=raw), run_of(world, raw=raw)
    batch = [tokens_of(5, 4)]

    def send_all(model, seqs):
        def share(part):
            it = Raw(world.base_url, raw.key)
            body = {"forward_input": {"data": [datum(batch[0])], "loss_fn": "cross_entropy"}, "model_id": model.id}
            return {seq: it.call("forward", {**body, "seq_id": seq})["request_id"] for seq in part}

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return {k: v for found in pool.map(share, [seqs[i::4] for i in range(4)]) for k, v in found.items()}

    sent = send_all(model, range(2, window + 1))
    [far] = send_all(model, [4097]).values()
    assert "is more than 4096 ahead" in failure(raw.result(far))[1]
    world["worker"].shoot()
    world["worker"].start()
    wait_for(lambda: world["worker"].says("shard.taken stream=train"), "the take-over")
    assert not set(sent.values()) & set(read_facts(world).official)  # all are still behind the gap
    fine(raw.result(model.gradient(CHUNKS[0], seq=1)))
    last = raw.result(sent[window])
    calm.gradient(CHUNKS[0])
    send_all(calm, range(2, window + 1))
    report = inspect(world, serve=100).check()
    official = collections.defaultdict(dict)
    for r in report.facts.official.values():
        if r.id != far:
            official[r.parent][r.seq] = (r.kind, r.status, r.tokens, r.value)
    assert len(official[model.id]) == window + 1 and last[1] == official[model.id][window][3]
    del official[model.id][0], official[calm.id][0]  # their ids
    assert official[model.id] == official[calm.id]


def pair(world):
    """A second worker beside the first, which begins anew; shards go to whoever is there."""
    world.lease(60000)
    return [world["worker"], world.process("worker", "worker2").start()]


def drained(world, worker):
    """Drains it; how many jobs it had replayed."""
    assert worker.drain() == 0
    return world.counters(f"worker:{worker.extra['slot']}")["replayed"]


def test_L9_a_run_that_moves_again_and_again(fresh_world, full):
    world = fresh_world
    model = run_of(world)
    workers, results, owners = pair(world), [], []
    for n in range(50 if full else 4):
        owners.append(world.owner_slot())
        results += [model.gradient(CHUNKS[n % 5]), model.step()]
        fine(model.raw.result(results[-1]))
        [owner] = [it for it in workers if it.extra["slot"] == owners[-1]]
        assert drained(world, owner) == 0
        wait_for(lambda: world.owner_slot() != owners[-1], "the other worker")
        owner.start()
    assert len(set(owners)) == 2 and all(a != b for a, b in zip(owners, owners[1:]))
    calm = run_of(world)
    expected = [job for n in range(len(owners)) for job in (calm.gradient(CHUNKS[n % 5]), calm.step())]
    assert [model.raw.result(job) for job in results] == [calm.raw.result(job) for job in expected]
    assert sum(drained(world, it) for it in workers) == 0
    assert state_of_run(world, model.id, 2 * len(owners)) == state_of_run(world, calm.id, 2 * len(owners))
    for it in workers:
        it.start()
    inspect(world).check()


def test_L12_every_worker_is_drained_in_turn_under_load(world, survives):
    """A rolling update.  The oracle's clients see nothing, and neither does one that keeps every status that it was told."""
    workers, replayed = pair(world), []
    key = world.account("rolling")[1]
    over, statuses, steps = threading.Event(), [], []

    def steady():
        model = run_of(world, raw=Raw(world.base_url, key))
        while not over.is_set():
            model.gradient(CHUNKS[len(steps) % 5])
            steps.append(fine(model.raw.result(model.step())))
        statuses.extend(model.raw.statuses)
        return model.raw.repeats

    def disturb():
        for it in workers * 2:
            time.sleep(1)
            done = len(steps)
            replayed.append(drained(world, it))
            it.start()
            wait_for(lambda: len(steps) > done + 1, "steps after the update")

        def calm():
            over.set()
            assert repeats.result() == 0

        return calm

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        repeats = pool.submit(steady)
        try:
            survives(disturb=disturb)
        finally:
            over.set()
    assert set(statuses) == {200}
    replayed += [drained(world, it) for it in workers]
    world["worker"].start()
    world.lease(LEASE_MS)
    print(f"{len(steps)} steps beside {len(replayed)} drains, replayed {replayed}")
    assert sum(replayed) == 0
    inspect(world).check()


# ------------------------------------------------------------ L10: a sample that kills its worker


def test_L10_a_sample_that_kills_its_worker_is_given_up_and_nobody_else_is_hurt(fresh_world):
    """Beside seven others of as many accounts, while a run is trained."""
    world, worker = fresh_world, fresh_world["worker"]
    worker.drain()
    world.environ["TINWORKS_POISON_ATTEMPTS"] = "3"
    worker.start()
    model = run_of(world)
    raws = [client(world, f"sampler {i}") for i in range(8)]
    samplers = [raw.session().sampler(world.model) for raw in raws]

    def draw(seq):
        pairs = enumerate(zip(raws, samplers))
        return [sample(raw, it, seq, tokens_of(40 + i, 8), max_tokens=24, seed=i) for i, (raw, it) in pairs]

    calm = [raw.result(id) for raw, id in zip(raws, draw(0))]
    poison = f"{samplers[3]}:sample:1:"
    worker.arm("wk.mid_sample", "kill", nth=3, match=poison, keep=True)
    world.supervise()
    sent = draw(1)
    jobs = [model.gradient(CHUNKS[0]), model.step()]
    found = [raw.result(id) for raw, id in zip(raws, sent)]
    category, text = failure(found.pop(3))
    assert category == "server" and "poison" in text
    del calm[3]
    assert [fine(it) for it in found] == calm
    assert world.exits.count(("worker", -signal.SIGKILL)) == 3
    [fine(model.raw.result(job)) for job in jobs]
    worker.disarm("wk.mid_sample")
    world.unsupervise()
    assert world.sql("select status, amount_pico from job_outcomes where job_id = %s", sent[3]) or wait_for(
        lambda: world.sql("select status, amount_pico from job_outcomes where job_id = %s", sent[3]), "the outcome"
    ) == [("failed", 0)]
    dlq = Log(world.brokers, [f"{world.topic_prefix}dlq"])
    assert [r.headers["ce_id"] for r in dlq.read() if "poison" in r.headers["tw_reason"]] == [sent[3]]
    dlq.close()
    redrain(world)
    assert raws[3].result(sample(raws[3], samplers[3], 2, tokens_of(43, 8), max_tokens=24, seed=3))[0] == "application/x-protobuf"
    wait_for(lambda: world.counters("gateway:0")["jobs_in_flight"] == 0, "the tokens of all of them to be released")
    inspect(world).check()
    assert world.sql("select job_id from job_attempts where job_id <> %s", sent[3]) == []


def test_L10_a_job_that_ends_in_the_dlq_without_a_result_holds_no_tokens(made):
    """Its run is said to live on another shard than it does: the worker passes the record over, and nothing else comes of it."""
    world = made(train_partitions=2)
    account, key = world.account("lost")
    world.billing("account", "limit", account, "--tokens-in-flight", "100")
    lost = run_of(world, raw=Raw(world.base_url, key))
    assert world.sql("update runs set shard = 1 - shard where id = %s", lost.id) == 1
    other = Raw(world.process("gateway", "gateway2").start().url, key)
    tokens = tokens_of(1, 93)
    body = {"model_id": lost.id, "seq_id": 1, "forward_backward_input": {"data": [datum(tokens)], "loss_fn": "cross_entropy"}}
    request = other.call("forward_backward", body)["request_id"]
    model = run_of(world, raw=other)
    fine(other.result(model.gradient(tokens)))  # when there is room
    assert 429 in other.statuses
    wait_for(lambda: world.counters("gateway:2")["jobs_in_flight"] == 0, "the tokens to be released")
    dlq = Log(world.brokers, [f"{world.topic_prefix}dlq"])
    assert [r.headers["ce_id"] for r in dlq.read()] == [request]
    dlq.close()
    assert not world.sql("select 1 from job_outcomes where job_id = %s", request)


# ------------------------------------------------------------ L11: cancel


def cancel(raw, job):
    raw.call("cancel_future", {"request_id": job})


def test_L11_cancel_before_during_and_after(made):
    world = made(sample_partitions=1, samples_max=1)
    worker, raw = world["worker"], client(world)
    sampler = raw.session().sampler(world.model)

    def ask(seq):
        return sample(raw, sampler, seq, tokens_of(60, 10), max_tokens=30, seed=5)

    calm = fine(raw.result(ask(0)))
    worker.arm("wk.mid_sample", "stop", nth=5, match=f"{sampler}:sample:1:")
    running, waiting, neighbour = ask(1), ask(2), ask(3)
    worker.wait_frozen()
    for job in (running, waiting, waiting):  # during, before, and again
        cancel(raw, job)
    wait_for(lambda: sum(job.kind == "cancel" for job in read_facts(world).jobs) == 3, "the wishes in the log")
    worker.arm("wk.mid_sample", "delay", match=f"{sampler}:sample:1:", ms=500, keep=True)  # so that it reads them meanwhile
    worker.thaw()
    category, text = failure(raw.result(waiting))
    assert category == "user" and "cancelled" in text
    worker.disarm("wk.mid_sample")
    assert fine(raw.result(running)) == calm  # it ran on: a wish, not an order
    assert fine(raw.result(neighbour)) == calm
    for job in (running, waiting, neighbour):  # afterwards
        cancel(raw, job)
    worker.shoot()
    worker.start()
    last = ask(4)
    assert fine(raw.result(last)) == calm
    report = inspect(world).check()
    found = {job: report.facts.official[job] for job in (running, waiting, neighbour, last)}
    assert [r.status for r in found.values()] == ["ok", "cancelled", "ok", "ok"]
    amounts = dict(world.sql("select job_id, amount_pico from job_outcomes where parent_id = %s", sampler))
    assert amounts[waiting] == 0 and amounts[running] == amounts[neighbour] > 0
    assert report.counts["copies"] == 0
