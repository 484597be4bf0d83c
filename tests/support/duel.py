"""Two workers and one shard: the owner is stopped at a named moment, its successor takes over, and the owner wakes up as a zombie."""

from checker import inspect
from raw import Raw
from sdk import tokens_of
from waiting import wait_for


class Duel:
    """In a world with one shard a stream.  The owner is "worker"; the successor, "worker2", is started when it is needed."""

    def __init__(self, world):
        self.world, self.owner = world, world["worker"]
        self.number = 0
        self.models = []

    def model(self, seed=7):
        """A run of a new account that was made."""
        raw = Raw(self.world.base_url, self.world.account("duel")[1])
        it = raw.session().model(self.world.model, seed=seed)
        raw.result(it.jobs[0])
        self.models.append(it)
        return it

    def epoch(self, stream="train"):
        return self.world.epochs()[f"{stream}/0"]

    def successor(self, wait=True):
        """A fresh worker beside the others; with wait, once it has taken the shards over."""
        self.number += 1
        before = self.epoch()
        it = self.world.process("worker", f"worker{self.number + 1}").start(wait=False)
        if wait:
            wait_for(lambda: self.epoch() > before, "the take-over")
            it.ready()
            wait_for(lambda: it.says("shard.taken stream=train"), "the barrier of the successor")
        return it

    def expect_exit(self, zombie, code=75):
        """The zombie leaves by itself once it is awake."""
        zombie.wanted = False
        found = zombie.wait_exit()
        assert found == code, f"{zombie.name} left with {found}, expected {code}:\n{zombie.tail()}"

    def end(self, settle_s=240):
        """Everything decided, drained into snapshots, checked."""
        for model in self.models:
            model.results()
        for it in self.world.processes.values():
            if it.role == "worker" and it.alive():
                it.drain()
        return inspect(self.world, settle_s)


def lesson(number):
    """Gradient tokens of one job; each number has its own."""
    return tokens_of(100 + number, 24), tokens_of(200 + number, 17)
