"""Freezing, zombies, clocks: rows Z1 to Z8 of tests/faults/ROWS.md.

Every zombie here is a real worker that was stopped at a named moment, overtaken by a real successor, and woken up again."""

import datetime
import re
import signal
import time

import pytest
import redis
from checker import inspect, read_facts
from duel import Duel, lesson
from world import World
from waiting import wait_for


@pytest.fixture
def duel(fresh_world):
    return Duel(fresh_world)


def teach(model, numbers):
    """A gradient and a step for each number; the ids of all."""
    return [job for n in numbers for job in (model.gradient(*lesson(n)), model.step())]


@pytest.fixture(scope="module")
def untroubled(servers):
    """taught(numbers): the results and the last state's digest of a run that nobody disturbed, seed 7."""
    world = World(servers, train_partitions=1)
    known = {}

    def taught(*numbers):
        if numbers not in known:
            duel = Duel(world)
            model = duel.model()
            results = [model.raw.result(job) for job in teach(model, numbers)]
            wait_for(lambda: last_state(world, model.id)[0] == 2 * len(numbers), "the snapshot")
            known[numbers] = results, last_state(world, model.id)
        return known[numbers]

    try:
        world.start()
        yield taught
    finally:
        world.close()


def last_state(world, run):
    rows = world.sql("select seq, state_digest from run_snapshots where run_id = %s order by seq desc, epoch desc", run)
    return rows[0] if rows else (-1, None)


# ------------------------------------------------------------ zombies


def test_Z1_a_worker_frozen_for_longer_than_its_lease(duel, untroubled):
    model, zombie = duel.model(), duel.owner
    zombie.arm("wk.mid_batch", "stop", nth=3, match=model.id)
    jobs = teach(model, range(4))
    zombie.wait_frozen()
    duel.successor()
    results = [model.raw.result(job) for job in jobs]
    zombie.thaw()
    woken = time.monotonic()
    duel.expect_exit(zombie)
    print(f"the zombie left {time.monotonic() - woken:.2f} s after it woke")
    assert results == untroubled(0, 1, 2, 3)[0]
    duel.end().check()
    assert last_state(duel.world, model.id) == untroubled(0, 1, 2, 3)[1]


def test_Z1_a_zombies_snapshot_changes_no_row(duel):
    """Stopped with its files written and its row not; the successor writes another one meanwhile."""
    model, zombie = duel.model(), duel.owner
    jobs = teach(model, range(2))
    [model.raw.result(job) for job in jobs]
    zombie.arm("wk.after_snapfile", "stop", match=model.id)
    zombie.signal(signal.SIGTERM)  # the drain makes the snapshot
    zombie.wait_frozen()
    successor = duel.successor()
    [model.raw.result(job) for job in teach(model, range(2, 4))]
    before = duel.world.sql("select run_id, seq, epoch, dir from run_snapshots")
    zombie.thaw()
    duel.expect_exit(zombie)
    assert duel.world.sql("select run_id, seq, epoch, dir from run_snapshots") == before
    assert zombie.says("is not ours any more")
    assert successor.alive()
    duel.end().check()


def test_Z1_a_zombie_does_not_sweep_away_what_its_successor_is_writing(duel):
    """The zombie was stopped after its row was committed and before it cleans up; the successor has written files and no row."""
    model, zombie = duel.model(), duel.owner
    [model.raw.result(job) for job in teach(model, range(2))]
    zombie.arm("wk.after_snaprow", "stop", match=model.id)
    zombie.signal(signal.SIGTERM)
    zombie.wait_frozen()
    successor = duel.successor()
    [model.raw.result(job) for job in teach(model, range(2, 4))]
    successor.arm("wk.after_snapfile", "stop", match=model.id)
    successor.signal(signal.SIGTERM)
    successor.wait_frozen()
    zombie.thaw()
    zombie.wait_exit()
    successor.thaw()
    successor.wait_exit()
    third = duel.successor()
    after = model.raw.result(model.forward(*lesson(9)))
    assert third.alive() and after[0] == "application/x-protobuf"
    duel.end().check()


def test_Z1_a_zombie_takes_nothing_on_its_way_out(duel, untroubled):
    """Its successor stood still too, so that nobody's lease lasts when it wakes, as after a halt of the whole machine."""
    model, zombie, world = duel.model(), duel.owner, duel.world
    zombie.arm("wk.mid_batch", "stop", nth=3, match=model.id)
    jobs = teach(model, range(3))
    zombie.wait_frozen()
    successor = duel.successor()
    [model.raw.result(job) for job in jobs]
    successor.freeze()
    wait_for(lambda: not world.sql("select 1 from shards where lease_until > clock_timestamp()"), "all leases to end")
    epochs = world.epochs()
    zombie.thaw()
    duel.expect_exit(zombie)
    assert world.epochs() == epochs
    successor.thaw()
    jobs += teach(model, range(3, 4))
    assert [model.raw.result(job) for job in jobs] == untroubled(0, 1, 2, 3)[0]
    assert successor.alive()
    duel.end().check()
    assert last_state(world, model.id) == untroubled(0, 1, 2, 3)[1]


