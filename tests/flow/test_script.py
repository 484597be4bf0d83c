"""./tinworks itself: healing, status, and clear words for what it does not know."""

import re
import subprocess

import pytest
from stack import ROOT


def test_up_heals_only_what_is_dead(stack):
    names = ("kafka", "redis", "postgres", "gateway", "dispatcher", "worker", "billing")
    before = {name: stack.pid(name) for name in names}
    stack.kill("dispatcher")
    stack.up()
    after = {name: stack.pid(name) for name in names}
    assert after["dispatcher"] != before["dispatcher"]
    assert {n: p for n, p in after.items() if n != "dispatcher"} == {
        n: p for n, p in before.items() if n != "dispatcher"
    }


def test_status_shows_every_process_and_the_counters(stack):
    shown = stack.tinworks("status").stdout
    for name in ("kafka", "redis", "postgres", "gateway", "dispatcher", "worker", "billing"):
        assert f"{name} " in shown
    assert " down " not in shown
    assert stack.base_url in shown
    assert "worker:0" in shown
    assert re.search(r"^tinworks/tiny, slot 0: \d+ shards on cpu/\w+/fp32/", shown, re.M)


def test_status_says_that_it_could_not_ask_the_database_and_goes_on(stack, tmp_path):
    """The same servers, and a database without our tables."""
    (tmp_path / "run").symlink_to(stack.home / "run")
    (tmp_path / "env").write_text((stack.home / "env").read_text().replace("dbname=tinworks", "dbname=template1"))
    (tmp_path / "demo.key").write_text("none")
    words, environ = [str(ROOT / "tinworks"), "status"], {**stack.environ, "TINWORKS_HOME": str(tmp_path)}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "worker:0" in done.stdout
    _, after = done.stdout.split("\nthe database does not answer, or has no tables yet\n")
    assert f"export TINKER_BASE_URL={stack.base_url}" in after


@pytest.mark.parametrize(
    "words, named",
    [(["demp"], "demp"), (["up", "now"], "now"), (["logs", "nobody"], "nobody"), (["services", "up"], "--dir")],
)
def test_unknown_words_are_named(stack, words, named):
    done = stack.tinworks(*words, check=False)
    assert done.returncode != 0
    assert named in done.stderr


def test_keys_and_secrets_are_private_files(stack):
    for name in ("env", "secret", "demo.key"):
        assert (stack.home / name).stat().st_mode & 0o077 == 0


def test_no_log_shows_a_key_or_a_password(stack, first_account):
    password = stack.settings["TINWORKS_POSTGRES"].rsplit("password=", 1)[1]
    secret = (stack.home / "secret").read_text().strip()
    for log in (stack.home / "log").iterdir():
        content = log.read_text(errors="replace")
        for hidden in (first_account[1], password, secret):
            assert hidden not in content, log.name
