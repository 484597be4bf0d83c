"""Runs last: docs/compatibility.md says what the clients' tests of this very run have shown."""

import os
import pathlib

import compatibility
import pytest

HERE = pathlib.Path(__file__).resolve().parent
NEEDED = sorted(p.name for p in HERE.glob("test_*.py") if p != pathlib.Path(__file__))


def test_the_document_is_what_this_run_has_shown(request, stack):
    ran = {pathlib.Path(item.fspath).name for item in request.session.items}
    missing = [name for name in NEEDED if name not in ran]
    if missing or request.config.getoption("keyword") or any("::" in word for word in request.config.args):
        pytest.skip(f"a part of the clients' tests only: without {', '.join(missing) or 'some'}")
    logs = [stack.home / "log" / "gateway.log", *(log for log in stack.more_logs if log.name.startswith("gateway"))]
    found = compatibility.answered(logs)
    explained = [k for k in compatibility.served() if k not in found and k not in compatibility.BY_HAND]
    assert explained == [], "served, and neither called by a client in a test nor explained"
    text = compatibility.document(found)
    if os.environ.get("TINWORKS_WRITE_COMPATIBILITY"):
        compatibility.DOCUMENT.write_text(text)
    assert compatibility.DOCUMENT.read_text() == text
