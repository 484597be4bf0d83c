"""Two gateways and one account: what it may use it may use once, and while Redis is away each gateway knows its own."""

import time

import pytest
import redis
from raw import Raw, sample
from sdk import tokens_of
from waiting import staged, wait_for
from world import World


@pytest.fixture(scope="module")
def world(servers):
    """Its worker may be frozen for a while."""
    it = World(servers, lease_ms=120000)
    try:
        yield it.start()
    finally:
        it.close()


@pytest.fixture(scope="module")
def other(world):
    return world.process("gateway", "gateway2").start()


@pytest.fixture
def store(world):
    with redis.Redis.from_url(world.redis_url, decode_responses=True) as it:
        yield it


@pytest.fixture
def limited(world, other):
    """limited(flag, value): (account, a client of the first gateway, one of the second)."""

    def make(flag, value):
        account, key = world.account("shared")
        world.billing("account", "limit", account, flag, str(value))
        clients = [Raw(url, key) for url in (world.base_url, other.url)]
        for it in clients:
            it.once("client/config", {})  # the key is known from here on
            it.statuses.clear()
        return account, *clients

    return make


def let_in(client, times):
    """How many of so many calls."""
    statuses = [client.once("get_info", {"model_id": "s:train:0"})[0] for _ in range(times)]
    assert set(statuses) <= {404, 429}
    return statuses.count(404)


def use_of(world, store, account):
    return store.hgetall(f"{world.redis_prefix}use:{account}")


def tellers(world, store, account):
    return [field for field in use_of(world, store, account) if field.startswith("tokens:")]


def all_have_heard(world, store, account):
    """Each gateway tells anew what the others can still read, and hears of them; when it has told a second time, it has worked off
    what it heard the first time."""
    for field in 2 * tellers(world, store, account):
        store.hdel(f"{world.redis_prefix}use:{account}", field)
        wait_for(lambda: field in tellers(world, store, account), "a gateway to tell again")


def test_requests_are_counted_together(world, store, limited):
    account, here, there = limited("--requests-per-minute", 30)
    began = time.monotonic()
    assert let_in(here, 30) == 30
    wait_for(lambda: use_of(world, store, account), "the first gateway to tell")
    more = 0

    def refused():
        nonlocal more
        passed = let_in(there, 1)
        more += passed
        return not passed

    wait_for(refused, "the second gateway to hear of it", every=0.5)
    assert more < 15  # alone it would let thirty in at once
    passed = let_in(here, 10)
    staged(time.monotonic() - began < 20, "there are not ten more after a third of a minute")
    assert passed < 10


def test_samples_wait_for_tokens_in_flight_at_the_other_gateway(world, store, limited):
    account, here, there = limited("--tokens-in-flight", 40)
    sampler = here.session().sampler(world.model)
    prompt = tokens_of(5, 8)

    def draw(client, seq):
        """One of 20 tokens."""
        return sample(client, sampler, seq, prompt, max_tokens=12)

    there.result(draw(there, 4))  # it knows the sampler: no thread is asked, so nothing is heard in between
    world["worker"].freeze()
    try:
        jobs = [draw(here, 0), draw(here, 1), draw(there, 2)]  # there nothing is known of the first two
        wait_for(lambda: len(tellers(world, store, account)) == 2, "both to tell")
        all_have_heard(world, store, account)
        there.patience_s = 1
        with pytest.raises(AssertionError, match="has 60 tokens in line and running"):
            draw(there, 3)
    finally:
        world["worker"].thaw()
    there.patience_s = 240
    jobs.append(draw(there, 3))
    assert all(b'"error"' not in there.result(job)[1] for job in jobs)


def test_while_redis_is_away_each_gateway_counts_for_itself(world, servers, other, limited):
    _, here, there = limited("--requests-per-minute", 30)
    servers.kill("redis")
    try:
        for client in (here, there):  # more than half of its minute each, and no more than that
            assert 30 <= let_in(client, 60) < 60
        for it in (world["gateway"], other):
            wait_for(lambda it=it: it.says("warn gateway.share ") and it.says("each gateway counts for itself"), "its word")
            assert not it.says("the gateways count together again")
    finally:
        servers.up()
    for it in (world["gateway"], other):
        wait_for(lambda it=it: it.says("the gateways count together again"), "its word")
