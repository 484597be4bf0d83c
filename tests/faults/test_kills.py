"""Killing our processes at every arrow between two writes: rows K1 to K23 of tests/faults/ROWS.md.

A failpoint makes the process kill itself (or ask itself to stop) at the named moment, so each test proves that the moment was
reached.  The clients are the public SDK and must not notice; what is left behind must be what the undisturbed run left."""

import concurrent.futures
import random
import re
import socket
import subprocess
import sys
import time

import pytest
import tinker
from checker import inspect, read_facts
from forced import Fault
from oracle import work
from raw import Raw
from sdk import end, tokens_of
from waiting import NotStaged, staged, wait_for

# ------------------------------------------------------------ gateway


def test_K01_gateway_before_the_job_is_in_the_log(survives):
    survives(
        Fault("gateway", "gw.before_produce", nth=3),
        Fault("gateway", "gw.before_produce", nth=9),
        Fault("gateway", "gw.before_produce", "term", nth=5),
    )


def test_K02_gateway_after_the_ack_before_the_answer(survives):
    more = survives(
        Fault("gateway", "gw.after_ack", nth=4),
        Fault("gateway", "gw.before_reply", nth=12),
        Fault("gateway", "gw.before_reply", "term", nth=6),
    )
    assert more["job_copies"] >= 2  # the client sent them again, and they were dropped


def send_poll(port, key, request_id):
    """A poll that waits, as one socket; the answer is read later."""
    it = socket.create_connection(("127.0.0.1", port), timeout=120)
    body = f'{{"request_id": "{request_id}"}}'.encode()
    head = f"POST /api/v1/retrieve_future HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
    it.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return it


def read_answer(it):
    """Status and body; None when the connection ended."""
    data = b""
    try:
        while b"\r\n\r\n" not in data or len(data.split(b"\r\n\r\n", 1)[1]) < int(
            re.search(rb"(?i)content-length: (\d+)", data)[1]
        ):
            more = it.recv(65536)
            if not more:
                return None
            data += more
    except ConnectionError:
        return None
    finally:
        it.close()
    return int(data.split(b" ", 2)[1]), data.split(b"\r\n\r\n", 1)[1]


def test_K03_one_of_two_gateways_dies_with_a_thousand_open_polls(world):
    second = world.process("gateway", "gateway2").start()
    _, key = world.account("polls")
    model = Raw(world.base_url, key).session().model(world.model)
    model.raw.result(model.jobs[0])
    world["worker"].freeze()
    job = model.gradient(tokens_of(1, 20))
    ports = [world["gateway"].extra["port"], second.extra["port"]]
    polls = [send_poll(ports[i % 2], key, job) for i in range(1000)]
    began = time.monotonic()
    second.kill()
    cut = [it for it in polls[1::2] if read_answer(it) is None]
    assert len(cut) == 500
    again = [send_poll(ports[0], key, job) for _ in cut]
    print(f"500 polls were made again within {time.monotonic() - began:.1f} s")
    world["worker"].thaw()
    waiting = [*polls[0::2], *again]
    answers = []
    while waiting:
        status, body = read_answer(waiting.pop())
        assert status == 200, body
        if b"try_again" in body:
            waiting.append(send_poll(ports[0], key, job))
        else:
            answers.append(body)
    assert len(answers) == 1000 and len(set(answers)) == 1
    inspect(world).check()


def test_K04_the_only_gateway_is_away_for_a_while(world, survives, full):
    gateway = world["gateway"]

    def disturb():
        time.sleep(1)
        gateway.kill()
        time.sleep(60 if full else 5)
        gateway.start()

    survives(disturb=disturb)
    assert "expire" not in {job.kind for job in read_facts(world).jobs}


# ------------------------------------------------------------ worker

FIRST = Fault("worker", "wk.mid_batch", nth=4)  # something to take over from


