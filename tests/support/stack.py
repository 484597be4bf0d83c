"""One private Tinworks for the tests: real Kafka, Redis, Postgres and our real processes, started by ./tinworks itself
in a folder of its own, so a demo beside it is not disturbed."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

import psycopg
import redis
import tinker
from waiting import wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ("gateway", "dispatcher", "worker", "billing")
SANITIZER = re.compile(rb"(AddressSanitizer|ThreadSanitizer|LeakSanitizer|runtime error:)")


def kept_up(it, session):
    """The body of a fixture: up, used and down again, whatever happened; its folder goes unless something failed."""
    try:
        it.up()
        yield it
    finally:
        it.down()
        if session.testsfailed:
            print(f"\nthe logs were kept: {it.home}")
    if not session.testsfailed:
        it.remove()


class Stack:
    def __init__(self, **more):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="tinworks-test."))
        self.home.chmod(0o711)
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("TINWORKS_", "TINKER_"))}
        if "TINWORKS_BUILD_DIR" in os.environ:
            self.environ["TINWORKS_BUILD_DIR"] = os.environ["TINWORKS_BUILD_DIR"]
        self.environ["TINWORKS_HOME"] = str(self.home)
        self.environ["TINWORKS_LOG_REQUESTS"] = "1"  # what docs/compatibility.md is made of
        self.environ.update(more)
        self.more_logs = []

    # ------------------------------------------------------------ life

    def tinworks(self, *words, check=True):
        done = subprocess.run(
            [str(ROOT / "tinworks"), *words], env=self.environ, capture_output=True, text=True, timeout=580
        )
        if check and done.returncode != 0:
            raise AssertionError(f"./tinworks {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        return done

    def up(self):
        self.tinworks("up")
        lines = (self.home / "env").read_text().splitlines()
        self.settings = dict(re.match(r"export (\w+)='(.*)'$", line).groups() for line in lines if line[:6] == "export")
        self.base_url = self.settings["TINKER_BASE_URL"]

    def down(self):
        self.tinworks("down")

    def pid(self, name):
        return int((self.home / "run" / f"{name}.pid").read_text().split()[0])

    def kill(self, name):
        """kill -9, and wait until it is gone."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)

        def gone():
            try:
                stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
            except FileNotFoundError:
                return True
            return stat.rsplit(") ", 1)[1][0] == "Z"

        wait_for(gone, f"the end of {name}")

    def remove(self):
        for log in [self.home / "log" / f"{name}.log" for name in OURS] + self.more_logs:
            if log.exists() and SANITIZER.search(log.read_bytes()):
                raise AssertionError(f"a sanitizer reported in {log}")
        services = (self.home / "services").resolve()
        shutil.rmtree(self.home)
        if services.exists():
            shutil.rmtree(services)

    def program(self, name):
        build = pathlib.Path(self.environ.get("TINWORKS_BUILD_DIR", ROOT / "build" / "release"))
        return str(build / name / f"tinworks-{name}")

    @contextlib.contextmanager
    def another(self, name, ready, **settings):
        """One more process of ours on this stack, with settings of its own; the match of `ready` in its log."""
        flags = [f"--{setting.replace('_', '-')}={value}" for setting, value in settings.items()]
        log = self.home / "log" / f"{name}-{len(self.more_logs)}.log"
        self.more_logs.append(log)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [self.program(name), *flags], env={**self.environ, **self.settings}, stderr=out
            )
        try:
            yield wait_for(lambda: re.search(ready, log.read_bytes()), f"another {name}")
        finally:
            process.terminate()
            assert process.wait(60) == 0

    @contextlib.contextmanager
    def another_gateway(self, **settings):
        """Its base URL."""
        with self.another("gateway", rb"gateway\.ready listen=(\S+)", port=0, gateway_name="another", **settings) as found:
            yield f"http://{found.group(1).decode()}"

    # ------------------------------------------------------------ customers

    def account(self, name, credit_usd=100):
        """A new account with a key: (account id, key)."""
        self.tinworks("account", "create", name, "--credit-usd", str(credit_usd))
        [(account,)] = self.sql("select id from accounts where name = %s", name)
        return account, self.key(account)

    def key(self, account, scopes="train,sample,read,finance"):
        shown = self.tinworks("key", "create", "--account", account, "--scopes", scopes).stdout
        return re.search(r"tml-[A-Za-z0-9_-]+", shown).group()

    def service(self, key):
        return tinker.ServiceClient(base_url=self.base_url, api_key=key)

    @property
    def model(self):
        return "tinworks/tiny"

    # ------------------------------------------------------------ looking inside

    def sql(self, text, *values):
        with psycopg.connect(self.settings["TINWORKS_POSTGRES"], autocommit=True) as db:
            return db.execute(text, values).fetchall()

    def counters(self, who):
        with redis.Redis.from_url(self.settings["TINWORKS_REDIS"], decode_responses=True) as store:
            return {k: int(v) for k, v in store.hgetall(who).items()}

    def billed(self, parents, jobs):
        """The outcomes of runs and samplers, once there are as many as were made."""

        def all_there():
            rows = self.sql(
                "select kind, status, prefill_tokens, sample_tokens, train_tokens, amount_pico, seq, parent_id"
                " from job_outcomes where parent_id = any(%s) order by parent_id, seq",
                list(parents),
            )
            return rows if len(rows) >= jobs else None

        return wait_for(all_there, f"{jobs} billed jobs")
