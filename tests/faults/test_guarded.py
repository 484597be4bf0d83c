"""Least privilege: Kafka asks for passwords over TLS, each of our processes is a user of its own in Kafka, Postgres and Redis, and
may do there what docs/operations.md lists for it and no more.  The work comes out as it does without guards."""

import re
import secrets

import confluent_kafka
import psycopg
import pytest
import redis
from checker import inspect
from guarded import GuardedBroker
from oracle import evidence, same, work
from world import World

ROLES = ("billing", "dispatcher", "worker", "gateway")


class GuardedWorld(World):
    def __init__(self, servers, broker):
        super().__init__(servers, kafka_brokers=broker.open_brokers)
        self.brokers, self.broker = broker.open_brokers, broker  # what the tests themselves use
        broker.allow(self.topic_prefix, self.model.replace("/", "--"))
        self.postgres_of = {role: self._postgres_user(role) for role in ROLES}
        self.redis_of = self._redis_user()

    def _postgres_user(self, role):
        user, password = f"{self.name}_{role}", secrets.token_hex(16)
        self.sql(f"create role {user} login password '{password}' in role tinworks_{role}")
        text = re.sub(r"user=\S+", f"user={user}", self.postgres)
        return re.sub(r"password=\S+", f"password={password}", text)

    def _redis_user(self):
        """One for all of ours: our keys only, and of the commands that Redis calls dangerous only INFO: how full is it?"""
        password = secrets.token_hex(16)
        with redis.Redis.from_url(self.redis_url) as store:
            store.execute_command(
                "ACL", "SETUSER", self.name, "on", f">{password}", f"~{self.redis_prefix}*", "+@all", "-@dangerous", "+info"
            )
        return self.redis_url.replace("redis://", f"redis://{self.name}:{password}@")

    def process(self, role, name=None, **settings):
        own = {
            "kafka_brokers": self.broker.brokers,
            "kafka_config": self.broker.file_of(role),
            "postgres": self.postgres_of[role],
            "redis": self.redis_of,
        }
        return super().process(role, name, **{**own, **settings})


@pytest.fixture(scope="module")
def broker(servers):
    it = GuardedBroker(servers.home / "guarded")
    try:
        it.up()
        yield it
    finally:
        it.down()


@pytest.fixture(scope="module")
def guarded(servers, broker):
    it = GuardedWorld(servers, broker)
    try:
        yield it.start()
    finally:
        it.close()


def test_the_work_comes_out_the_same(guarded, undisturbed):
    done = work(guarded)
    same(undisturbed, evidence(guarded, done, inspect(guarded).check().facts))
    for role in ROLES:
        log = guarded[role].log.read_text()
        assert not re.search(r"permission denied|NOPERM|uthorization failed", log), f"{role}:\n{log[-2000:]}"


def write_as(broker, user, topic):
    """The error of a record written by that user, None when it was written."""
    errors = []
    producer = confluent_kafka.Producer({**broker.client(user), "message.timeout.ms": 60000})
    producer.produce(topic, b"x", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(90) == 0
    return errors[0] and errors[0].name()


@pytest.mark.parametrize("user", ["gateway", "dispatcher", "billing"])
def test_only_a_worker_may_write_results(guarded, broker, user):
    slug = guarded.model.replace("/", "--")
    for stream in ("train", "sample"):
        assert write_as(broker, user, f"{guarded.topic_prefix}{slug}.{stream}.results") == "TOPIC_AUTHORIZATION_FAILED"


def test_a_worker_may_not_write_jobs(guarded, broker):
    slug = guarded.model.replace("/", "--")
    assert write_as(broker, "worker", f"{guarded.topic_prefix}{slug}.train.jobs") == "TOPIC_AUTHORIZATION_FAILED"


FORBIDDEN = {
    "gateway": ["update balances set balance_pico = 0", "insert into credits select * from credits", "delete from job_outcomes"],
    "dispatcher": ["select * from api_keys", "update shards set epoch = 0", "select * from balances"],
    "worker": ["select * from api_keys", "select * from balances", "delete from checkpoints"],
    "billing": ["update job_outcomes set train_tokens = 0", "delete from ledger_entries", "update prices set kind = kind"],
}


@pytest.mark.parametrize("role, text", [(role, text) for role, texts in FORBIDDEN.items() for text in texts])
def test_what_a_process_may_not_do_in_postgres(guarded, role, text):
    with psycopg.connect(guarded.postgres_of[role], autocommit=True) as db:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(text)


def test_redis_is_ours_only_where_our_prefix_stands(guarded):
    with redis.Redis.from_url(guarded.redis_of) as store:
        for words in (["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "GET", "*"], ["GET", "of-others"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                store.execute_command(*words)


# ------------------------------------------------------------ what is wrong with a properties file


def refused(guarded, path):
    it = guarded.process("dispatcher", f"dispatcher{len(guarded.processes)}", kafka_config=path)
    it.start(wait=False)
    it.wanted = False
    assert it.wait_exit() == 1
    return it.tail(3)


def test_a_file_that_others_may_read_is_refused(guarded, broker):
    path = broker.file("open", **{"sasl.password": "very secret"})
    path.chmod(0o640)
    said = refused(guarded, path)
    assert f'"{path}" has mode 640, expected 600 or less' in said and "very secret" not in said


@pytest.mark.parametrize(
    "lines, words",
    [
        ({"enable.idempotence": "false"}, 'line 3: the property "enable.idempotence" is not one of'),
        ({"ssl.ca.location": "x" * 2000}, "line 3: longer than 1022 characters"),
        ({"security.protocol": "MAGIC"}, "the Kafka property security.protocol has a value that is not understood"),
    ],
)
def test_a_wrong_property_is_named(guarded, broker, lines, words):
    assert words in refused(guarded, broker.file("wrong", **lines))


def test_a_missing_file_is_named(guarded, broker):
    assert f'cannot read "{broker.home}/none"' in refused(guarded, broker.home / "none")
