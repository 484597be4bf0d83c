"""Postgres and disks: rows P1 to P5 and P7 of tests/faults/ROWS.md.  (P6, damaged snapshots, is in test_recovery.py.)"""

import concurrent.futures
import contextlib
import os
import pathlib
import random
import resource
import signal
import threading
import time

import psycopg
import pytest
from checker import inspect
from oracle import evidence, same, work
from raw import ADAM, Raw, sample
from sdk import tokens_of
from world import LEASE_MS, World
from waiting import wait_for

LESSON = [tokens_of(700 + i, 18 + i) for i in range(8)]


def run_of(world, name="postgres"):
    model = Raw(world.base_url, world.account(name)[1]).session().model(world.model)
    model.raw.result(model.jobs[0])
    return model


def taught(model, numbers):
    """The results of a gradient and a step for each."""
    jobs = [job for n in numbers for job in (model.gradient(LESSON[n]), model.step())]
    found = [model.raw.result(job) for job in jobs]
    assert not any(b'"error"' in body for _, body in found)
    return found


def state_of_run(world, run, seq):
    text = "select state_digest from run_snapshots where run_id = %s and seq = %s order by epoch desc limit 1"
    return wait_for(lambda: world.sql(text, run, seq), f"a snapshot of {run} at {seq}")[0][0]


def billed(world, run, seq):
    return world.sql("select 1 from job_outcomes where parent_id = %s and seq = %s", run, seq)


@pytest.fixture
def made(servers):
    """made(**settings): a world with those settings; all are closed at the end."""
    worlds = []

    def make(start=True, **settings):
        worlds.append(World(servers, **settings))
        return worlds[-1].start() if start else worlds[-1]

    yield make
    for it in worlds:
        it.close()


@pytest.fixture(autouse=True)
def postgres_runs(servers):
    """The next test finds it running."""
    yield
    servers.up()


def runs(world):
    return world.sql("select count(*) from runs")[0][0]


# ------------------------------------------------------------ P1: killed


def backend_of(world, application):
    text = "select pid from pg_stat_activity where datname = current_database() and application_name = %s"
    return [pid for pid, in world.sql(text, application)]


class Killer:
    """One kill after the other, in three ways."""

    def __init__(self, world, servers, seed):
        self.world, self.servers, self.choose = world, servers, random.Random(seed)
        self.kills = 0

    def kill(self):
        way = self.kills % 3
        if way == 0:
            self.servers.kill_all("postgres")
        elif way == 1:
            self.servers.kill("postgres")  # the children notice
        else:  # one backend of ours; the postmaster ends all the others and begins again
            [pid, *_] = wait_for(lambda: backend_of(self.world, "tinworks-billing"), "billing's connection")
            os.kill(pid, signal.SIGKILL)
        self.kills += 1
        self.servers.up()


@pytest.mark.timeout(3600)
def test_P1_the_postmaster_and_its_children_are_killed(world, servers, survives, full):
    wanted, killer = (50 if full else 3), Killer(world, servers, 1)
    log = servers.home / "log" / "postgres.log"
    mark = log.stat().st_size
    while killer.kills < wanted:
        before = runs(world)

        def disturb():
            wait_for(lambda: runs(world) >= before + 2, "the work to begin")
            for _ in range(min(6, wanted - killer.kills)):
                killer.kill()
                time.sleep(killer.choose.uniform(0, 1))

        survives(disturb=disturb)
    said = log.read_bytes()[mark:]
    assert said.count(b"database system was not properly shut down") + said.count(b"reinitializing") >= wanted
    assert b"was terminated by signal 9" in said


def commits_until_it_waits(world):
    """One connection commits what wants a standby, until a COMMIT is not answered; that is told to wait no longer."""
    end_waits = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep' and application_name = 'probe'"
    over = threading.Event()

    def commit():
        with psycopg.connect(f"{world.postgres} application_name=probe", autocommit=True) as db:
            db.execute("set synchronous_commit = on")
            while not over.is_set():
                db.execute("select pg_logical_emit_message(true, 'probe', 'probe')")

    def met():
        if world.sql(end_waits):
            over.set()
        return committing.done()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        committing = pool.submit(commit)
        try:
            wait_for(met, "the first COMMIT that waits")
        finally:
            over.set()
        committing.result()


