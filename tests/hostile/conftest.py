"""One world for all hostile tests.  After each of them the same four processes must be there, and a client with a run of its own must be
served at once, with the same numbers as before anybody was hostile."""

import pytest
from raw import Raw
from world import World

OURS = ("billing", "dispatcher", "worker", "gateway")
TOKENS = [5, 6, 7, 8, 9]


@pytest.fixture(scope="session")
def world(servers):
    it = World(servers)
    try:
        yield it.start()
    finally:
        it.close()


@pytest.fixture(scope="session")
def account(world):
    """(account id, key) of the one that the hostile bytes come from."""
    return world.account("hostile")


@pytest.fixture(scope="session")
def key(account):
    return account[1]


@pytest.fixture(scope="session")
def address(world):
    return world.base_url.removeprefix("http://")


@pytest.fixture(scope="session")
def hostile(world, key):
    """The hostile account's session, with a run and a sampler."""
    session = Raw(world.base_url, key).session()
    session.run = session.model(world.model)
    session.sampler_id = session.sampler(base_model=world.model)
    session.run.results()
    return session


@pytest.fixture(scope="session")
def good(world):
    """Another account's client, and what a forward pass of its run comes to."""
    raw = Raw(world.base_url, world.account("good")[1])
    run = raw.session().model(world.model)
    run.results()

    def served():
        raw.connection and raw.connection.close()
        raw.connection = None  # a new connection: the door itself is tried
        return raw.result(run.forward(TOKENS))

    return served, served()


@pytest.fixture(autouse=True)
def undisturbed(world, good, hostile):
    served, expected = good
    before = {name: (world[name].pid, world[name].starts) for name in OURS}
    yield
    assert served() == expected
    assert {name: (world[name].pid, world[name].starts) for name in OURS if world[name].alive()} == before