def two_orders(duel, decide_first):
    """A zombie that was stopped between its lease check and its send.  Its record lands between the successor's barrier and the
    successor's own record (decide_first "zombie"), or after both."""
    model, zombie = duel.model(), duel.owner
    [model.raw.result(job) for job in teach(model, range(1))]
    zombie.arm("wk.before_send", "stop", match=f"{model.id}:forward_backward:3")
    jobs = teach(model, range(1, 3))
    zombie.wait_frozen()
    duel.world["dispatcher"].freeze()
    duel.world["billing"].freeze()  # so that both read the zombie's record and the official one in one go
    if decide_first == "zombie":
        duel.number += 1
        successor = duel.world.process("worker", f"worker{duel.number + 1}")
        successor.arm("wk.mid_batch", "stop", match=f"{model.id}:forward_backward:3")
        successor.start(wait=False)
        successor.wait_frozen()
        zombie.thaw()
        wait_for(lambda: read_facts(duel.world).fenced, "the zombie's record in the log")
        successor.thaw()
    else:
        successor = duel.successor()
        wait_for(lambda: not read_facts(duel.world).undecided(), "the successor's results")
        zombie.thaw()
        wait_for(lambda: read_facts(duel.world).fenced, "the zombie's record in the log")
    duel.expect_exit(zombie)
    duel.world["dispatcher"].thaw()
    duel.world["billing"].thaw()
    return model, [model.raw.result(job) for job in jobs]


@pytest.mark.parametrize("first", ["zombie", "successor"])
def test_Z2_a_result_that_was_sent_too_late_is_heard_by_nobody(duel, untroubled, first):
    model, results = two_orders(duel, first)
    assert results == untroubled(0, 1, 2)[0][2:]
    report = duel.end().check()
    assert report.counts["fenced"] == 1 and report.counts["copies"] == 0
    assert last_state(duel.world, model.id) == untroubled(0, 1, 2)[1]
    wait_for(lambda: duel.world.counters("dispatcher:0").get("fenced", 0) >= 1, "the resolver to count the fenced record")
    wait_for(lambda: re.search(r"billing\.folded .* fenced=[1-9]", drained_billing(duel)), "billing to count it")


def drained_billing(duel):
    billing = duel.world["billing"]
    if billing.alive():
        billing.drain()  # it says its summary
    return billing.log.read_text()


def contradiction(duel, stop="mid"):
    """The zombie decides that a load fails, because the checkpoint is deleted, and is stopped before it says so; the checkpoint
    comes back (a person's doing, straight in the database), and the successor loads it.  The zombie's record lands between the
    successor's barrier and its own record.  Returns the run, its load job, and a forward after it."""
    model, zombie, world = duel.model(), duel.owner, duel.world
    teach(model, range(1))
    saved = model.save("here")
    model.raw.result(saved)
    [model.raw.result(job) for job in teach(model, range(1, 2))]
    path = f"tinker://{model.id}/weights/here"
    zombie.arm("wk.before_send", "stop", match=f"{model.id}:load:")
    world.sql("update checkpoints set deleted_at = now() where run_id = %s", model.id)
    load = model.load(path)
    zombie.wait_frozen()
    world.sql("update checkpoints set deleted_at = null where run_id = %s", model.id)
    duel.number += 1
    successor = world.process("worker", f"worker{duel.number + 1}")
    successor.arm("wk.before_send", "stop", match=f"{model.id}:load:")
    successor.start(wait=False)
    successor.wait_frozen()
    world["dispatcher"].freeze()
    world["billing"].freeze()
    zombie.thaw()

    def landed():
        return [r for r in read_facts(world).results if r.headers.get("ce_id") == load]

    wait_for(landed, "the zombie's record")
    duel.expect_exit(zombie)
    successor.thaw()
    wait_for(lambda: len(landed()) == 2, "the successor's record")
    world["dispatcher"].thaw()
    world["billing"].thaw()
    assert [r.status for r in landed()] == ["failed", "ok"]
    return model, load, successor


def loaded_state(duel):
    """What a forward gives after a load that nobody disturbed."""
    model = duel.model()
    teach(model, range(1))
    model.save("here")
    teach(model, range(1, 2))
    model.load(f"tinker://{model.id}/weights/here")
    return model.raw.result(model.forward(*lesson(5)))


def test_Z3_a_zombie_says_failed_where_its_successor_says_ok(duel):
    model, load, _ = contradiction(duel)
    kind, answer = model.raw.result(load)
    assert b'"error"' not in answer
    assert model.raw.result(model.forward(*lesson(5))) == loaded_state(duel)
    report = duel.end().check()
    assert report.facts.official[load].status == "ok" and report.counts["fenced"] == 1


def test_Z3_and_Redis_is_emptied_afterwards(duel):
    """The resolver starts again in the middle of the log, where the zombie's record is the first one: R10."""
    model, load, _ = contradiction(duel)
    model.raw.result(load)
    resettle(duel, load)
    assert b'"error"' not in model.raw.result(load)[1]
    duel.end().check()