@contextlib.contextmanager
def unanswered(world):
    """Who wants its COMMIT to be on a standby, which all of ours do not, waits for the answer; what it committed is durable."""
    waits = "select 1 from pg_stat_activity where wait_event = 'SyncRep' and application_name = %s"
    reload = "select pg_reload_conf()"
    world.sql("alter system set synchronous_standby_names = 'nobody'")
    world.sql(reload)
    try:
        commits_until_it_waits(world)  # the reload takes its time
        yield lambda application: world.sql(waits, application)
    finally:
        world.sql("alter system reset synchronous_standby_names")
        world.sql(reload)


@pytest.mark.parametrize("who", ["billing", "worker"])
def test_P1_a_commit_whose_answer_is_lost(made, servers, who):
    """It had landed; who asked finds that out, or does what makes no difference."""
    world = made(start=False, train_partitions=1, snapshot_idle_ms=200, lease_ms=30000)  # its freeze is no take-over
    world.sql(f"alter database {world.name} set synchronous_commit = local")
    for role in ("billing", "dispatcher", "worker", "gateway"):
        patient = {"postgres": f"{world.postgres} options='-c synchronous_commit=on'"} if role == who else {}
        world.process(role, **patient).start()
    world.base_url = world["gateway"].url
    model, process = run_of(world), world[who]
    seen = taught(model, [0])
    state_of_run(world, model.id, 2)
    wait_for(lambda: billed(world, model.id, 2), "billing to be even")
    epochs = world.epochs()
    process.arm("db.spoil", "stop", match=f"tinworks-{who}")
    job = model.gradient(LESSON[1])
    process.wait_frozen()  # before its COMMIT
    landed = {
        "billing": "select 1 from job_outcomes where parent_id = %s and seq = 3",
        "worker": "select 1 from run_snapshots where run_id = %s and seq = 3",
    }[who]
    assert not world.sql(landed, model.id)
    with unanswered(world) as waiting:
        process.thaw()
        wait_for(lambda: waiting(f"tinworks-{who}"), "a COMMIT that is not answered")
        servers.kill_all("postgres")
        servers.up()
        assert world.sql(landed, model.id)
    seen += [model.raw.result(job), model.raw.result(model.step())]
    calm = run_of(world)
    assert seen == taught(calm, [0, 1])
    assert state_of_run(world, model.id, 4) == state_of_run(world, calm.id, 4)
    if who == "billing":
        wait_for(lambda: process.says(" billing.retry "), "billing to look at its cursor again")
    else:  # the same snapshot once more, or not: one row, and nobody else's turn
        assert world.epochs() == epochs and process.starts == 1
    inspect(world).check()


# ------------------------------------------------------------ P2: away


@pytest.mark.timeout(1800)
def test_P2_postgres_is_away_for_longer_than_the_leases(world, servers, survives, full):
    away_s, worker = (300 if full else 8), world["worker"]
    known = run_of(world)  # the gateway has seen its key and its run
    lesson = taught(known, [0])
    epochs, starts, replayed = world.epochs(), worker.starts, world.counters("worker:0")["replayed"]
    mark, before = len(worker.log.read_bytes()), runs(world)
    polls, sessions = [], []
    pool = concurrent.futures.ThreadPoolExecutor(2)

    def poll(job):
        raw = Raw(world.base_url, known.raw.key)
        while not (found := raw.poll(job)):
            polls.append(time.monotonic())
        return found

    def new_session():
        raw = Raw(world.base_url, known.raw.key, patience_s=2 * away_s + 60)
        raw.session()
        sessions.extend(raw.statuses)

    def disturb():
        wait_for(lambda: runs(world) >= before + 2, "the work to begin")
        servers.kill_all("postgres")
        try:
            time.sleep(2 * LEASE_MS / 1000)  # nothing can be published from now on
            waiting = [pool.submit(poll, known.gradient(LESSON[1])), pool.submit(new_session)]
            time.sleep(away_s - 2 * LEASE_MS / 1000)
            assert not any(it.done() for it in waiting)
        finally:
            servers.up()
        return lambda: lesson.append([it.result() for it in waiting][0])

    with pool:
        survives(disturb=disturb)
    assert worker.starts == starts and world.epochs() == epochs
    said = worker.log.read_bytes()[mark:]
    waited = b" lease.paused " in said and b" lease.resumed " in said  # before a result, or with a snapshot in hand:
    assert waited or b" worker.database_away " in said
    assert world.counters("worker:0")["replayed"] == replayed
    assert len(polls) <= 3 * (away_s + 30) / 30, "a poll of a pending future is held"
    assert set(sessions) <= {200, 429, 503} and sessions[-1] == 200
    lesson += [known.raw.result(known.step())]
    assert lesson == taught(run_of(world), [0, 1])


