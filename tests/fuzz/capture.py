"""A pytest plugin that makes seeds for the fuzz targets of what the clients' tests sent: when the last test is over it
reads every job, result and plan topic of the stack and writes small records of each kind under the folder FUZZ_SEEDS.

    ./tinworks test -p fuzz.capture clients/test_losses.py clients/test_scores.py ...   # with FUZZ_SEEDS=DIR
    build/fuzz/tests/fuzz/fuzz-NAME -merge=1 tests/fuzz/corpus/NAME DIR/NAME            # keeps what reaches new code
"""

import collections
import hashlib
import os
import pathlib

import confluent_kafka
import pytest

SEED_MAX = 6000  # bytes
EACH_MAX = 40  # records of one kind and one size class

SMALL = {"create": b"\0", "save": b"\1", "save_sampler": b"\1", "load": b"\2", "optim_step": b"\4", "reject": b"\5"}


def target_of(kind, protobuf, result):
    """Which target decodes the payload of such a record, and the byte that chooses within it; None: none does."""
    if result:
        return {
            "forward": ("output", b"\1"),
            "forward_backward": ("output", b"\1"),
            "sample": ("output", b"\0"),
            "compute_logprobs": ("output", b"\0"),
        }.get(kind)
    if kind in ("forward", "forward_backward"):
        return "train", b"\1" if protobuf else b"\0"
    if kind in ("sample", "compute_logprobs"):
        return "sample", b"\1" if kind == "compute_logprobs" else b"\0"
    return ("small", SMALL[kind]) if kind in SMALL else None


def as_record(topic, headers, value):
    which = bytes([2 * topic.endswith(".results") + (".sample." in topic)])
    text = b""
    for name, content in headers:
        if name == "tw_digest" and content == hashlib.sha256(value).hexdigest().encode():
            content = b"="
        text += bytes([len(name)]) + name.encode() + len(content).to_bytes(2, "little") + content
    return which + text + b"\0" + value


class Seeds:
    def __init__(self, folder):
        self.folder, self.seen = pathlib.Path(folder), collections.Counter()

    def add(self, target, sort, content):
        self.seen[target, sort, len(content).bit_length()] += 1
        if len(content) > SEED_MAX or self.seen[target, sort, len(content).bit_length()] > EACH_MAX:
            return
        (self.folder / target).mkdir(parents=True, exist_ok=True)
        (self.folder / target / hashlib.sha1(content).hexdigest()).write_bytes(content)

    def record(self, topic, headers, value):
        if topic.endswith(".batches"):
            self.add("small", "plan", b"\3" + value)
            return
        fields = dict(headers)
        kind = fields.get("ce_type", b"").decode().rsplit(".", 1)[-1]
        protobuf = fields.get("content-type") == b"application/x-protobuf"
        self.add("record", (topic.rsplit(".", 1)[-1], kind, fields.get("tw_status")), as_record(topic, headers, value))
        found = target_of(kind, protobuf, topic.endswith(".results"))
        if found and (not topic.endswith(".results") or protobuf):
            self.add(found[0], (kind, protobuf), found[1] + value)


def read_all(brokers, seeds):
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": brokers, "group.id": "capture", "enable.partition.eof": True, "enable.auto.commit": False}
    )
    parts = [
        confluent_kafka.TopicPartition(name, p, confluent_kafka.OFFSET_BEGINNING)
        for name, topic in consumer.list_topics(timeout=30).topics.items()
        if name.endswith((".jobs", ".results", ".batches"))
        for p in topic.partitions
    ]
    consumer.assign(parts)
    ended = 0
    while ended < len(parts):
        message = consumer.poll(30)
        if message is None:
            raise RuntimeError("the broker gives nothing more")
        if message.error():
            if message.error().code() != confluent_kafka.KafkaError._PARTITION_EOF:
                raise RuntimeError(message.error())
            ended += 1
        else:
            seeds.record(message.topic(), message.headers() or [], message.value() or b"")
    consumer.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    if nextitem is None and "stack" in item.fixturenames:
        seeds = Seeds(os.environ["FUZZ_SEEDS"])
        read_all(item.funcargs["stack"].settings["TINWORKS_KAFKA_BROKERS"], seeds)
        print(f"\nseeds of {sum(seeds.seen.values())} records")