def test_K05_worker_with_an_epoch_and_no_barrier_yet(world, survives):
    survives(FIRST, Fault("worker", "wk.after_epoch"), Fault("worker", "wk.after_epoch", "term", nth=2))
    barriers = [(r.topic, r.partition, r.epoch) for r in read_facts(world).barriers]
    epochs = world.sql("select stream, partition, epoch from shards")
    given = sum(epoch for *_, epoch in epochs)
    assert len(set(barriers)) == len(barriers)
    assert len(barriers) < given  # who died before the barrier decided nothing: the checker saw no result of that epoch


@pytest.mark.parametrize("how", ["kill", "term"])
def test_K06_worker_in_the_middle_of_a_take_over(survives, how):
    more = survives(
        FIRST,
        Fault("worker", "wk.after_barrier", how, nth=2),
        Fault("worker", "wk.mid_scan", how, nth=3),
        Fault("worker", "wk.after_snaprow", how),  # so that the next one has a snapshot to load
        Fault("worker", "wk.after_load", how),
    )
    assert more["barriers"] >= 6


def test_K07_worker_in_a_batch_of_several_tenants(world, survives):
    """While one job takes its time, the next ones of two accounts come in, so that they are one batch; its second task kills it."""

    def both(kill):
        models = []
        for i in range(2):
            raw = Raw(world.base_url, world.account(f"tenant {i}")[1])
            models.append(raw.session().model(world.model, seed=i))
            raw.result(models[-1].jobs[0])
        worker = world["worker"]
        worker.arm("wk.after_exec", "delay", ms=3000, match=models[0].id)
        mark = worker.log.stat().st_size
        jobs = [models[0].gradient(tokens_of(9, 20))]
        worker.wait_fired("wk.after_exec")
        if kill:
            worker.arm("wk.mid_batch", "kill", nth=2)
        jobs += [m.gradient(tokens_of(i, 30), tokens_of(5 + i, 20)) for i, m in enumerate(models)]

        def batches():
            return re.findall(r"batch\.done class=pass runs=(\d)", worker.log.read_bytes()[mark:].decode())

        if kill:
            worker.wait_fired("wk.mid_batch")
            worker.wait_exit()
            staged(batches() == ["1"], "both come in while the first job takes its time")
            worker.start()
        else:
            wait_for(lambda: len(batches()) >= 2, "the batch of both")  # logged after its results are published
            staged(batches() == ["1", "2"], "both come in while the first job takes its time")
        found = [models[0].raw.result(jobs[0])] + [m.raw.result(job) for m, job in zip(models, jobs[1:])]
        return found + [m.raw.result(m.step()) for m in models]

    assert both(kill=True) == both(kill=False)
    survives(Fault("worker", "wk.mid_batch", nth=7), Fault("worker", "wk.mid_batch", "term", nth=5))


def test_K08_worker_after_executing(survives):
    survives(Fault("worker", "wk.after_exec", nth=6), Fault("worker", "wk.after_exec", "term", nth=5))


def test_K09_worker_before_and_after_sending(world, servers, survives):
    """Sent by nobody; sent, and perhaps written; and, with a broker that does not answer, written after the sender's death."""
    import signal

    worker = world["worker"]

    def disturb():
        wait_for(lambda: worker.fired("wk.before_send"), "the first kill")
        wait_for(lambda: worker.alive() and worker.says("shard.taken stream=train"), "the successor")
        servers.signal("kafka", signal.SIGSTOP)
        try:
            worker.arm("wk.after_send", "kill")
            wait_for(lambda: worker.fired("wk.after_send"), "a result that is sent to a silent broker", 5)
        except AssertionError:
            worker.disarm("wk.after_send")  # no result was due just then; the next kill covers it
        finally:
            servers.signal("kafka", signal.SIGCONT)

    survives(Fault("worker", "wk.before_send", nth=8), disturb=disturb)
    survives(Fault("worker", "wk.after_send", nth=6), Fault("worker", "wk.after_send", "term", nth=4))


def known_results(world):
    return sum(int(n) for n in re.findall(r" shard\.taken .* known=(\d+)", world["worker"].log.read_text()))


def test_K10_worker_after_the_results_ack_before_a_snapshot(world, survives):
    before = known_results(world)
    more = survives(
        Fault("worker", "wk.after_result_ack", nth=5),
        Fault("worker", "wk.after_result_ack", nth=15),
        Fault("worker", "wk.after_result_ack", "term", nth=5),
    )
    assert more["copies"] == 0 and known_results(world) > before  # effects redone, nothing published again


