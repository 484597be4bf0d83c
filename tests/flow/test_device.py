"""The worker on cuda:0, from end to end: its kernels are the GPU's, emulated on the CPU (kernels/cuda/emulate.h), everything else is
what runs where there is a GPU.  A model of two narrow layers, so that a step takes a fraction of a second."""

import contextlib
import dataclasses
import subprocess

import pytest
import tinker
from checker import inspect
from oracle import Work, evidence, same
from sdk import ADAM, bits, datum, end, floats, lora, sampling, text, tokens_of
from world import ROOT, World, program

SHAPE = {"hidden": 16, "layers": 2, "heads": 2, "kv-heads": 1, "head-dim": 8, "intermediate": 32, "context": 512}
BOUNDS = {"kv_mb": 16, "scratch_mb": 256, "adapters_mb": 256, "sampler_cache_mb": 64}
GIVES_WAY = 75  # the exit code: start another, it goes on from the log
PICO = {"prefill": 70_000, "sample": 220_000, "train": 220_000}  # the first price list, pico-dollars a token
BATCH = [datum(tokens_of(i, 10 + i)) for i in range(2)]
PROMPT, NEW = tokens_of(9, 70), 5  # the prompt ends within its second block of 64
EMULATED = "cuda/emulated/sm_80/fp32"


# ------------------------------------------------------------ the world


def on_gpu(world, name="worker", **settings):
    """A worker that is not started yet, with the emulated kernels; the same one when a test is tried once more."""
    if name in world.processes:
        return world[name]
    it = world.process("worker", name, **settings)
    it.program = "tinworks-worker-emulated"
    it.lose = world.home / f"{name}.lose"
    it.prefix = ["env", f"EMULATE_LOSE={it.lose}"]
    return it


@pytest.fixture(scope="module")
def world(servers):
    model = servers.home / "models" / "narrow"
    shape = [word for name, value in SHAPE.items() for word in (f"--{name}", str(value))]
    subprocess.run([program("tinworks-model"), "make", *shape, "--out", model], cwd=ROOT, check=True, capture_output=True)
    it = World(servers, model_dir=model, device="cuda:0", train_partitions=1, poison_attempts=2, snapshot_idle_ms=400, **BOUNDS)
    try:
        on_gpu(it).start(wait=False)
        yield it.start("billing", "dispatcher", "gateway")
    finally:
        it.close()


def undone(world):
    """Nothing stands still, no device is about to be lost, and no worker has what a test gave it for a while."""
    for it in world.processes.values():
        (world.home / f"{it.name}.lose").unlink(missing_ok=True)
        it.extra.pop("paged_moments", None)
    world.disarm_all()


@pytest.fixture
def worker(world):
    """Well again before and after a test, whatever became of it."""
    it = world["worker"]
    undone(world)
    if not it.alive():
        it.start()
    it.ready()
    yield it
    undone(world)
    for other in world.processes.values():
        if other.role == "worker" and other is not it and other.alive():
            other.drain()


# ------------------------------------------------------------ one story, told again and again


@dataclasses.dataclass
class Told:
    work: Work
    account: str
    losses: list
    sequences: list  # (tokens, log-probabilities) as sampled
    forward: list  # of prompt and sequence: the trainer's log-probabilities of the sequence


def step(client):
    return client.forward_backward(BATCH, "cross_entropy"), client.optim_step(ADAM)


def seen_of(sent):
    return [(bits(gradient.result()), update.result().metrics) for gradient, update in sent]


