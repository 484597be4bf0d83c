"""One training run of a thousand steps whose worker is killed two hundred times (K13 at full length): the loss curve is that of the
undisturbed run to the last bit, and so are futures, snapshots and the bill."""

import concurrent.futures
import random
import time

import pytest
from checker import inspect
from oracle import Work, evidence, same
from sdk import ADAM, bits, datum, end, tokens_of
from waiting import wait_for
from world import World

STEPS, KILLS = 1000, 200


def lesson(step):
    return [datum(tokens_of(1000 * step + i, 128)) for i in range(16)]


class Curve:
    """The run, in a world of its own; its worker dies in the middle of that many steps, chosen by a seed."""

    def __init__(self, servers, kills):
        choose = random.Random(13)
        self.moments = [(step, choose.uniform(0, 0.3)) for step in sorted(choose.sample(range(STEPS), kills))]
        self.world, self.done, self.step, self.over, self.kills = World(servers), Work(), -1, False, 0
        try:
            self.world.start()
            self.world.supervise()
            began = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                killing = pool.submit(self.kill)
                try:
                    self.train()
                finally:
                    self.over = True
                killing.result()
            self.seconds = time.monotonic() - began
            self.world.unsupervise()
            wait_for(self.world["worker"].alive, "the worker to be back")
            report = inspect(self.world).check()
            self.evidence, self.counts = evidence(self.world, self.done, report.facts), report.counts
        finally:
            self.world.close()

    def train(self):
        account, key = self.world.account("curve")
        self.done.accounts[account] = "curve"
        service = self.world.service(key)
        client = service.create_lora_training_client(base_model=self.world.model, rank=8, seed=13).result()
        self.done.roles[client.model_id.split(":")[0]] = "curve"
        losses = self.done.seen["curve"] = []
        for step in range(STEPS):
            sent = client.forward_backward(lesson(step), "cross_entropy"), client.optim_step(ADAM)
            self.step = step
            losses.append((bits(sent[0].result()), sent[1].result().metrics))
            if step % 50 == 49:
                print(f"step {step + 1} of {STEPS}, {self.kills} kills")
        end(service)

    def kill(self):
        worker = self.world["worker"]
        for step, late in self.moments:
            wait_for(lambda: self.over or self.step >= step, f"step {step}")
            time.sleep(late)
            wait_for(worker.alive, "the worker to be back")
            worker.shoot()
            self.kills += 1


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_K13_two_hundred_kills_in_one_training_run(servers):
    calm, hit = Curve(servers, 0), Curve(servers, KILLS)
    assert hit.kills == KILLS
    same(calm.evidence, hit.evidence)
    print(
        f"{STEPS} steps, {hit.kills} kills, {hit.counts['barriers']} barriers: {calm.seconds:.0f} s undisturbed, {hit.seconds:.0f} s with kills"
        f" ({hit.seconds / calm.seconds:.2f} times); losses equal, {hit.counts['tokens'] - calm.counts['tokens']} tokens adrift"
    )