def kept_loads(world, run):
    """Folders with what a load of that run read."""
    return sorted((world.home / "data" / "snapshots" / run.replace(":", "_")).glob("*-load-*"))


def test_K10_a_load_whose_checkpoint_is_deleted_before_its_snapshot(fresh_world):
    """The log says that it went well, so whoever replays it gets the same weights: when no snapshot came to be, and when the first
    one is damaged.  Afterwards nothing of it is left."""
    world, worker = fresh_world, fresh_world["worker"]
    key = world.account("deletes")[1]
    session = Raw(world.base_url, key).session()
    maker, model, calm = (session.model(world.model, seed=n) for n in (1, 2, 2))
    for it in (maker, model, calm):
        it.gradient(tokens_of(it is maker, 20))
        it.step()
    maker.save("x")
    path = f"tinker://{maker.id}/weights/x"
    maker.results()
    worker.arm("wk.after_snapfile", "err", match=model.id, keep=True)

    def look(it):
        return it.raw.result(it.forward(tokens_of(3, 20)))

    def learn(it, seed):
        it.gradient(tokens_of(seed, 20))
        it.step()
        return look(it)

    for it in (model, calm):
        it.load(path)
    before = look(model)
    assert before == look(calm) == look(maker)
    [(folder,)] = world.sql("select dir from checkpoints where run_id = %s", maker.id)
    tinker.RestClient(base_url=world.base_url, api_key=key).delete_checkpoint_from_tinker_path(path).result()
    wait_for(lambda: not (world.home / "data" / folder).exists(), "the files of the checkpoint to go")
    assert not world.sql("select 1 from run_snapshots where run_id = %s", model.id)

    worker.kill()
    worker.disarm("wk.after_snapfile")
    worker.start()
    assert look(model) == before
    assert learn(model, 4) == learn(calm, 4)
    assert worker.drain() == 0
    for (other,) in world.sql("select dir from run_snapshots where run_id = %s", model.id):
        file = world.home / "data" / other / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert kept_loads(world, model.id)
    worker.start()
    world.supervise()
    assert look(model) == look(calm)
    world.unsupervise()
    assert ("worker", 75) in world.exits
    for seed in (5, 6):
        assert learn(model, seed) == learn(calm, seed)
        assert worker.drain() == 0
        worker.start()
    assert not kept_loads(world, model.id)
    assert world.counters("worker:0")["digest_mismatches"] == 0
    inspect(world).check()


@pytest.mark.parametrize("how", ["kill", "term"])
def test_K11_worker_while_a_snapshot_is_written(survives, how):
    survives(
        Fault("worker", "wk.mid_save", how, match="snapshots"),
        Fault("worker", "wk.after_snapfile", how, nth=2),
        Fault("worker", "wk.after_snaprow", how, nth=2),
    )


def test_K12_worker_while_a_checkpoint_is_written(survives):
    survives(
        Fault("worker", "wk.mid_save", match="checkpoints"),
        Fault("worker", "wk.mid_save", "term", nth=2, match="checkpoints"),
        Fault("worker", "wk.after_ckptrow", nth=2),
        Fault("worker", "wk.after_ckptrow", "term"),
    )


def test_K12_a_replayed_save_does_not_hide_a_newer_one(world):
    """Two saves of one name, and a death after the second: the name means the second."""
    _, key = world.account("saves")
    model = Raw(world.base_url, key).session().model(world.model)
    worker = world["worker"]
    model.gradient(tokens_of(1, 20))
    model.step()
    first = model.save("x", overwrite=True)
    model.raw.result(first)
    model.gradient(tokens_of(2, 20))
    model.step()
    worker.arm("wk.after_ckptrow", "kill", match=model.id)
    second = model.save("x", overwrite=True)
    worker.wait_fired("wk.after_ckptrow")
    worker.wait_exit()
    worker.start()
    model.raw.result(second)
    rows = world.sql("select seq, sha256 from checkpoints where run_id = %s and name = 'x' order by seq", model.id)
    assert [seq for seq, _ in rows] == [3, 6] and rows[0][1] != rows[1][1]
    after = model.raw.result(model.forward(tokens_of(3, 20)))
    model.gradient(tokens_of(4, 20))
    model.step()
    model.load(f"tinker://{model.id}/weights/x")
    assert model.raw.result(model.forward(tokens_of(3, 20))) == after
    inspect(world).check()


