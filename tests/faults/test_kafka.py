"""The broker dies, is full, forgets, repeats: rows B1 to B10 of tests/faults/ROWS.md, and records that are none."""

import concurrent.futures
import contextlib
import random
import re
import resource
import subprocess
import time

import confluent_kafka
import pytest
import redis
import tinker
from checker import inspect, read_facts
from cluster import Cluster
from confluent_kafka.admin import AdminClient, NewPartitions
from forced import Fault
from oracle import evidence, same, work
from raw import Raw, datum, sample
from sdk import tokens_of
from world import ROOT, World, state_of
from waiting import wait_for


SHARDS = 3  # of a world: two of training, one of sampling


def topic(world, stream, what):
    return f"{world.topic_prefix}{world.model.replace('/', '--')}.{stream}.{what}"


def new_model(world, name, seed=7):
    """A run of a new account that was made."""
    model = Raw(world.base_url, world.account(name)[1]).session().model(world.model, seed=seed)
    model.raw.result(model.jobs[0])
    return model


def body_of(model, seq, tokens):
    lesson = {"data": [datum(list(tokens))], "loss_fn": "cross_entropy"}
    return {"model_id": model.id, "seq_id": seq, "forward_backward_input": lesson}


def append(world, records):
    """(topic, partition, key, headers, value) of each, into the log by hand."""
    producer = confluent_kafka.Producer({"bootstrap.servers": world.brokers, "acks": "all"})
    failed = []
    for name, partition, key, headers, value in records:
        producer.produce(
            name, value, key, partition, headers=headers, on_delivery=lambda e, _: failed.append(e) if e else None
        )
    assert producer.flush(60) == 0 and not failed, failed


def ends(world, name, partition):
    reader = confluent_kafka.Consumer({"bootstrap.servers": world.brokers, "group.id": "none"})
    try:
        return reader.get_watermark_offsets(confluent_kafka.TopicPartition(name, partition), timeout=60)
    finally:
        reader.close()


# ------------------------------------------------------------ the broker is away


@pytest.mark.timeout(3600)
def test_B01_broker_killed_under_load(world, servers, survives, full):
    wanted, kills, moments = (20 if full else 2), 0, random.Random(1)

    while kills < wanted:

        def disturb():
            nonlocal kills
            for _ in range(min(2, wanted - kills)):
                time.sleep(moments.uniform(0.5, 1.5))
                servers.kill("kafka")
                servers.up()
                kills += 1

        more = survives(disturb=disturb)
        assert more["copies"] == 0


