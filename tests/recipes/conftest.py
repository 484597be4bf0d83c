"""The published recipes, started as a user starts them: the folder of `./tinworks recipes`, a stack that serves its model under
a name that the recipes know, and a recorder between each recipe and the gateway.

A test says which recipe it runs by its mark; test_zz_recipes.py holds what passed against docs/compatibility.md."""

import pytest
from recipe import FAILED, FOLDER, MODEL, PASSED, Customer
from stack import Stack, kept_up


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--recipes"):
        for item in items:
            if item.get_closest_marker("cookbook"):
                item.add_marker(pytest.mark.skip(reason="only with --recipes"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("recipe")
    if mark and call.when == "call":
        (PASSED if report.passed else FAILED).add(mark.args[0])
    return report


@pytest.fixture(scope="session")
def kitchen(request):
    """The stack that serves the recipes' model."""
    it = Stack(TINWORKS_MODEL=MODEL, TINWORKS_MODEL_DIR=str(FOLDER / MODEL))
    it.tinworks("recipes", str(FOLDER))
    yield from kept_up(it, request.session)


@pytest.fixture
def customer(kitchen, tmp_path, request):
    """An account of this test's own, and its way to run a recipe."""
    with Customer(kitchen, request.node.name, tmp_path) as it:
        yield it


@pytest.fixture
def other_customer(kitchen, tmp_path, request):
    with Customer(kitchen, f"other {request.node.name}", tmp_path / "other") as it:
        yield it
