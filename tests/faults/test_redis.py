"""Redis is emptied, dies, loads, is full, forgets: rows R1 to R10 of tests/faults/ROWS.md (R10 is in test_zombies.py)."""

import concurrent.futures
import os
import pwd
import random
import re
import shutil
import signal
import subprocess
import time

import confluent_kafka
import pytest
import redis
from checker import inspect
from confluent_kafka.admin import AdminClient
from raw import Raw, datum, sample
from sdk import tokens_of
from world import World
from waiting import staged, wait_for


@pytest.fixture
def store(world):
    with redis.Redis.from_url(world.redis_url) as it:
        yield it


def new_model(world, name, seed=7):
    """A run of a new account that was made."""
    model = Raw(world.base_url, world.account(name)[1]).session().model(world.model, seed=seed)
    model.raw.result(model.jobs[0])
    return model


def rebuilds(world):
    return world["dispatcher"].log.read_text().count(" resolver.rebuild ")


def futures_in(world, store):
    return sum(1 for _ in store.scan_iter(f"{world.redis_prefix}future:*", 1000))


def all_served_cold(world, store):
    """Redis is emptied once more with nobody at work: whatever is asked now comes from the log."""
    store.flushall()
    before = futures_in(world, store)
    began = time.monotonic()
    report = inspect(world).check()
    print(f"{report.counts['futures']} futures served by the cold path in {time.monotonic() - began:.1f} s, checks included")
    assert before == 0 and report.counts["futures"] == report.counts["results"]


# ------------------------------------------------------------ emptied


@pytest.mark.timeout(3600)
def test_R01_emptied_under_load(world, store, survives, full):
    wanted, flushed, moments = (50 if full else 5), 0, random.Random(1)
    while flushed < wanted:

        def disturb():
            nonlocal flushed
            for _ in range(min(5, wanted - flushed)):
                time.sleep(moments.uniform(0.1, 0.6))
                before, end = rebuilds(world), time.monotonic() + 3
                store.flushall()
                while rebuilds(world) == before:  # it is seen at the next script, if the work is not over
                    if time.monotonic() > end:
                        return
                    time.sleep(0.02)
                flushed += 1

        survives(disturb=disturb)
    print(f"Redis was emptied {flushed} times under load, and the resolver noticed each time")
    all_served_cold(world, store)


def test_R02_killed_and_back_with_its_file(world, servers, store, survives):
    seen = {}
    survives()  # both streams' cursors are there

    def disturb():
        time.sleep(1)
        store.config_set("appendfsync", "always")  # by itself Redis may answer before it writes, for as long as the disk is busy
        seen["futures"], seen["rebuilds"] = futures_in(world, store), rebuilds(world)
        servers.kill("redis")
        servers.up()
        seen["after"] = futures_in(world, store)

    survives(disturb=disturb)
    survives()
    assert seen["after"] >= seen["futures"] > 0, "what Redis had acknowledged is gone"
    assert rebuilds(world) == seen["rebuilds"], "the resolver did not find its cursors"


def redis_folder(servers):
    return (servers.home / "services").resolve() / "redis"


def test_R03_killed_and_back_empty(world, servers, store, survives):
    def disturb():
        time.sleep(1)
        seen["before"] = rebuilds(world)
        servers.kill("redis")
        shutil.rmtree(redis_folder(servers))
        servers.up()

    seen = {}
    survives(disturb=disturb)
    survives()
    assert rebuilds(world) > seen["before"], "the resolver did not see that its cursors were gone"
    all_served_cold(world, store)


# ------------------------------------------------------------ there, and of no use


class Instead:
    """A Redis in place of the servers' own, on its port and folder, started with more words."""

    def __init__(self, servers, *words):
        port = servers.settings["TINWORKS_REDIS"].rsplit(":", 1)[1].split("/")[0]
        folder = redis_folder(servers)
        owner = pwd.getpwuid(folder.stat().st_uid)
        user = {} if os.getuid() else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self.child = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", folder, "--appendonly", "yes", "--save", "", *words],
            cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user,
        )  # fmt: skip

    def end(self):
        self.child.kill()
        self.child.wait()


