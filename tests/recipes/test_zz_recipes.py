"""Runs last: the table of recipes in docs/compatibility.md says no more than this run has shown."""

import compatibility
import pytest
from recipe import FAILED, PASSED


def test_every_recipe_of_the_table_passed(request):
    config = request.config
    if not config.getoption("--recipes") or config.getoption("keyword") or any("::" in word for word in config.args):
        pytest.skip("a part of the recipes only")
    assert set(compatibility.RECIPES) <= PASSED - FAILED
    assert compatibility.DOCUMENT.read_text().endswith(compatibility.recipes())