def test_K12_a_checkpoint_whose_row_has_to_wait_is_not_swept(fresh_world):
    """Postgres refuses the row again and again, for longer than a folder without one is left alone."""
    world, worker = fresh_world, fresh_world["worker"]
    world.lease(60000)
    model = Raw(world.base_url, world.account("waits")[1]).session().model(world.model)
    model.results()
    worker.arm("db.spoil", "err", match="tinworks-worker", keep=True)
    save = model.save("x")
    home = world.home / "data" / "checkpoints"
    [waiting] = wait_for(lambda: list(home.glob("*/*/1-training-e[0-9]/adapter_config.json")), "the files")
    world.process("worker", "worker2", sweep_every_ms=100, sweep_age_s=1).start()
    for _ in range(3):  # one that nobody waits for, beside it
        left = waiting.parent.with_name("9-training-e0")
        left.mkdir()
        wait_for(lambda: not left.exists(), "a folder without a row to be swept")
    assert not world.sql("select 1 from checkpoints")
    worker.disarm("db.spoil")
    model.raw.result(save)
    assert waiting.exists()
    world["worker2"].drain()
    inspect(world).check()


@pytest.mark.timeout(7200)
def test_K13_worker_killed_again_and_again(world, survives):
    """20 times, at seeded moments while the work goes on; 200 times in one long run: test_curve.py."""
    moments, worker = random.Random(13), world["worker"]
    wanted, kills, times = 20, 0, []
    began = time.monotonic()
    work(world)
    alone = time.monotonic() - began

    while kills < wanted:
        ended = []

        def killer():
            nonlocal kills
            while not ended and kills < wanted:
                end = time.monotonic() + moments.uniform(0.3, 1.3)  # it is back within half a second
                while time.monotonic() < end and not ended:
                    time.sleep(0.02)
                if not ended and worker.alive():
                    worker.shoot()
                    kills += 1

        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:

            def disturb():
                killing = pool.submit(killer)

                def calm():
                    ended.append(True)
                    killing.result()

                return calm

            try:
                survives(disturb=disturb)
            finally:
                times.append(time.monotonic() - began)
                ended.append(True)
    print(f"{kills} kills; the work took {alone:.1f} s alone, {max(times):.1f} s at most with kills and checks")


def test_K14_all_workers_at_once(world, survives):
    second = world.process("worker", "worker2").start()

    def disturb():
        time.sleep(2)
        for _ in range(2):
            for it in (world["worker"], second):
                it.shoot()
            time.sleep(4)

    try:
        survives(disturb=disturb)
    finally:
        second.drain()


def test_K15_one_rank_of_a_worker_on_several_devices():
    pytest.skip("a worker owns one device; there are no ranks to kill")


# ------------------------------------------------------------ dispatcher


def test_K16_resolver_before_and_after_its_script(survives):
    survives(
        Fault("dispatcher", "rs.before_script", nth=5),
        Fault("dispatcher", "rs.before_script", "term", nth=5),
        Fault("dispatcher", "rs.after_script", nth=9),
        Fault("dispatcher", "rs.after_script", "term", nth=4),
    )


@pytest.mark.timeout(3600)
def test_K17_no_dispatcher_at_all(world, survives, full):
    """Training, sampling and billing go on, and the gateway finds the results in the log."""
    dispatcher = world["dispatcher"]
    dispatcher.kill()
    end = time.monotonic() + (300 if full else 1)
    while time.monotonic() < end:
        survives()
    dispatcher.start()
    inspect(world).check()