def story(world, meanwhile=lambda _: contextlib.nullcontext()):
    """SFT, a checkpoint, samples and what the trainer finds for them, a copy of the checkpoint that goes the same way on.
    What is sent within `with meanwhile(stage)` is what a fault of that stage meets."""
    account, key = world.account("device")
    service = world.service(key)
    run = lora(service, world.model, rank=4)
    seen = seen_of([step(run) for _ in range(3)])
    with meanwhile("save"):
        saved = run.save_state("early")
    path = saved.result().path
    with meanwhile("pass"):
        gradient = run.forward_backward(BATCH, "cross_entropy")
    with meanwhile("step"):
        update = run.optim_step(ADAM)
    seen += seen_of([(gradient, update)])
    sampler = run.save_weights_and_get_sampling_client().result()
    with meanwhile("sample"):
        answer = sampler.sample(text(PROMPT), 2, sampling(max_tokens=NEW, stop=[]))
    sequences = [(list(s.tokens), floats(s.logprobs)) for s in answer.result().sequences]
    forward = run.forward([datum(PROMPT + tokens) for tokens, _ in sequences], "cross_entropy").result()
    copy = service.create_training_client_from_state_with_optimizer(path).result()
    again = seen_of([step(copy)])
    assert again[0][0] == seen[3][0] and again[0][1] == seen[3][1]  # as the run itself went on from there
    end(service)
    roles = {run.model_id.split(":")[0]: "customer"}
    work = Work(roles, {account: "customer"}, {"customer": [seen, sequences, bits(forward)]})
    losses = [float.fromhex(loss) for (_, loss), _ in seen]
    found = [floats(out["logprobs"].to_numpy()[len(PROMPT) - 1 :]) for out in forward.loss_fn_outputs]
    return Told(work, account, losses, sequences, found)


def settled(world, told):
    """What can be compared, after the checker has found nothing."""
    return evidence(world, told.work, inspect(world).check().facts)


@pytest.fixture(scope="module")
def undisturbed(world):
    told = story(world)
    return told, settled(world, told)


# ------------------------------------------------------------ undisturbed


def test_a_worker_on_a_gpu_says_what_it_runs_on(world, worker):
    assert worker.says(f' worker.device device=cuda:0 numerics="{EMULATED}', since_start=False)
    assert worker.says(" worker.ready ", since_start=False)
    assert world.sql("select distinct numerics like %s from shards", f"{EMULATED}%") == [(True,)]


def test_the_loss_falls_and_samples_are_on_policy(undisturbed):
    told, _ = undisturbed
    assert told.losses == sorted(told.losses, reverse=True) and told.losses[-1] < told.losses[0]
    assert [logprobs for _, logprobs in told.sequences] == told.forward


def test_the_bill_is_to_the_token(world, undisturbed):
    told, found = undisturbed
    a_pass = sum(d.model_input.length for d in BATCH)
    expected = {
        "train": 5 * a_pass,  # four of the run, one of its copy
        "sample": 2 * NEW,
        "prefill": len(PROMPT) + 2 * (len(PROMPT) + NEW - 1),
    }
    billed = [sum(column) for column in zip(*(tokens for _, _, tokens, _ in found.jobs.values()))]
    assert dict(zip(("prefill", "sample", "train"), billed)) == expected
    assert found.charges == {"customer": sum(PICO[kind] * count for kind, count in expected.items())}


# ------------------------------------------------------------ disturbed


def test_a_worker_killed_in_the_middle_changes_no_bit(world, worker, undisturbed):
    """Nor does it that its successor keeps the moments with the host."""

    @contextlib.contextmanager
    def meanwhile(stage):
        if stage == "step":
            worker.arm("wk.step", "kill", match=":optim_step:")
        yield
        if stage == "step":
            worker.wait_exit()
            worker.extra["paged_moments"] = "true"
            worker.start()

    told = story(world, meanwhile)
    del worker.extra["paged_moments"]
    same(undisturbed[1], settled(world, told))
    assert world.counters("worker:0")["digest_mismatches"] == 0


LOST_IN = {  # where the worker is stopped, and how many pieces of work later the device goes
    "save": ("wk.mid_save", 3),  # weights are written, the optimizer's state is not
    "pass": ("wk.mid_batch", 20),
    "step": ("wk.step", 2),
    "sample": ("wk.mid_sample", 20),
}


