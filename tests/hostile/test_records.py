"""Records in our topics that nobody of ours wrote: row H12.  They go to the dlq or are skipped; the log goes on behind them.
(A record of another version is no such record: it stops its readers, see faults/test_kafka.py.)"""

import hashlib
import json

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from raw import sample
from waiting import wait_for

PAYLOAD = json.dumps({"adam_params": {"learning_rate": 0.001}}).encode()


class Topics:
    def __init__(self, world):
        self.world = world
        self.model = world.model.replace("/", "--")
        self.producer = Producer({"bootstrap.servers": world.brokers, "message.max.bytes": 40 << 20})

    def name(self, what):
        return f"{self.world.topic_prefix}{self.model}.{what}"

    def send(self, what, partition, value, headers, key=b"by-hand"):
        """Where it landed."""
        place = []
        self.producer.produce(
            self.name(what), value, key, partition, headers=list(headers.items()), on_delivery=lambda e, m: place.append((e, m))
        )
        self.producer.flush(60)
        [(error, message)] = place
        assert error is None, error
        return self.name(what), partition, message.offset()

    def dead(self):
        """{(topic, partition, offset): reason} of all that is in the dlq."""
        consumer = Consumer({"bootstrap.servers": self.world.brokers, "group.id": "hostile", "enable.auto.commit": False})
        try:
            at = TopicPartition(f"{self.world.topic_prefix}dlq", 0, 0)
            _, end = consumer.get_watermark_offsets(at, 30)
            consumer.assign([at])
            found = {}
            while end and (m := consumer.poll(30)) is not None:  # one without a value is false
                if m.error():
                    raise KafkaException(m.error())
                h = {k: v.decode() for k, v in m.headers()}
                found[h["tw_topic"], int(h["tw_partition"]), int(h["tw_offset"])] = h["tw_reason"]
                if m.offset() + 1 >= end:
                    break
            return found
        finally:
            consumer.close()

    def dead_of(self, sent):
        """Which of them are in the dlq; nothing until the last one is."""
        dead = self.dead()
        found = {what for what, place in sent.items() if dead.get(place)}
        return found if list(sent)[-1] in found else None


@pytest.fixture(scope="module")
def topics(world):
    return Topics(world)


@pytest.fixture
def shard(world, hostile):
    [(shard,)] = world.sql("select shard from runs where id = %s", hostile.run.id)
    return shard


def job_headers(account, run, seq, value=PAYLOAD, kind="optim_step", **change):
    headers = {
        "ce_specversion": "1.0",
        "ce_id": f"{run}:{kind}:{seq}:0123456789abcdef",
        "ce_type": f"tinworks.job.{kind}",
        "ce_source": "by-hand",
        "content-type": "application/json",
        "tw_tenant": account,
        "tw_run": run,
        "tw_seq": str(seq),
        "tw_tokens": "0",
        "tw_digest": hashlib.sha256(value).hexdigest(),
        **change,
    }
    return {k: v for k, v in headers.items() if v is not None}


WRONG_JOBS = {
    "no version": {"ce_specversion": None},
    "no kind that we know": {"ce_type": "tinworks.job.delete_everything"},
    "no kind": {"ce_type": "x"},
    "a sampling kind": {"ce_type": "tinworks.job.sample"},
    "another digest": {"tw_digest": "0" * 64},
    "no digest": {"tw_digest": None},
    "a content type": {"content-type": "text/html"},
    "an id with a line break": {"ce_id": "a\r\nb"},
    "an id that is too long": {"ce_id": "a" * 400},
    "number -1": {"tw_seq": "-1"},
    "number 2^63": {"tw_seq": str(2**63)},
    "no number": {"tw_seq": "one"},
    "no run": {"tw_run": None},
    "a tenant that is no id": {"tw_tenant": "../x"},
    "no headers": {k: None for k in job_headers("a", "b", 1)},
}


def test_H12_jobs_that_cannot_be_read_go_to_the_dlq(world, topics, hostile, account, shard):
    sent = {
        what: topics.send("train.jobs", shard, PAYLOAD, job_headers(account[0], hostile.run.id, hostile.run.seq + 1, **change))
        for what, change in WRONG_JOBS.items()
    }
    sent["a run of another shard"] = topics.send(
        "train.jobs", 1 - shard, PAYLOAD, job_headers(account[0], hostile.run.id, hostile.run.seq + 1)
    )
    for whats in (list(WRONG_JOBS), ["a run of another shard"]):
        assert wait_for(lambda: topics.dead_of({what: sent[what] for what in whats}), "the dlq") == set(whats)
    kind, body = hostile.raw.result(hostile.run.step())  # the number that they claimed is still free
    assert "metrics" in json.loads(body)