def test_P2_the_limit_on_requests_holds_while_postgres_is_away(world, servers):
    """Also when the key was last asked for so long ago that every call wants to ask for it."""
    account, key = world.account("limited")
    world.billing("account", "limit", account, "--requests-per-minute", "20")
    gateway = world.process("gateway", "gateway2", key_good_ms=500).start()
    raw = Raw(gateway.url, key)
    model = raw.session().model(world.model)
    servers.kill_all("postgres")
    time.sleep(1)  # nothing that it knew of the key is good any more
    began = time.monotonic()
    answers = [raw.once("optim_step", {"model_id": model.id, "seq_id": i + 1, "adam_params": ADAM}) for i in range(60)]
    took_s = time.monotonic() - began
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 429} and 1 <= statuses.count(200) <= 20 + took_s / 3 + 1
    assert all(b"more than its 20 requests a minute" in body for status, _, body in answers if status == 429)
    servers.up()
    assert b'"error"' not in raw.result(model.jobs[0])[1]


def test_P2_a_frozen_postgres_holds_up_no_poll_and_no_run_that_does_not_need_it(made, servers):
    """It says nothing, and its connections stay: nobody learns of it but by waiting."""
    world = made(train_partitions=1, lease_ms=120000, poll_hold_ms=8000)  # the worker's leases outlast it
    raw = Raw(world.base_url, world.account("frozen")[1])
    session = raw.session()
    model, waits, done = session.model(world.model), session.sampler(world.model), session.sampler(world.model)
    raw.result(model.gradient(LESSON[0]))
    drawn = sample(raw, done, 0, LESSON[0][:5])
    raw.result(drawn)
    polls = concurrent.futures.ThreadPoolExecutor(1)

    def poll(raw, sampler, timeout):
        target = {"type": "sampling_session", "sampling_session_id": sampler}
        status, _, body = raw.once("retrieve_futures", {"target": target, "prev_cursor": 0, "timeout": timeout})
        return status, body

    assert poll(raw, done, 5)[0] == 200
    with servers.frozen("postgres"), polls:
        waiting = polls.submit(poll, Raw(world.base_url, raw.key), waits, 8)
        time.sleep(2)  # Redis has nothing for that poll, so Postgres is asked
        status, body = poll(raw, done, 8)
        assert status == 200 and drawn.encode() in body
        assert b'"completions": []' in waiting.result()[1]
        model.gradient(LESSON[1])  # its credit is asked for, and what was known last is what counts
        status, _, _ = raw.once("create_session", {"tags": [], "sdk_version": "0.38.0"})
        assert status in (429, 503)
    assert world["gateway"].says("gateway.gather") and world["gateway"].says("it does not answer")
    raw.call("create_session", {"tags": [], "sdk_version": "0.38.0"})
    raw.result(model.jobs[-1])
    wait_for(lambda: billed(world, model.id, 2), "the bill")
    inspect(world).check()


# ------------------------------------------------------------ P3: a transaction that is lost


def lost_once(world, process, model):
    """What a transaction of that process wanted is not there while it is stopped inside."""
    process.wait_frozen()
    if process.role == "billing":
        assert not world.sql("select 1 from job_outcomes where parent_id = %s and seq = 3", model.id)
    else:
        assert not world.sql("select 1 from run_snapshots where run_id = %s and seq = 3", model.id)


@pytest.mark.parametrize("who, point", [("billing", "bl.after_insert"), ("billing", "db.spoil"), ("worker", "db.spoil")])
def test_P3_the_connection_is_reset_inside_a_transaction(made, who, point):
    world = made(train_partitions=1, snapshot_idle_ms=200)
    model = run_of(world)
    taught(model, [0])
    state_of_run(world, model.id, 2)
    process = world[who]
    process.arm(point, "stop", match=None if point == "bl.after_insert" else f"tinworks-{who}")
    job = model.gradient(LESSON[1])
    lost_once(world, process, model)
    in_tx = (
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        " and application_name = %s and xact_start is not null"
    )
    assert world.sql(in_tx, f"tinworks-{who}") == [(True,)]
    process.thaw()
    wait_for(lambda: process.says(" billing.retry " if who == "billing" else " snapshot.postponed "), "the second attempt")
    model.raw.result(job)
    taught(model, [2])
    state_of_run(world, model.id, 5)
    inspect(world).check()