def resettle(duel, job):
    """FLUSHALL while billing's cursor stands just before the zombie's record of that job, and the resolver at the log's end."""
    world = duel.world
    [record] = [r for r in read_facts(world).fenced if r.id == job]
    world["dispatcher"].kill()
    reached = "select 1 from ingest_cursors where topic = %s and partition = 0 and next_offset > %s"
    wait_for(lambda: world.sql(reached, record.topic, record.offset), "billing to pass the zombie's record")
    [(epoch,)] = world.sql("select max_epoch from ingest_cursors where topic = %s and partition = 0", record.topic)
    billing = world["billing"]
    billing.kill()
    # Billing that had read no further yet: what it has folded stays, the job id is its key.
    world.sql(
        "update ingest_cursors set next_offset = %s, max_epoch = %s where topic = %s and partition = 0",
        record.offset, epoch, record.topic,
    )  # fmt: skip
    with redis.Redis.from_url(world.redis_url) as store:
        store.flushall()
    world["dispatcher"].start()
    with redis.Redis.from_url(world.redis_url) as store:
        wait_for(lambda: store.exists(f"{world.redis_prefix}future:{job}"), "the future to be settled again")
    billing.start()


def test_Z4_a_freeze_shorter_than_the_lease_is_no_take_over(servers, untroubled):
    world = World(servers, train_partitions=1, lease_ms=30000)
    try:
        world.start()
        duel = Duel(world)
        model = duel.model()
        world.process("worker", "worker2").start(wait=False)  # would take what it can get
        epochs = world.epochs()
        world["worker"].arm("wk.mid_batch", "stop", nth=2, match=model.id)
        jobs = teach(model, range(3))
        world["worker"].wait_frozen()
        time.sleep(5)
        world["worker"].thaw()
        assert [model.raw.result(job) for job in jobs] == untroubled(0, 1, 2)[0]
        assert world.epochs() == epochs
        assert world.counters("worker:0")["replayed"] == 0
        inspect(world).check()
    finally:
        world.close()


# ------------------------------------------------------------ freezes of the others


@pytest.mark.parametrize("name", ["gateway", "dispatcher", "billing"])
def test_Z5_a_frozen_process_is_late_and_never_wrong(world, survives, full, name):
    def disturb():
        time.sleep(1)
        world[name].freeze()
        time.sleep(60 if full else 6)
        world[name].thaw()

    survives(disturb=disturb)
    assert world[name].starts == 1 or full


def test_Z6_a_frozen_broker(world, servers, survives, full):
    epochs = world.epochs()

    def disturb():
        time.sleep(1)
        servers.signal("kafka", signal.SIGSTOP)
        try:
            time.sleep(20 if full else 8)
        finally:
            servers.signal("kafka", signal.SIGCONT)

    survives(disturb=disturb)
    assert world.epochs() == epochs  # leases are in Postgres


# ------------------------------------------------------------ clocks

HOUR = 3600
SHIFTS = [
    pytest.param(HOUR, id="1h-ahead"),
    pytest.param(-HOUR, id="1h-behind", marks=pytest.mark.long),
    pytest.param(24 * HOUR, id="1d-ahead", marks=pytest.mark.long),
]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", ["worker", "gateway", "dispatcher", "billing", "redis", "postgres"])
def test_Z7_a_wall_clock_that_jumps(world, survives, clocked, name, shift):
    clock = clocked(name)

    def disturb():
        time.sleep(1.5)
        clock.set(shift)

    survives(disturb=disturb)
    assert abs(wall_clock(world, name) - time.time() - shift) < 60, "the clock did not jump"


def wall_clock(world, name):
    """What time that process or server thinks it is."""
    if name == "postgres":
        return float(world.sql("select extract(epoch from clock_timestamp())")[0][0])
    if name == "redis":
        with redis.Redis.from_url(world.redis_url) as store:
            return store.time()[0]
    world[name].drain()  # its last words carry its time
    stamp = re.findall(r"^(\S+)Z ", world[name].log.read_text(), re.M)[-1]
    return datetime.datetime.fromisoformat(stamp).replace(tzinfo=datetime.timezone.utc).timestamp()


# ------------------------------------------------------------ a database from a backup


@pytest.mark.parametrize("back", [1, 2])
def test_Z8_the_lease_row_is_older_than_the_log(duel, untroubled, back):
    model, world = duel.model(), duel.world
    for _ in range(2):  # two more epochs
        world["worker"].kill()
        world["worker"].start()
        wait_for(lambda: world["worker"].says("shard.taken stream=train"), "the take-over")
    jobs = teach(model, range(2))
    [model.raw.result(job) for job in jobs]
    worker = world["worker"]
    worker.kill()
    before = duel.epoch()
    world.sql("update shards set epoch = epoch - %s, lease_until = '-infinity' where stream = 'train'", back)
    world.supervise()
    try:
        worker.start(wait=False)  # finds the higher epoch in the log, raises the row, leaves and comes again
        jobs += teach(model, range(2, 3))
        assert [model.raw.result(job) for job in jobs] == untroubled(0, 1, 2)[0]
    finally:
        world.unsupervise()
    assert duel.epoch() > before
    duel.end().check()
    assert last_state(world, model.id) == untroubled(0, 1, 2)[1]