@contextlib.contextmanager
def losing_its_device(worker, stage):
    """What is asked for within meets a device that goes at that stage of it."""
    point, work = LOST_IN[stage]
    worker.arm(point, "stop")
    yield
    worker.wait_fired(point)
    worker.wait_frozen()
    worker.lose.write_text(str(work))
    worker.thaw()
    assert worker.wait_exit() == GIVES_WAY
    assert worker.says(' error worker.end kind=lost error="') and worker.says("device cuda:0 is lost: ")


def test_a_lost_device_ends_the_worker_and_the_next_one_goes_on(world, worker, undisturbed):
    """Two workers take over from one another."""
    now, other = worker, on_gpu(world, "worker1")

    @contextlib.contextmanager
    def meanwhile(stage):
        nonlocal now, other
        with losing_its_device(now, stage):
            yield
        now, other = other.start(), now

    told = story(world, meanwhile)
    same(undisturbed[1], settled(world, told))
    assert [world.counters(f"worker:{slot}")["digest_mismatches"] for slot in (0, 1)] == [0, 0]


def test_a_sample_that_costs_one_device_after_the_other_is_given_up(world, worker):
    account, key = world.account("poison")
    service = world.service(key)
    sampler = service.create_sampling_client(base_model=world.model).result()
    with losing_its_device(worker, "sample"):
        answer = sampler.sample(text(PROMPT), 1, sampling(max_tokens=NEW))
    with losing_its_device(worker, "sample"):
        worker.start()
    worker.start()
    with pytest.raises(tinker.RequestFailedError, match="poison") as caught:
        answer.result()
    assert caught.value.category.name.lower() == "server"
    assert sampler.sample(text(PROMPT[:3]), 1, sampling(max_tokens=1)).result().sequences
    inspect(world).check()
    assert world.sql("select status, amount_pico > 0 from job_outcomes where account_id = %s order by seq", account) == [
        ("failed", False),
        ("ok", True),
    ]
    end(service)


# ------------------------------------------------------------ refused


def refused(it, *texts):
    it.start(wait=False)
    assert it.wait_exit() == 1
    for line in texts:
        assert it.says(line), it.tail()


def test_a_device_that_is_not_there_is_refused(world):
    refused(on_gpu(world, "worker3", device="cuda:8"), 'device "cuda:8" was asked for, but this machine has 8')
    refused(on_gpu(world, "worker4", device="gpu"), 'device is "gpu", expected "cpu" or "cuda:N"')


def test_bounds_that_the_gpus_memory_has_no_room_for_are_refused(world):
    """The host has room for them all."""
    it = on_gpu(world, "worker5", adapters_mb=1000)
    it.prefix += ["EMULATE_MEMORY_MB=2560"]
    refused(it, "device cuda:0: the worker may need ", "and 2.50 GiB are there: weights and libraries ", "; lower adapters_mb")


def test_the_stock_build_says_that_it_has_no_cuda(world):
    refused(world.process("worker", "worker6"), 'device "cuda:0" was asked for, but this build has no CUDA')


def test_a_cpu_and_a_gpu_are_two_numerics_classes(world, worker):
    """Neither goes on where the other was, unless an operator accepts that bits may change."""
    service = world.service(world.account("classes")[1])
    run = lora(service, world.model, rank=4)
    assert len(seen_of([step(run)])) == 1
    assert worker.drain() == 0
    refused(world.process("worker", "worker7", device="cpu"), f'were computed as "{EMULATED}', "--numerics-change accepts that")
    cpu = world.process("worker", "worker8", device="cpu", numerics_change="true").start()
    assert cpu.says("warn shard.numerics_changed")
    assert len(seen_of([step(run)])) == 1
    assert cpu.drain() == 0
    refused(worker, 'were computed as "cpu/', "--numerics-change accepts that")
    accepting = on_gpu(world, "worker9", numerics_change="true").start()
    assert len(seen_of([step(run)])) == 1
    assert accepting.drain() == 0
    end(service)