def says(store, word):
    """Does a write meet that error?"""
    try:
        store.set("probe", "1")
        return False
    except redis.RedisError as e:
        return word in f"{type(e).__name__} {e}".upper()


def test_R04_loading_and_read_only(servers, full):
    """Treated as away: polls are held, and a client asks no more often than when all is well."""
    seconds = 30 if full else 6
    world = World(servers, log_requests=1)
    store = redis.Redis.from_url(world.redis_url)
    loading = None
    try:
        world.start()
        model = new_model(world, "loads")
        store.flushall()
        for i in range(1000):
            store.set(f"filler:{i}", random.randbytes(1000))  # while it loads it answers once in 1024 bytes
        store.bgrewriteaof()
        wait_for(lambda: not rewriting(store), "the file to be rewritten")
        for state in ("LOADING", "READONLY"):
            if state == "LOADING":
                servers.kill("redis")
                delay_us = int(2 * (seconds + 10) * 1000)
                words = ["--key-load-delay", str(delay_us), "--loading-process-events-interval-bytes", "1024"]
                loading = Instead(servers, *words)
                wait_for(lambda: says(store, "LOADING"), "Redis to be loading", 20)
            else:
                loading.end()
                servers.up()
                store.execute_command("REPLICAOF", "127.0.0.1", "1")
                wait_for(lambda: says(store, "READONLY"), "Redis to be read-only", 20)
            world["worker"].freeze()
            job = model.gradient(tokens_of(1, 20))
            before = polls(world)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(model.raw.result, job)
                time.sleep(seconds)
                asked = polls(world) - before
                lasted = says(store, state)
                world["worker"].thaw()  # before anything is raised: the pool waits for the answer
                answer.result()
            staged(lasted and says(store, state), f"{state} until the result is there")
            print(f"{state}: {asked} polls were answered in {seconds} s")
            assert asked <= 3
        store.execute_command("REPLICAOF", "NO", "ONE")
        wait_for(lambda: not says(store, "READONLY"), "Redis to take writes")
        inspect(world).check()
    finally:
        if loading:
            loading.end()
        world.close()
        servers.up()
        store.replicaof("NO", "ONE")
        store.close()


def rewriting(store):
    now = store.info("persistence")
    return now["aof_rewrite_in_progress"] or now["aof_rewrite_scheduled"]


def polls(world):
    return sum("retrieve_future" in line for line in world["gateway"].log.read_text().splitlines())


@pytest.mark.timeout(3600)
def test_R05_away_for_long(world, servers, survives, full):
    """Results come from the log, one poll each, while nobody fills Redis."""

    def disturb():
        servers.kill("redis")
        return servers.up

    end = time.monotonic() + (600 if full else 1)
    while time.monotonic() < end:
        survives(disturb=disturb)


def test_R06_no_room(world, store, survives):
    """-OOM: nothing is evicted, the resolver waits, samples are refused for the time; training goes on."""
    model = new_model(world, "room")
    sampler = model.session.sampler(base_model=world.model)
    gateway, dispatcher = world["gateway"], world["dispatcher"]
    evicted = store.info("stats")["evicted_keys"]
    body = {
        "sampling_session_id": sampler,
        "seq_id": 0,
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens_of(1, 8)}]},
        "sampling_params": {"max_tokens": 4, "seed": 1, "temperature": 1.0, "stop": []},
    }

    def disturb():
        time.sleep(1)
        store.config_set("maxmemory", "1")
        try:
            assert says(store, "OUTOFMEMORY")
            wait_for(lambda: gateway.says(" gateway.redis_full "), "the gateway to see it")
            job = model.gradient(tokens_of(1, 20))  # the workload may be over by now
            wait_for(lambda: " resolver.waits " in dispatcher.log.read_text() and "OOM" in dispatcher.log.read_text(), "the resolver to")
            status, _, _ = model.raw.once("asample", body)
            assert status == 429
            model.raw.result(job)
        finally:
            store.config_set("maxmemory", "512mb")
        wait_for(lambda: gateway.says("over=true"), "the gateway to see that there is room")

    survives(disturb=disturb)
    model.raw.result(sample(model.raw, sampler, 0, tokens_of(1, 8)))
    assert store.info("stats")["evicted_keys"] == evicted
    assert "resolver.resumes" in dispatcher.log.read_text()