@pytest.mark.parametrize("who", ["billing", "worker"])
def test_P3_commit_is_answered_with_rollback(made, who):
    world = made(train_partitions=1, snapshot_idle_ms=200)
    model = run_of(world)
    taught(model, [0])
    state_of_run(world, model.id, 2)
    process = world[who]
    process.arm("db.spoil", "err", match=f"tinworks-{who}")
    model.gradient(LESSON[1])
    process.wait_fired("db.spoil")
    wait_for(lambda: process.says("the transaction had failed and was rolled back"), "the answer to be understood")
    taught(model, [2])
    state_of_run(world, model.id, 5)
    inspect(world).check()


# ------------------------------------------------------------ P4: statements that fail


def test_P4_billing_is_the_victim_of_a_deadlock(made):
    world = made(train_partitions=1)
    model, billing = run_of(world), world["billing"]
    taught(model, [0])
    wait_for(lambda: billed(world, model.id, 2), "billing to be even")
    billing.arm("bl.after_insert", "stop")
    model.gradient(LESSON[1])
    billing.wait_frozen()  # it has the cursor, and wants the balance
    account = world.sql("select account_id from runs where id = %s", model.id)[0][0]
    with psycopg.connect(world.postgres) as db, concurrent.futures.ThreadPoolExecutor(1) as pool:
        db.execute("set application_name = 'other'")
        db.execute("set deadlock_timeout = '1h'")  # it never looks for one, so billing is who finds it
        db.execute("select 1 from balances where account_id = %s for update", [account])
        other = pool.submit(db.execute, "select 1 from ingest_cursors where topic like '%%train.results' for update")
        waits = "select 1 from pg_stat_activity where application_name = 'other' and wait_event_type = 'Lock'"
        wait_for(lambda: world.sql(waits), "the other one to wait for billing's row")
        billing.thaw()
        wait_for(lambda: billing.says("deadlock detected"), "the deadlock")
        other.result()
        db.rollback()
    wait_for(lambda: billed(world, model.id, 3), "the second attempt")
    assert billing.alive()
    inspect(world).check()


def test_P4_billing_meets_a_serialization_failure(made):
    world = made(train_partitions=1)
    world.sql(f"alter database {world.name} set default_transaction_isolation = 'repeatable read'")
    model, first = run_of(world), world["billing"]
    taught(model, [0])
    wait_for(lambda: billed(world, model.id, 2), "billing to be even")
    first.drain()
    first.start()
    second = world.process("billing", "billing2").start()
    first.arm("bl.after_insert", "stop")
    second.arm("bl.after_insert", "stop")
    model.gradient(LESSON[1])
    [stopped] = wait_for(lambda: [it for it in (first, second) if it.fired("bl.after_insert")], "one of them to begin")
    other = second if stopped is first else first
    stopped.wait_frozen()
    other.disarm("bl.after_insert")
    waits = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    wait_for(lambda: world.sql(waits), "the other one to wait for the row")
    stopped.thaw()
    wait_for(lambda: other.says("could not serialize access"), "the serialization failure")
    taught(model, [2])
    wait_for(lambda: billed(world, model.id, 5), "the second attempt")
    inspect(world).check()


@contextlib.contextmanager
def locked(world, table):
    with psycopg.connect(world.postgres) as db:
        db.execute(f"lock table {table} in access exclusive mode")
        yield
        db.rollback()


def hurried(world, name):
    """Restarts it so that none of its statements may take longer than a moment."""
    process = world[name]
    process.drain()
    process.extra["postgres"] = f"{world.postgres} options='-c statement_timeout=1000'"
    return process.start()


