"""Each rule of the protocol, switched off: the fault that the rule is for must then be seen by the checker.  A rule whose absence
nobody notices is a rule that no test holds.

Each scenario runs twice: with the rule nothing may be found; without it (file mut.<rule>, see lib/base/failpoint.h) something must
be.  For the reading rule and the epoch at a reader's start the first half is Z3 and its sequel in test_zombies.py."""

import signal
import time

import pytest
from checker import inspect, read_facts
from duel import Duel, lesson
from test_zombies import contradiction, loaded_state, resettle, teach
from waiting import NotStaged, wait_for

LOST_S = 4  # after a scenario ends, how long an undecided job is waited for where it may be lost for good


def patience(duel):
    """Nothing is lost where the rule holds, however long it takes."""
    return LOST_S if duel.world.broken else 240


@pytest.fixture
def duel(fresh_world):
    return Duel(fresh_world)


def restart(duel, **settings):
    """The owner again, with other settings."""
    worker = duel.world["worker"]
    worker.drain()
    worker.extra.update(settings)
    worker.start()
    wait_for(lambda: worker.says("shard.taken stream=train"), "the take-over")
    return worker


def finished(duel, settle_s=240):
    """Like Duel.end(), but waits for decisions instead of futures, and gives up after settle_s: they may never come."""
    end = time.monotonic() + settle_s
    while read_facts(duel.world).undecided() and time.monotonic() < end:
        time.sleep(0.2)
    for it in duel.world.processes.values():
        if it.role == "worker" and it.alive():
            it.drain()
    return inspect(duel.world, 5 if time.monotonic() > end else settle_s)


# ------------------------------------------------------------ scenarios


def reading_rule(duel):
    """A zombie's late "failed", heard before its successor's "ok"."""
    contradiction(duel)
    return finished(duel, patience(duel))


def start_epoch(duel):
    """The resolver starts anew where a zombie's record is the next one."""
    _, load, _ = contradiction(duel)
    resettle(duel, load)
    return finished(duel, patience(duel))


def barrier(duel):
    """A zombie's late record, before its successor has decided anything."""
    model, load, _ = contradiction(duel)
    after = model.raw.result(model.forward(*lesson(5)))
    report = finished(duel, patience(duel))
    if report.facts.official[load].status == "failed":  # then the load's effect must not be there
        assert after == loaded_elsewhere(duel), "expected the state to contradict its log"
    return report


def loaded_elsewhere(duel):
    duel.successor()
    return loaded_state(duel)


def known(duel):
    """Results are acked, there is no snapshot, and the worker dies."""
    model = duel.model()
    [model.raw.result(job) for job in teach(model, range(2))]
    duel.owner.kill()
    duel.successor()
    model.raw.result(model.forward(*lesson(5)))
    return finished(duel)


def known_status(duel):
    """The same, after a load that failed because its checkpoint was deleted."""
    model = duel.model()
    teach(model, range(1))
    model.save("here")
    [model.raw.result(job) for job in teach(model, range(1, 2))]
    duel.world.sql("update checkpoints set deleted_at = now() where run_id = %s", model.id)
    load = model.load(f"tinker://{model.id}/weights/here")
    assert b'"error"' in model.raw.result(load)[1]
    before = model.raw.result(model.forward(*lesson(5)))
    duel.owner.kill()
    duel.successor()
    after = model.raw.result(model.forward(*lesson(5)))
    report = finished(duel)
    if after != before:
        report.problems.append(("I2", "the replayed state is not the fold of what was decided"))
    return report


def snapshot_ack(duel):
    """A result was sent to a broker that does not answer and is killed; the snapshot's row must not be ahead of it."""
    servers = duel.world.servers
    worker = restart(duel, snapshot_replay_ms=0)
    model = duel.model()
    model.gradient(*lesson(0))
    worker.arm("wk.before_send", "stop", match=f"{model.id}:optim_step:2")
    model.step()
    worker.wait_frozen()
    covered = "select 1 from run_snapshots where run_id = %s and seq = 2"
    servers.signal("kafka", signal.SIGSTOP)
    try:
        worker.thaw()
        wait_for(lambda: duel.world.sql(covered, model.id), "a snapshot of what is not acked", 60 if duel.world.broken else 3)
    except NotStaged:
        if duel.world.broken:
            raise
    finally:
        worker.kill()
        servers.kill("kafka")
        servers.up()
    duel.successor()
    return finished(duel, LOST_S if duel.world.sql(covered, model.id) else 240)


def at_rest(world, seconds=2):
    """No position of a shard and no snapshot has been written for so long."""
    rows = "select (select jsonb_agg(s order by s) from shards s), (select count(*) from run_snapshots)"
    seen, since = world.sql(rows), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.1)
        if seen != (seen := world.sql(rows)):
            since = time.monotonic()


def snapshot_epoch(duel):
    """The database's clock jumps: the shard is given to another one while the owner's lease is good by its own clock.  The new
    owner dies before it decides anything; the old one goes on and makes a snapshot."""
    world = duel.world
    owner = restart(duel, lease_ms=600000, snapshot_replay_ms=0)  # its next look at the lease is two minutes away
    model = duel.model()
    [model.raw.result(job) for job in teach(model, range(1))]
    at_rest(world)  # what it writes it would write under the rows' new owner, and see that
    duel.number += 1
    successor = world.process("worker", f"worker{duel.number + 1}")
    successor.arm("wk.mid_batch", "kill", match=f"{model.id}:forward_backward:3")
    world.sql("update shards set lease_until = '-infinity'")
    successor.start()
    wait_for(lambda: successor.says("shard.taken stream=train"), "the successor's barrier")
    teach(model, range(1, 2))
    successor.wait_exit()

    def over():
        return not owner.alive() or world.sql("select 1 from run_snapshots where run_id = %s and seq = 4", model.id)

    wait_for(over, "the old owner to leave, or to make its snapshot")
    owner.kill()
    duel.successor()
    lost = world.sql("select 1 from run_snapshots where run_id = %s and seq = 4 and epoch = 2", model.id)
    return finished(duel, LOST_S if lost else 240)


SCENARIOS = {
    reading_rule: {"I3", "I4"},
    start_epoch: {"I3"},
    barrier: {"I8"},
    known: {"I8"},
    known_status: {"I2", "I8"},
    snapshot_ack: {"I1", "I7"},
    snapshot_epoch: {"I1", "I7"},
}


@pytest.mark.parametrize("scenario", [barrier, known, known_status, snapshot_ack, snapshot_epoch], ids=lambda s: s.__name__)
def test_with_its_rule_nothing_is_found(duel, scenario):
    scenario(duel).check()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_without_its_rule_the_fault_is_found(duel, scenario):
    duel.world.break_rule(scenario.__name__)
    duel.world.break_rule("held")  # a run that differs from its log goes on, so that the checker sees where that leads
    if scenario.__name__ in ("barrier",):  # begins with the first owner's take-over
        restart(duel)
    report = scenario(duel)
    print(report)
    missing = SCENARIOS[scenario] - report.rules()
    assert not missing, f"without the rule {scenario.__name__} the checker does not see {missing}\n{report}"
    assert read_facts(duel.world).results