def test_H12_a_job_of_a_foreign_tenant_fails_and_nobody_pays_it(world, topics, hostile, account, shard):
    """It names another account than the run's: its number is used up by a failure, and the run goes on behind it."""
    stranger = world.account("stranger")[0]
    hostile.run.seq += 1
    headers = job_headers(stranger, hostile.run.id, hostile.run.seq)
    topics.send("train.jobs", shard, PAYLOAD, headers)
    _, body = hostile.raw.result(hostile.run.step())
    assert "metrics" in json.loads(body)
    outcome = wait_for(
        lambda: world.sql("select status, account_id, amount_pico from job_outcomes where job_id = %s", headers["ce_id"]),
        "the outcome",
    )
    assert outcome == [("failed", stranger, 0)]


def test_H12_a_record_without_bound_is_refused_by_the_log(topics, account, hostile, shard):
    with pytest.raises((AssertionError, KafkaException)) as caught:
        topics.send("train.jobs", shard, bytes(20 << 20), job_headers(account[0], hostile.run.id, 1, bytes(20 << 20)))
    assert "MSG_SIZE_TOO_LARGE" in str(caught.value) or "too large" in str(caught.value).lower()


def barrier(epoch, **change):
    headers = {
        "ce_specversion": "1.0",
        "ce_id": f"barrier:{epoch}:by-hand",
        "ce_type": "tinworks.barrier",
        "ce_source": "by-hand",
        "tw_epoch": str(epoch),
        "tw_owner": "by-hand",
        "tw_build": "x",
        "tw_numerics": "x",
        **change,
    }
    return {k: v for k, v in headers.items() if v is not None}


def result_headers(account, run, value, **change):
    headers = job_headers(account, run, 10**6, value) | {
        "ce_type": "tinworks.result.optim_step",
        "tw_epoch": "1",
        "tw_status": "ok",
        "tw_model": "tinworks/tiny",
        "tw_prefill": "0",
        "tw_sample": "0",
        "tw_train": "0",
    }
    return {k: v for k, v in (headers | change).items() if v is not None}


def wrong_results(account, run):
    """(what, (value, headers)) of records of a results topic."""
    yield "a barrier of epoch 2^63", (None, barrier(2**63))
    yield "a barrier of epoch 2^64", (None, barrier(2**64))
    yield "a barrier of epoch 99..9", (None, barrier("9" * 400))
    yield "a barrier of epoch -1", (None, barrier(-1))
    yield "a barrier of nobody", (None, barrier(10**6, tw_owner=None))
    yield "a barrier with something in it", (b"damaged", barrier(10**6))
    yield "another digest", (b"{}", result_headers(account, run, b"{}", tw_digest="0" * 64))
    yield "2^63 tokens", (b"{}", result_headers(account, run, b"{}", tw_train=str(2**63)))
    yield "-5 tokens", (b"{}", result_headers(account, run, b"{}", tw_train="-5"))
    yield "a failure that bills", (b"{}", result_headers(account, run, b"{}", tw_status="failed", tw_train="5"))
    yield "no headers", (b"\xff\x00", {})


def test_H12_results_and_barriers_that_cannot_be_read_fence_and_bill_nobody(world, topics, hostile, account, shard):
    owed = world.sql("select * from balances where account_id = %s", account[0])
    epochs = world.epochs()
    sent = {what: topics.send("train.results", shard, *record) for what, record in wrong_results(account[0], hostile.run.id)}
    left = wait_for(lambda: topics.dead_of(sent), "the dlq")
    assert left == set(sent)
    results = [hostile.raw.result(hostile.run.step()) for _ in range(2)]  # nobody was fenced
    assert all("metrics" in json.loads(body) for _, body in results)
    assert world.epochs() == epochs
    assert world.sql("select * from balances where account_id = %s", account[0]) == owed


def test_H12_plans_that_cannot_be_read_are_ignored(topics, hostile):
    for value in (
        b"",
        b"{",
        b"[]",
        b"\xff" * 1000,
        b'{"jobs": ' + b"[" * 5000,
        json.dumps({"batch": "x", "jobs": [{"job_id": "x" * 10000}]}).encode(),
    ):
        topics.send("batches", 0, value, {"ce_specversion": "1.0"})
    assert "metrics" in json.loads(hostile.raw.result(hostile.run.step())[1])
    assert hostile.raw.result(sample(hostile.raw, hostile.sampler_id, 5000, [5, 6, 7]))[0] == "application/x-protobuf"