# ------------------------------------------------------------ what is old


def test_R07_asked_after_its_time(servers):
    """Redis has let it go: it comes from the log.  The log has let it go too: 410, and no new job."""
    world = World(servers, train_partitions=1, future_ttl_s=1)
    try:
        world.start()
        model = new_model(world, "old")
        job = model.gradient(tokens_of(1, 20))
        early = model.raw.result(job)
        with redis.Redis.from_url(world.redis_url) as store:
            key = f"{world.redis_prefix}future:{job}"
            wait_for(lambda: not store.exists(key), "its time in Redis to be over")
            assert model.raw.result(job) == early
            report = inspect(world).check()
            official = report.facts.official[job]
            admin = AdminClient({"bootstrap.servers": world.brokers})
            end = confluent_kafka.TopicPartition(official.topic, 0, official.offset + 1)
            [gone] = admin.delete_records([end]).values()
            gone.result(60)
            wait_for(lambda: not store.exists(key), "its time in Redis to be over again")
        status, _, data = model.raw.once("retrieve_future", {"request_id": job})
        assert status == 410 and job.encode() in data
        with redis.Redis.from_url(world.redis_url) as store:
            assert not store.exists(key)
        assert model.raw.call("forward_backward", lesson(model, 1, 20))["request_id"] == job  # sent again: a copy, dropped
        model.raw.result(model.gradient(tokens_of(2, 20)))
        assert world.sql("select count(*) from job_outcomes where job_id = %s", job) == [(1,)]
    finally:
        world.close()


def lesson(model, seq, length):
    data = {"data": [datum(tokens_of(seq, length))], "loss_fn": "cross_entropy"}
    return {"model_id": model.id, "seq_id": seq, "forward_backward_input": data}


# ------------------------------------------------------------ late, trimmed


def test_R08_frozen_for_longer_than_its_clients_wait(world, servers, store, survives):
    """The connection is made anew; no late answer is taken for another question's: the checker reads every future."""
    model, jobs = new_model(world, "frozen"), []

    def disturb():
        for _ in range(3):
            time.sleep(1)
            servers.signal("redis", signal.SIGSTOP)
            try:
                jobs.append(model.gradient(tokens_of(1, 20)))  # the workload may be over by now
                time.sleep(3)
                wait_for(lambda: noticed() > before, "anybody to notice", 60)
            finally:
                servers.signal("redis", signal.SIGCONT)

    def noticed():  # by the resolver, or, when it had nothing to write then, by the counters
        return len(re.findall(r" resolver\.waits | dispatcher\.counters .*lost", world["dispatcher"].log.read_text()))

    before = noticed()
    survives(disturb=disturb)
    for job in jobs:
        model.raw.result(job)


def test_R09_the_stream_of_wake_ups_is_lost(world, store):
    """Whoever waits looks again by itself.  Without billing, so that it is not the cold path that finds it."""
    model = new_model(world, "wakes")
    gateway, worker, billing = world["gateway"], world["worker"], world["billing"]
    billing.freeze()
    worker.freeze()
    job = model.gradient(tokens_of(1, 20))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer, began = pool.submit(model.raw.once, "retrieve_future", {"request_id": job}), time.monotonic()
        wait_for(lambda: world.counters("gateway:0").get("polls_parked"), "the poll to wait")
        gateway.freeze()
        time.sleep(2)  # longer than it waits for the stream in one question
        worker.thaw()
        wait_for(lambda: store.exists(f"{world.redis_prefix}future:{job}"), "the result")
        assert store.delete(f"{world.redis_prefix}done") == 1
        staged(time.monotonic() - began < 15, "the result is there long before the poll is over")
        gateway.thaw()
        status, _, data = answer.result()
    billing.thaw()
    assert status == 200 and b"try_again" not in data
    inspect(world).check()