def test_K18_two_dispatchers_at_once(world, survives):
    second = world.process("dispatcher", "dispatcher2").start()

    def conflicts():
        return sum(world.counters(f"dispatcher:{n}").get("conflicts", 0) for n in (0, 2))

    def met():  # by chance, and each time less likely if one of them hardly gets to run
        survives()
        try:
            return wait_for(conflicts, "a conflict of cursors to be counted", 5)
        except NotStaged:
            return False

    wait_for(met, "two that want to move the same cursor")
    second.drain()


# ------------------------------------------------------------ billing


def test_K19_billing_between_its_writes(survives):
    survives(
        Fault("billing", "bl.after_insert", nth=3),
        Fault("billing", "bl.after_insert", "term", nth=2),
        Fault("billing", "bl.before_commit", nth=4),
        Fault("billing", "db.commit_sent", nth=2),
        Fault("billing", "db.commit_sent", nth=3),
        Fault("billing", "bl.after_commit", nth=5),
        Fault("billing", "bl.after_commit", "term", nth=2),
    )


def test_K20_two_billing_consumers(world, survives):
    second = world.process("billing", "billing2").start()
    survives()
    second.drain()


@pytest.mark.timeout(7200)
def test_K21_billing_away_under_load(world, survives, full):
    billing = world["billing"]
    billing.kill()
    end = time.monotonic() + (3600 if full else 1)
    rounds = 0
    while time.monotonic() < end:
        work(world)
        rounds += 1
    [(behind,)] = world.sql("select count(*) from job_outcomes")
    billing.start()
    survives()
    [(now,)] = world.sql("select count(*) from job_outcomes")
    print(f"{rounds} rounds without billing, {now - behind} outcomes afterwards")
    assert now - behind > 100


# ------------------------------------------------------------ everything


@pytest.mark.timeout(3600)
def test_K22_all_our_processes_at_once(world, survives, full):
    wanted = 20 if full else 5
    kills = 0
    moments = random.Random(22)
    while kills < wanted:

        def disturb():
            nonlocal kills
            for _ in range(min(5, wanted - kills)):
                time.sleep(moments.uniform(1, 4))
                for it in list(world.processes.values()):
                    if it.wanted:
                        it.shoot()
                kills += 1

        survives(disturb=disturb)


CLIENT = """
import sys
from sdk import ADAM, batch_of
import tinker
service = tinker.ServiceClient(base_url=sys.argv[1], api_key=sys.argv[2])
client = service.create_lora_training_client(base_model=sys.argv[3], rank=8, seed=23).result()
sent = [(client.forward_backward(batch_of(s), "cross_entropy"), client.optim_step(ADAM)) for s in range(3)]
path = client.save_state("here").result().path
print(client.model_id, path, flush=True)
for s in range(3, 2000):
    client.forward_backward(batch_of(s), "cross_entropy"), client.optim_step(ADAM)
    print("sent", flush=True)
"""


def continued(world, key, path):
    from sdk import ADAM, batch_of, bits

    service = world.service(key)
    client = service.create_training_client_from_state_with_optimizer(path).result()
    sent = [(client.forward_backward(batch_of(s), "cross_entropy"), client.optim_step(ADAM)) for s in range(50, 53)]
    seen = [(bits(g.result()), u.result().metrics) for g, u in sent]
    end(service)
    return seen


def test_K23_a_client_is_killed_and_another_goes_on_from_the_checkpoint(world):
    account, key = world.account("killed client")
    child = subprocess.Popen(
        [sys.executable, "-c", CLIENT, world.base_url, key, world.model],
        env={**world.environ, "PYTHONPATH": ":".join(sys.path), "TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    run, path = child.stdout.readline().split()
    for _ in range(5):
        assert child.stdout.readline() == "sent\n"
    child.kill()
    child.wait()
    seen = continued(world, key, path)
    report = inspect(world).check()  # what was accepted before ran, and was billed once
    [(jobs,)] = world.sql("select count(*) from job_outcomes where parent_id = %s", run)
    accepted = [job for job in report.facts.accepted.values() if job.parent == run]
    assert jobs == len(accepted) >= 8
    assert continued(world, key, path) == seen
