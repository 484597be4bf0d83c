"""The stack that all tests share; it is made once and taken down at the end, whatever happened."""

import os

os.environ.setdefault("TINKER_TELEMETRY", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402
from sdk import end  # noqa: E402
from stack import Stack, kept_up  # noqa: E402
from world import Servers  # noqa: E402


def pytest_addoption(parser):
    group = parser.getgroup("tinworks", "long suites")
    group.addoption("--faults", action="store_true", help="every fault test, at full length, and the random soak")
    group.addoption("--recipes", action="store_true", help="every published recipe, tests/recipes")
    group.addoption("--seed", type=int, default=1, help="of the soak's schedule")
    group.addoption("--seconds", type=int, default=300, help="how long the soak goes on")


@pytest.fixture(scope="session")
def stack(request):
    yield from kept_up(Stack(), request.session)


@pytest.fixture(scope="session")
def first_account(stack):
    return stack.account("tests")


@pytest.fixture
def service(stack, first_account):
    """A session of the SDK, closed after the test."""
    it = stack.service(first_account[1])
    yield it
    end(it)


@pytest.fixture(scope="session")
def servers(request):
    """Kafka, Redis and Postgres for whoever makes worlds of its own: the fault tests and the hostile clients."""
    yield from kept_up(Servers(), request.session)