@pytest.mark.timeout(3600)
def test_B02_broker_away_for_minutes_is_invisible(world, servers, survives, full):
    """Longer than a submit waits for its ack and a worker for its results', shorter than a client goes on trying."""

    def disturb():
        time.sleep(1)
        servers.kill("kafka")
        time.sleep(240 if full else 24)
        servers.up()

    survives(disturb=disturb)
    left = [code for name, code in world.exits if name == "worker"]
    print(f"the worker left with {left or 'nothing to lose'}")
    assert set(left) <= {75}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_B02_broker_away_for_longer_than_a_client_tries(world, servers):
    """A submit may fail then; what was accepted is done all the same."""
    model = new_model(world, "long")
    world.supervise()
    world["worker"].freeze()
    jobs = [model.gradient(tokens_of(n, 20)) for n in range(3)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        doing = pool.submit(work, world, seed=2)
        time.sleep(1)
        servers.kill("kafka")
        world["worker"].thaw()
        time.sleep(360)
        servers.up()
        try:
            doing.result()
        except tinker.TinkerError as e:
            print(f"the client gave up: {type(e).__name__}")
    assert len({model.raw.result(job) for job in jobs}) == 3
    world.unsupervise()
    inspect(world).check()


@contextlib.contextmanager
def impatient(world, *prefix):
    """The gateway, started with those words before it, waits 4 s for an ack."""
    gateway = world["gateway"]
    gateway.drain()
    gateway.prefix, gateway.extra = list(prefix), {**gateway.extra, "ack_ms": 4000}
    gateway.start()
    try:
        yield
    finally:
        world.servers.up()
        gateway.drain()
        del gateway.extra["ack_ms"]
        gateway.prefix = []
        gateway.start()


def test_B03_written_and_not_told(world, servers):
    """The broker writes a job and dies before the gateway hears of it: 503, the client sends it again, one result."""
    library, flag = servers.home / "deaf.so", servers.home / "deaf"
    words = ["cc", "-O1", "-shared", "-fPIC", "-o", library, ROOT / "tests" / "support" / "deaf.c", "-ldl"]
    subprocess.run(words, check=True)
    port = world.brokers.rsplit(":", 1)[1]
    flag.unlink(missing_ok=True)
    with impatient(world, "env", f"LD_PRELOAD={library}", f"DEAF={flag}", f"DEAF_PORT={port}"):
        model = new_model(world, "deaf")
        body = body_of(model, 1, tokens_of(1, 20))
        try:
            flag.touch()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(model.raw.once, "forward_backward", body)

                def written():
                    return [r for r in read_facts(world).accepted.values() if (r.parent, r.seq) == (model.id, 1)]

                [record] = wait_for(written, "the job in the log")
                servers.kill("kafka")
                assert answer.result()[0] == 503, "the gateway heard the ack"
        finally:
            flag.unlink()
        servers.up()
        assert model.raw.call("forward_backward", body)["request_id"] == record.id
        model.raw.result(record.id)
    report = inspect(world).check()
    assert 2 <= sum(job.id == record.id for job in report.facts.jobs) <= 2 + model.raw.repeats


def test_B04_a_producer_that_cannot_go_on(world, survives):
    """librdkafka's idempotent producer has a fatal error: the gateway makes a new one in place, the others are replaced."""
    gateway, before = world["gateway"], len(world.exits)
    starts = gateway.starts
    survives(
        Fault("gateway", "bus.fatal", "err", nth=4),
        Fault("worker", "bus.fatal", "err", nth=6),
        Fault("dispatcher", "bus.fatal", "err", nth=5),
    )
    assert gateway.starts == starts and gateway.says("the Kafka producer died and was made anew")
    assert ("worker", 75) in world.exits[before:] and ("dispatcher", 1) in world.exits[before:]


def test_B04_a_producer_that_dies_while_a_run_is_given_up(servers):
    """The dispatcher has nothing else to send, and leaves all the same; the next one gives the run up."""
    world = World(servers, expire_s=1, snapshot_idle_ms=3600000, snapshot_replay_ms=3600000)
    try:
        world.start()
        model, dispatcher = new_model(world, "gap"), world["dispatcher"]
        dispatcher.arm("bus.fatal", "err", match="train.jobs")
        held = model.gradient(tokens_of(1, 20), seq=2)
        assert dispatcher.wait_exit() == 1 and dispatcher.says(f'giving up run "{model.id}"')
        dispatcher.start()
        assert b"job 1 was missing" in model.raw.result(held)[1]
        inspect(world).check()
    finally:
        world.close()


def test_B05_no_room_on_the_brokers_disk(world, servers, survives, full):
    """Every write of the broker fails, as on a full disk (a limit on its files' size does that for one process); it stops itself.
    Until there is room again submits are told to come later, polls are held, and nobody dies again and again."""
    def disturb():
        time.sleep(1)
        pid, before = servers.pid("kafka"), len(world.exits)
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
        wait_for(lambda: state_of(pid) in (None, "Z"), "the broker to stop for want of room")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            polled = pool.submit(Raw(world.base_url, model.raw.key).poll, pending)
            assert model.raw.once("forward_backward", missing)[0] in (429, 503)
            time.sleep(60 if full else 5)
            assert polled.result() is None if polled.done() else True
            again = [name for name, _ in world.exits[before:]]
            servers.up()
        assert all(again.count(name) <= 1 for name in set(again)), again
        return lambda: model.jobs.append(model.raw.call("forward_backward", missing)["request_id"])

    with impatient(world):
        model = new_model(world, "full")
        pending = model.gradient(tokens_of(2, 20), seq=2)  # waits for the job before it
        missing = body_of(model, 1, tokens_of(1, 20))
        survives(disturb=disturb)
        model.results()


# ------------------------------------------------------------ three brokers


@pytest.fixture
def replicated(servers):
    """A world on three brokers that replicate."""
    cluster = Cluster(servers)
    world = World(servers, kafka_brokers=cluster.brokers, kafka_replication=3)
    world.brokers = cluster.brokers
    try:
        cluster.up()
        yield cluster, world.start()
    finally:
        world.close()
        cluster.down()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_B06_brokers_lost_among_three(replicated, undisturbed):
    """Without one everything goes on; without two nothing is accepted, and nothing that was accepted is lost."""
    cluster, world = replicated
    world.supervise()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        doing = pool.submit(work, world)
        time.sleep(2)
        cluster.kill(0)
        done = doing.result()
    same(undisturbed, evidence(world, done, inspect(world).check().facts))
    model = new_model(world, "two lost")
    accepted = model.gradient(tokens_of(1, 20))
    model.raw.result(accepted)
    cluster.kill(1)
    body = body_of(model, 2, tokens_of(2, 20))
    assert model.raw.once("forward_backward", body)[0] == 503
    cluster.start(1)
    model.raw.result(model.raw.call("forward_backward", body)["request_id"])
    cluster.start(0)
    cluster.wait()
    world.unsupervise()
    inspect(world).check()


# ------------------------------------------------------------ the log forgets


@pytest.mark.parametrize("what", ["jobs", "results"])
def test_B07_a_log_that_begins_behind_what_is_needed(servers, what):
    """The shard is refused and told of, never jumped over; the other shards go on."""
    world = World(servers, snapshot_idle_ms=3600000, snapshot_replay_ms=3600000, poll_hold_ms=3000)
    try:
        world.start()
        models = {}
        while len(models) < 2:
            model = new_model(world, "forgets")
            [(shard,)] = world.sql("select shard from runs where id = %s", model.id)
            models.setdefault(shard, model)
        lost, other = models[0], models[1]
        lost.raw.result(lost.gradient(tokens_of(1, 20)))
        worker = world["worker"]
        worker.kill()
        rows = "select resume_offset, scan_offset, scan_epoch from shards where stream = 'train' and partition = 0"
        before = world.sql(rows)
        pending = lost.gradient(tokens_of(2, 20))
        decided = ends(world, topic(world, "train", "results"), 0)
        name = topic(world, "train", what)
        _, end = ends(world, name, 0)
        admin = AdminClient({"bootstrap.servers": world.brokers})
        [gone] = admin.delete_records([confluent_kafka.TopicPartition(name, 0, end)]).values()
        gone.result(60)
        assert ends(world, name, 0)[0] == end > before[0][what == "results"]
        worker.start()
        wait_for(lambda: worker.says("shard.refused stream=train partition=0"), "the alarm")
        other.raw.result(other.gradient(tokens_of(3, 20)))
        wait_for(lambda: world.counters("worker:0").get("shards_refused") == 1, "the counter")
        assert worker.alive() and lost.raw.poll(pending) is None
        assert world.sql(rows) == before
        assert ends(world, topic(world, "train", "results"), 0)[1] == decided[1]
    finally:
        world.close()


def test_B07_a_refused_shard_that_is_lost(servers):
    """All that a worker has is a shard that it refused; it stands still for longer than its lease, and another one takes that over.
    It leaves, as with any shard: one that has lost a shard takes none, and who lives must be of use."""
    world = World(servers, train_partitions=1, snapshot_idle_ms=3600000, snapshot_replay_ms=3600000)
    try:
        world.start()
        model = new_model(world, "forgets")
        model.raw.result(model.gradient(tokens_of(1, 20)))
        refusing = world["worker"]
        refusing.kill()
        name = topic(world, "train", "jobs")
        _, end = ends(world, name, 0)
        admin = AdminClient({"bootstrap.servers": world.brokers})
        [gone] = admin.delete_records([confluent_kafka.TopicPartition(name, 0, end)]).values()
        gone.result(60)
        world.sql("update shards set owner = 'nobody', lease_until = 'infinity' where stream = 'sample'")
        refusing.start()
        alarm = "shard.refused stream=train partition=0"
        wait_for(lambda: refusing.says(alarm), "the alarm")
        refusing.freeze()
        successor = world.process("worker", "worker2").start()
        wait_for(lambda: successor.says(alarm), "the successor's alarm")
        refusing.thaw()
        assert refusing.wait_exit() == 75
        assert refusing.says("shard train/0, which was refused here, was taken over by another worker")
        world.sql("update shards set lease_until = '-infinity' where stream = 'sample'")
        wait_for(lambda: successor.says("shard.taken stream=sample"), "the other shard to be taken")
        assert successor.alive()
        sampler = model.session.sampler(base_model=world.model)
        assert model.raw.result(sample(model.raw, sampler, 0, tokens_of(2, 8)))[0] == "application/x-protobuf"
    finally:
        world.close()


# ------------------------------------------------------------ the log repeats


def test_B09_everything_comes_twice(servers, undisturbed):
    """Every job is copied; then every reader goes back to the beginning of the logs."""
    world = World(servers)
    try:
        world.start()
        done = work(world)
        before = inspect(world).check()
        jobs = sorted(before.facts.jobs, key=lambda r: r.place)
        append(world, [(r.topic, r.partition, r.parent, list(r.headers.items()), r.value) for r in jobs])
        twice = inspect(world).check()
        assert twice.counts["job_copies"] - before.counts["job_copies"] == before.counts["jobs"] + before.counts["job_copies"]
        for name in ("worker", "dispatcher", "billing"):
            world[name].kill()
        world.sql("update shards set resume_offset = 0, scan_offset = 0, scan_epoch = 0")
        world.sql("update ingest_cursors set next_offset = 0, max_epoch = 0")
        with redis.Redis.from_url(world.redis_url) as store:
            store.flushall()
        world["dispatcher"].start()
        wait_for(lambda: world.counters("dispatcher:0").get("settled", 0) >= before.counts["results"], "all futures to be settled again")
        for name in ("billing", "worker"):
            world[name].start()
        after = wait_for(lambda: settled(world, before), "all to be read again")
        assert world["worker"].says("shard.taken") and world["dispatcher"].says("resolver.rebuild")
        assert after.counts["results"] == before.counts["results"] and after.counts["copies"] == 0
        same(undisturbed, evidence(world, done, after.facts))
    finally:
        world.close()


def settled(world, before):
    """A clean report, once the worker has met all results again; the checker waits for billing."""
    known = re.findall(r" shard\.taken .* known=(\d+) jobs=(\d+)", world["worker"].log.read_text())[-SHARDS:]
    if sum(int(n) for n, _ in known) < before.counts["results"]:
        return None
    assert sum(int(n) for _, n in known) == 2 * (before.counts["jobs"] + before.counts["job_copies"])
    return inspect(world).check()


def test_B10_two_payloads_under_one_number(world):
    """The first in the log is the job, and both callers get its result."""
    first, second = tokens_of(1, 20), tokens_of(2, 20)
    alone, both = new_model(world, "alone"), new_model(world, "both")
    expected = alone.raw.result(alone.gradient(first))
    sampler = both.session.sampler(base_model=world.model)
    wanted = both.raw.result(sample(both.raw, sampler, 0, first[:9]))
    world["worker"].freeze()
    jobs = [both.gradient(first, seq=1), both.gradient(second, seq=1)]
    samples = [sample(both.raw, sampler, 1, first[:9]), sample(both.raw, sampler, 1, second[:9])]
    world["worker"].thaw()
    assert jobs[0] == jobs[1] and samples[0] == samples[1]
    assert [both.raw.result(job) for job in jobs] == [expected] * 2
    assert [both.raw.result(job) for job in samples] == [wanted] * 2
    report = inspect(world).check()
    for job in (jobs[0], samples[0]):
        assert len({r.value for r in report.facts.jobs if r.id == job}) == 2


def append_again(world, job):
    """Copies the record of that job to the end of its log; the copy's offset."""
    record = read_facts(world).accepted[job]
    _, end = ends(world, record.topic, record.partition)
    append(world, [(record.topic, record.partition, record.parent, list(record.headers.items()), record.value)])
    return end


def covered(world, offset, stream="sample"):
    """Waits until no take-over reads the record at that offset of the jobs again."""
    rows = "select resume_offset from shards where stream = %s and partition = 0"
    wait_for(lambda: world.sql(rows, stream)[0][0] > offset, f"the shard to pass offset {offset}")


@pytest.mark.parametrize("books", ["know it", "do not know it yet", "are not asked"])
def test_B09_a_sample_comes_again_long_after_it_was_decided(servers, books):
    """Its result lies below all that a take-over needs.  The books know it, or it lies above billing's position, from which the
    take-over reads; who does neither publishes a second record, which a rebuilt cursor would serve."""
    world = World(servers, sample_partitions=1)
    try:
        if books == "are not asked":
            world.break_rule("books")
        world.start()
        raw = Raw(world.base_url, world.account("again")[1])
        sampler = raw.session().sampler(base_model=world.model)
        if books == "do not know it yet":
            wait_for(lambda: world.sql("select 1 from ingest_cursors"), "billing to begin")
            world["billing"].drain()
        jobs = [sample(raw, sampler, n, tokens_of(n, 9)) for n in range(3)]
        found = [raw.result(job) for job in jobs]
        if books != "do not know it yet":
            wait_for(lambda: len(world.sql("select 1 from job_outcomes")) == len(jobs), "the books")
        covered(world, max(read_facts(world).accepted[job].offset for job in jobs))
        world["worker"].kill()
        last = append_again(world, jobs[0])
        world["worker"].start()
        covered(world, last)
        # The same in one life: the books know the next one, so the worker has forgotten it when its copy comes.
        if books == "know it":
            jobs += [sample(raw, sampler, n, tokens_of(n, 9)) for n in (3, 4)]
            found += [raw.result(job) for job in jobs[3:]]
            wait_for(lambda: len(world.sql("select 1 from job_outcomes")) == len(jobs), "the books")
            jobs.append(sample(raw, sampler, 5, tokens_of(5, 9)))
            found.append(raw.result(jobs[5]))
            covered(world, append_again(world, jobs[3]))
        if books == "do not know it yet":
            world["billing"].start()
        with redis.Redis.from_url(world.redis_url) as store:
            store.flushall()
        report = inspect(world)
        if books == "are not asked":
            assert "I8" in report.rules() and report.counts["copies"] == 1
            return
        assert report.check().counts["copies"] == 0
        assert [raw.result(job) for job in jobs] == found
    finally:
        world.close()


# ------------------------------------------------------------ records that are none


def test_a_bad_record_is_skipped_by_every_reader_alike(world):
    """They come with an epoch that would fence every worker off, if anybody took them for records."""
    model = new_model(world, "bad")
    job = model.gradient(tokens_of(1, 20))
    before = model.raw.result(job)
    official = read_facts(world).official[job]
    place = official.topic, official.partition, job

    def changed(value=official.value, **headers):
        new = {**official.headers, "tw_epoch": "999999", **{k.replace("__", "-"): v for k, v in headers.items()}}
        return *place, [(k, v) for k, v in new.items() if v is not None], value

    barrier = {"ce_specversion": "1.0", "ce_id": "x", "ce_type": "tinworks.barrier", "ce_source": "worker", "tw_epoch": "999999"}
    bad = [
        (*place, [], b"junk"),
        changed(tw_model="somebody/else"),
        changed(ce_type="tinworks.result.sample"),
        changed(ce_type="tinworks.result.dance"),
        changed(value=b"other"),
        changed(tw_status="fine"),
        changed(tw_status="failed", content__type="application/json"),  # and bills
        changed(tw_train="2147483648"),
        changed(tw_epoch="9223372036854775808"),
        changed(tw_seq=None),
        (*place, list(barrier.items()), None),  # without owner, build, numerics
    ]
    seen = world.counters("dispatcher:0").get("unreadable", 0)
    append(world, bad)
    step = model.step()
    model.raw.result(step)
    wait_for(lambda: world.counters("dispatcher:0").get("unreadable", 0) == seen + len(bad), "the resolver to count them")
    dlq = f"{world.topic_prefix}dlq"
    wait_for(lambda: ends(world, dlq, 0)[1] >= len(bad), "billing to keep them")

    def told():  # each right after it was kept
        return world["billing"].log.read_text().count(" billing.bad_record ")

    wait_for(lambda: told() >= len(bad), "billing to tell of them")
    assert told() == len(bad)
    world["worker"].kill()  # with a scan that reads them
    world.sql("update shards set scan_offset = 0, scan_epoch = 0 where stream = 'train'")
    world["worker"].start()
    wait_for(lambda: world["worker"].log.read_text().count(" shard.unreadable_result ") >= len(bad), "the worker to pass them")
    with redis.Redis.from_url(world.redis_url) as store:
        store.flushall()
    assert model.raw.result(job) == before
    model.raw.result(model.gradient(tokens_of(2, 20)))
    report = inspect(world).check()
    assert report.counts["bad"] == len(bad)


def test_a_record_of_a_newer_version_stops_its_readers(servers):
    """What an older reader would skip may be somebody's result: it stops and says so, and a newer one goes on from there."""
    world = World(servers, train_partitions=1)
    try:
        world.start()
        model = new_model(world, "newer")
        job = model.gradient(tokens_of(1, 20))
        model.raw.result(job)
        official = read_facts(world).official[job]
        headers = {**official.headers, "ce_specversion": "2.0"}
        append(world, [(official.topic, official.partition, job, list(headers.items()), official.value)])
        for name in ("billing", "dispatcher"):
            assert world[name].wait_exit() == 1
            assert "header ce_specversion is" in world[name].tail()
        worker = world["worker"]
        worker.kill()
        world.sql("update shards set scan_offset = 0, scan_epoch = 0 where stream = 'train'")
        worker.start(wait=False)
        assert worker.wait_exit() == 75 and "header ce_specversion is" in worker.tail()
    finally:
        world.close()


# ------------------------------------------------------------ more partitions; the last, as the world has them afterwards


def until_used(world, shards):
    """New runs, whose ids are random and choose their shard, until each of those shards has one."""
    for _ in range(100):
        if {s for (s,) in world.sql("select distinct shard from runs")} == shards:
            return
        new_model(world, "chooses")
    raise AssertionError(f"a hundred runs, and not just the shards {shards} are used")


def test_B08_more_partitions_while_it_runs(world, survives):
    """The topics grow under load: no run moves.  Then the worker is told, and new runs use them too."""
    names = [topic(world, "train", what) for what in ("jobs", "results")]
    survives()
    until_used(world, {0, 1})
    shards = dict(world.sql("select id, shard from runs"))

    def disturb():
        time.sleep(1)
        admin = AdminClient({"bootstrap.servers": world.brokers})
        for done in admin.create_partitions([NewPartitions(name, 3) for name in names]).values():
            done.result(60)

    survives(disturb=disturb)
    assert set(shards.values()) == {0, 1} == {s for (s,) in world.sql("select distinct shard from runs")}
    worker = world["worker"]
    assert worker.drain() == 0
    worker.extra["train_partitions"] = 3
    worker.start()
    world["gateway"].drain()
    world["gateway"].start()
    survives()
    until_used(world, {0, 1, 2})
    assert shards.items() <= dict(world.sql("select id, shard from runs")).items()
    inspect(world).check()
