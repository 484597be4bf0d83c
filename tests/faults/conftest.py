"""One world a module, and one for whoever breaks a rule on purpose."""

import concurrent.futures
import logging
import subprocess

import pytest
from checker import inspect
from forced import Plan
from oracle import evidence, same, work
from world import ROOT, World


logging.getLogger("tinker").setLevel(logging.CRITICAL)  # the workload loads into a run on purpose


ROUNDS_MAX = 4


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--faults"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="only with --faults"))


@pytest.fixture(scope="session")
def full(request):
    """Everything at full length?"""
    return request.config.getoption("--faults")


def opened(servers, **settings):
    it = World(servers, **settings)
    try:
        yield it.start()
    finally:
        it.close()


@pytest.fixture(scope="module")
def module_world(servers):
    yield from opened(servers)


@pytest.fixture
def world(module_world):
    """The module's own: billing, dispatcher, worker, gateway, one each, and all of them running."""
    yield module_world
    module_world.calm()


@pytest.fixture
def fresh_world(servers):
    """For one test: one shard a stream, so that a take-over is one step, and snapshots only when the test wants them."""
    yield from opened(servers, train_partitions=1, snapshot_idle_ms=3600000, snapshot_replay_ms=3600000)


@pytest.fixture(scope="session")
def undisturbed(servers):
    """What the workload leaves behind when nothing goes wrong: the oracle."""
    it = World(servers)
    try:
        it.start()
        done = work(it)
        return evidence(it, done, inspect(it).check().facts)
    finally:
        it.close()


@pytest.fixture
def survives(world, undisturbed):
    """survives(fault, ..., disturb=f): the workload runs with those faults and with f() beside it, and whatever ends is started
    again; when f() returns something to call, that ends the disturbance.  It runs anew as long as faults are left, a few times at most; then every fault must have happened, everything must
    be as in the oracle, and the checker must find nothing.  Returns what the checker counted more than before."""

    def run(*faults, disturb=lambda: None):
        before = getattr(world, "counted", {})
        plan = Plan(world, faults)
        try:
            world.supervise()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                doing = pool.submit(work, world)
                calm = disturb()
                works = [doing.result()]
            while not plan.complete() and len(works) < ROUNDS_MAX:
                works.append(work(world))
        finally:  # it arms nothing in the next test
            plan.stop()
        plan.end()
        if calm:
            calm()
        world.unsupervise()
        for it in world.processes.values():
            if it.wanted:
                it.alive() or it.start(wait=False)
                it.ready()
        report = inspect(world).check()
        for done in works:
            same(undisturbed, evidence(world, done, report.facts))
        world.counted = report.counts
        return {k: v - before.get(k, 0) for k, v in report.counts.items()}

    yield run
    world.unsupervise()


class Clock:
    """The wall clock of one process, moved while it works; durations use the monotonic one."""

    def __init__(self, servers):
        self.library, self.file = servers.home / "fake_clock.so", servers.home / "fake_clock"
        source = ROOT / "tests" / "support" / "fake_clock.c"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", self.library, source], check=True)
        self.set(0)
        self.environ = {"LD_PRELOAD": str(self.library), "FAKE_CLOCK": str(self.file)}

    def set(self, seconds):
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self.file)


@pytest.fixture
def clocked(world, servers):
    """clocked(name): restarts that process or server under a clock that the test moves."""
    clock, changed = Clock(servers), []

    def start(name):
        changed.append(name)
        if name in world.processes:
            world[name].kill()
            world[name].prefix = ["env", *(f"{k}={v}" for k, v in clock.environ.items())]
            world[name].start()
        else:
            servers.kill(name)
            servers.up(**clock.environ)
        return clock

    yield start
    for name in changed:
        if name in world.processes:
            world[name].kill()
            world[name].prefix = []
            world[name].start()
        else:
            servers.kill(name)
            servers.up()