def test_P4_billing_times_out_again_and_again_and_says_so(made):
    world = made(train_partitions=1)
    billing, model = hurried(world, "billing"), run_of(world)
    taught(model, [0])
    with locked(world, "usage_hours"):
        taught(model, [1])
        wait_for(lambda: billing.says("error billing.stuck failures=6 "), "the alarm")
        assert billing.says("statement timeout") and not billed(world, model.id, 3)
    wait_for(lambda: billed(world, model.id, 4), "the bill")
    wait_for(lambda: billing.says(" billing.goes_on "), "the end of the alarm")
    inspect(world).check()


def test_P4_a_workers_snapshot_times_out(made):
    world = made(train_partitions=1, snapshot_idle_ms=200)
    worker = hurried(world, "worker")
    model = run_of(world)
    taught(model, [0])
    state_of_run(world, model.id, 2)
    with locked(world, "run_snapshots"):
        more = taught(model, [1, 2])  # training goes on
        wait_for(lambda: worker.says(" snapshot.postponed ") and worker.says("statement timeout"), "a snapshot that fails")
    digest = state_of_run(world, model.id, 6)
    calm = run_of(world)
    assert taught(calm, [0, 1, 2])[2:] == more and state_of_run(world, calm.id, 6) == digest
    inspect(world).check()


# ------------------------------------------------------------ P5, P7: full disks


def test_P5_there_is_no_room_for_snapshots(made):
    """Files may not grow beyond a bound that the optimizer's state passes: the kernel refuses the write, as a full disk does."""
    world = made(train_partitions=1, snapshot_idle_ms=200, snapshot_replay_ms=100, unsnapshotted_ms=5000, poll_hold_ms=300)
    worker, model = world["worker"], run_of(world)
    seen = taught(model, [0])
    state_of_run(world, model.id, 2)
    [(dir,)] = world.sql("select dir from run_snapshots where run_id = %s and seq = 2", model.id)
    size = (world.home / "data" / dir / "optimizer.safetensors").stat().st_size
    assert size > 4 * worker.log.stat().st_size
    limits = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    jobs = [job for n in (1, 2) for job in (model.gradient(LESSON[n]), model.step())]
    seen += [wait_for(lambda: model.raw.poll(job), "training to go on") for job in jobs]
    wait_for(lambda: worker.says(" snapshot.postponed "), "a snapshot that finds no room")
    wait_for(lambda: worker.says("error run.unsnapshotted "), "the alarm")
    wait_for(lambda: world.counters("worker:0")["runs_paused"] == 1, "its counter")
    jobs = [model.gradient(LESSON[3]), model.step()]
    assert [model.raw.poll(jobs[0]) for _ in range(4)] == [None] * 4  # its queue waits
    fresh = run_of(world)  # others do not
    assert not world.sql("select 1 from run_snapshots where run_id = %s and seq > 2", model.id)
    mark = worker.log.stat().st_size
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, limits)
    seen += [model.raw.result(job) for job in jobs]
    said = worker.log.read_bytes()[mark:].decode()
    assert said.index(f"run.snapshot run={model.id} seq=6") < said.index(f"run.resumed run={model.id}") < said.index("class=pass")
    wait_for(lambda: world.counters("worker:0")["runs_paused"] == 0, "the end of the alarm")
    assert seen == taught(fresh, range(4))
    assert worker.starts == 1
    inspect(world).check()
    left = sorted(it.name for it in (world.home / "data" / "snapshots").rglob("*") if it.is_dir() and it.name.startswith("6-"))
    assert len(left) <= 1, f"what was written in vain is still there: {left}"


def test_P7_the_volume_of_our_logs_is_full(servers, undisturbed):
    world = World(servers)
    try:
        for role in ("billing", "dispatcher", "worker", "gateway"):
            it = world.process(role)
            it.sink = pathlib.Path("/dev/full")
            it.start(wait=False)
            assert os.readlink(f"/proc/{it.pid}/fd/2") == "/dev/full"
        with pytest.raises(OSError, match="No space left"):
            pathlib.Path("/dev/full").write_text("a line")
        world.base_url = world["gateway"].url
        wait_for(world["gateway"].answers, "the gateway")
        wait_for(lambda: world.sql("select 1 from models") and len(world.epochs()) == 3, "the model to be announced")
        done = work(world)
        report = inspect(world).check()
        same(undisturbed, evidence(world, done, report.facts))
        assert all(it.alive() for it in world.processes.values())
        assert [it.drain() for it in world.processes.values()] == [0, 0, 0, 0]
    finally:
        world.close()
