"""Worlds for fault tests: private servers, shared by a whole test session, and on them any number of worlds, each with its own
topics, database, Redis prefix, data folder and processes of ours.  The processes are of the build with failpoints, are started
directly (so their exit codes are seen) and each has a failpoint folder of its own (so that one of two workers can be stopped).

A world is cheap, about two seconds; a test that breaks a rule on purpose takes one for itself."""

import contextlib
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

import psycopg
import redis
import tinker
from waiting import PATIENCE_S, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "faults"
MODEL = "tinworks/tiny"
SERVERS = ("kafka", "redis", "postgres")
LEASE_MS = 1500
NO_POSTGRES = re.compile("cannot connect to Postgres|server closed the connection|terminating connection|connection .*lost")
SANITIZER = re.compile(rb"(AddressSanitizer|ThreadSanitizer|LeakSanitizer|runtime error:)")


def state_of(pid):
    """The kernel's letter: T is stopped, Z a zombie, None gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def descendants(pid):
    """Children, their children, and so on."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(") ", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            pass
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def program(name):
    elsewhere = {"tinworks-model": "worker/cli", "tinworks-worker-emulated": "tests/cuda"}
    folder = elsewhere.get(name, name.removeprefix("tinworks-"))
    return str(BUILD / folder / name)


class Servers:
    """Kafka, Redis and Postgres of one test session."""

    def __init__(self):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="tinworks-faults."))
        self.home.chmod(0o711)
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("TINWORKS_", "TINKER_"))}
        self.count = 0

    def _services(self, verb, **environ):
        words = [str(ROOT / "tinworks"), "services", verb, "--dir", str(self.home)]
        done = subprocess.run(words, env={**self.environ, **environ}, capture_output=True, text=True, timeout=580)
        if done.returncode != 0:
            raise AssertionError(f"./tinworks services {verb} failed:\n{done.stdout}{done.stderr}")

    def up(self, **environ):
        """Starts what is not running; also the repair after a kill.  environ: variables of what is started now."""
        self._services("up", **environ)
        lines = (self.home / "env").read_text().splitlines()
        self.settings = dict(re.match(r"export (\w+)='(.*)'$", line).groups() for line in lines if line[:6] == "export")
        self.model_dir = self.home / "models" / "tiny"
        if not self.model_dir.exists():
            self.model_dir.parent.mkdir(exist_ok=True)
            words = [program("tinworks-model"), "make", "--preset", "tiny", "--out", str(self.model_dir)]
            subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=300)

    def pid(self, name):
        return int((self.home / "run" / f"{name}.pid").read_text().split()[0])

    def signal(self, name, number):
        pid = self.pid(name)
        os.kill(pid, number)
        if number == signal.SIGSTOP:  # until one of its threads has run to take the signal, the others go on working
            wait_for(lambda: state_of(pid) in ("T", "Z", None), f"{name} to stop")

    def kill(self, name):
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: state_of(pid) in (None, "Z"), f"the end of {name}")

    def kill_all(self, name):
        """The server and every child of it, at once."""
        pids = [self.pid(name)]
        pids += descendants(pids[0])
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # the others saw the first one die
        wait_for(lambda: all(state_of(pid) in (None, "Z") for pid in pids), f"the end of {name} and its children")

    @contextlib.contextmanager
    def frozen(self, name):
        """The server and every child of it stand still, and their connections stay."""
        pids = [self.pid(name)]
        self.signal(name, signal.SIGSTOP)  # it makes no more of them
        pids += descendants(pids[0])
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            wait_for(lambda: all(state_of(pid) in ("T", "Z", None) for pid in pids), f"{name} and its children to stop")
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def heal(self):
        """Whatever a test that failed has left frozen or dead.  `services up` takes a frozen one for alive."""
        states = {name: state_of(self.pid(name)) for name in SERVERS}
        for name in SERVERS:
            if states[name] == "T":
                self.signal(name, signal.SIGCONT)
        if not all(states.values()) or "Z" in states.values():
            self.up()

    def down(self):
        for name in SERVERS:  # one that a test left frozen would not hear
            try:
                self.signal(name, signal.SIGCONT)
            except (FileNotFoundError, ProcessLookupError):
                pass
        self._services("down")

    def remove(self):
        services = (self.home / "services").resolve()
        shutil.rmtree(self.home)
        if services.exists():
            shutil.rmtree(services)


class Process:
    """One process of ours; it may be started again and again under its name."""

    def __init__(self, world, role, name, **settings):
        self.world, self.role, self.name, self.extra = world, role, name, settings
        self.points = world.home / "fp" / name
        self.points.mkdir(parents=True, exist_ok=True)
        for rule in world.broken:
            self.break_rule(rule)
        self.log = world.home / "log" / f"{name}.log"
        self.child, self.wanted, self.starts, self.started, self.mark = None, False, 0, 0.0, 0
        self.program = f"tinworks-{role}"
        self.prefix = []  # words before the program: a fake clock, say
        self.sink = self.log  # where its log lines go

    # ------------------------------------------------------------ life

    def start(self, wait=True):
        env = {**self.world.environ, "TINWORKS_FAILPOINTS": str(self.points)}
        env.update({f"TINWORKS_{k.upper()}": str(v) for k, v in self.extra.items()})
        words = [*self.prefix, program(self.program), *(["run"] if self.role == "billing" else [])]
        self.mark = self.log.stat().st_size if self.log.exists() else 0
        with self.sink.open("ab") as log:
            self.child = subprocess.Popen(
                words, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wanted, self.started = True, time.monotonic()
        self.starts += 1
        if wait:
            self.ready()
        return self

    def ready(self):
        def is_ready():
            if not self.alive():
                raise AssertionError(f"{self.name} ended while starting ({self.child.returncode}):\n{self.tail()}")
            return self.answers() if self.role == "gateway" else self.says(f" {self.role}.ready ")

        wait_for(is_ready, f"{self.name} to be ready")

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/healthz", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def says(self, text, since_start=True):
        with self.log.open("rb") as log:
            log.seek(self.mark if since_start else 0)
            return text.encode() in log.read()

    def tail(self, lines=15):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @property
    def pid(self):
        return self.child.pid

    @property
    def url(self):
        return f"http://127.0.0.1:{self.extra['port']}"

    def alive(self):
        return self.child is not None and self.child.poll() is None

    def signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        """kill -9, and wait until it is gone; nobody starts it again."""
        self.wanted = False
        if self.alive():
            self.signal(signal.SIGKILL)
            self.child.wait()

    def shoot(self):
        """kill -9, and wait until it is gone; a supervisor starts it again."""
        child = self.child
        if child and child.poll() is None:
            child.kill()
            child.wait()

    def drain(self, seconds=PATIENCE_S):
        """SIGTERM; the exit code."""
        self.wanted = False
        self.signal(signal.SIGTERM)
        return self.child.wait(timeout=seconds)

    def freeze(self):
        self.signal(signal.SIGSTOP)
        self.wait_frozen()

    def thaw(self):
        self.signal(signal.SIGCONT)

    def wait_frozen(self):
        wait_for(lambda: state_of(self.pid) == "T", f"{self.name} to stop")

    def wait_exit(self, seconds=PATIENCE_S):
        try:
            return self.child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end in {seconds} s:\n{self.tail()}") from None

    # ------------------------------------------------------------ failpoints

    def arm(self, point, action, nth=1, match=None, ms=None, keep=False):
        """See lib/base/failpoint.h.  The file appears whole."""
        words = [action, f"nth={nth}"]
        words += [f"match={match}"] if match else []
        words += [f"ms={ms}"] if ms is not None else []
        words += ["keep"] if keep else []
        (self.points / f"{point}.fired").unlink(missing_ok=True)
        new = self.points / f"{point}.new"
        new.write_text(" ".join(words))
        new.rename(self.points / point)

    def fired(self, point):
        return (self.points / f"{point}.fired").exists()

    def wait_fired(self, point, seconds=PATIENCE_S):
        wait_for(lambda: self.fired(point), f"{point} of {self.name} to fire", seconds)

    def disarm(self, point):
        (self.points / point).unlink(missing_ok=True)

    def break_rule(self, rule):
        (self.points / f"mut.{rule}").touch()


class World:
    def __init__(self, servers, **settings):
        """settings: TINWORKS_* of every process, without the prefix and in lower case."""
        servers.heal()
        servers.count += 1
        self.servers, self.name = servers, f"w{servers.count}"
        self.home = servers.home / "worlds" / self.name
        for folder in ("log", "data", "fp"):
            (self.home / folder).mkdir(parents=True)
        self.secret = secrets.token_hex(32)
        (self.home / "secret").write_text(self.secret)
        (self.home / "secret").chmod(0o600)
        self.postgres = servers.settings["TINWORKS_POSTGRES"].replace("dbname=tinworks", f"dbname={self.name}")
        self.redis_url = servers.settings["TINWORKS_REDIS"]
        self.redis_prefix = f"{self.name}:"
        self.brokers = servers.settings["TINWORKS_KAFKA_BROKERS"]
        self.topic_prefix = f"{self.name}."
        self.model = MODEL
        own = {
            "kafka_brokers": self.brokers,
            "topic_prefix": self.topic_prefix,
            "redis": self.redis_url,
            "redis_prefix": self.redis_prefix,
            "postgres": self.postgres,
            "secret_file": self.home / "secret",
            "data": self.home / "data",
            "model": MODEL,
            "model_dir": servers.model_dir,
            "threads": 2,
            "lease_ms": LEASE_MS,
            "train_partitions": 2,
            "sample_partitions": 1,
            "snapshot_idle_ms": 1000,
            "snapshot_replay_ms": 150,
            "progress_ms": 500,
            "catalog_ms": 300,
            "poison_attempts": 100,  # many kills from outside must not look like a job's doing
            **settings,
        }
        self.environ = {**servers.environ, **{f"TINWORKS_{k.upper()}": str(v) for k, v in own.items()}}
        self.usual_lease = self.environ["TINWORKS_LEASE_MS"]
        self.processes, self.exits, self.keys, self.broken = {}, [], {}, set()
        self._supervisor, self._stop = None, threading.Event()
        with psycopg.connect(servers.settings["TINWORKS_POSTGRES"], autocommit=True) as db:
            db.execute(f"create database {self.name}")
        self.billing("migrate")

    # ------------------------------------------------------------ processes

    def process(self, role, name=None, **settings):
        """A process that is not started yet; "worker2" gets slot 2, and so on."""
        name = name or role
        number = int(re.search(r"\d*$", name).group() or 0)
        if role == "gateway":
            settings = {"port": free_port(), "listen": "127.0.0.1", "gateway_name": number, **settings}
        if role == "worker":
            settings = {"slot": number, **settings}
        if role == "dispatcher":
            settings = {"dispatcher_number": number, **settings}
        self.processes[name] = it = Process(self, role, name, **settings)
        return it

    def __getitem__(self, name):
        return self.processes[name]

    def lease(self, ms):
        """How long a lease lasts from now on.  With a long one shards move when a worker is drained, and never because the machine
        stood still for a while.  The worker begins anew; calm() ends it."""
        worker = self["worker"]
        assert worker.drain() == 0
        self.environ["TINWORKS_LEASE_MS"] = str(ms)
        worker.start()
        wait_for(lambda: worker.says("shard.taken stream=train"), "the take-over")

    def start(self, *roles):
        """One of each (all four by default), ready."""
        started = [self.process(role).start(wait=False) for role in roles or ("billing", "dispatcher", "worker", "gateway")]
        for it in started:
            it.ready()
        if "gateway" in self.processes:
            self.base_url = self["gateway"].url
        return self

    def break_rule(self, rule):
        """In all processes, also those that come."""
        self.broken.add(rule)
        for it in self.processes.values():
            it.break_rule(rule)

    def supervise(self):
        """From now on whatever of ours ends is started again at once; self.exits keeps (name, exit code)."""
        if self._supervisor:
            return
        self._stop.clear()
        self._supervisor = threading.Thread(target=self._watch, daemon=True)
        self._supervisor.start()

    def _watch(self):
        while not self._stop.wait(0.03):
            for it in list(self.processes.values()):
                if it.wanted and it.child and it.child.poll() is not None and time.monotonic() - it.started > 0.2:
                    self.exits.append((it.name, it.child.returncode))
                    it.start(wait=False)

    def unsupervise(self):
        if self._supervisor:
            self._stop.set()
            self._supervisor.join()
            self._supervisor = None

    def calm(self):
        """Between tests, and between the two tries of one: the servers run, and of ours just what start() started."""
        self.unsupervise()
        for it in self.processes.values():
            if it.alive() and (not it.wanted or state_of(it.pid) == "T"):  # it would end when it wakes, or soon
                it.kill()
        self.disarm_all()
        self.servers.heal()
        self._usual_lease()
        for name, it in list(self.processes.items()):
            if name != it.role:
                it.kill()
                del self.processes[name]
        for it in self.processes.values():
            if it.alive():
                it.ready()
            else:
                it.start()

    def _usual_lease(self):
        """What a worker that is killed held for long would be nobody's for long: no worker lives, so it is free at once."""
        if self.environ["TINWORKS_LEASE_MS"] == self.usual_lease:
            return
        self.environ["TINWORKS_LEASE_MS"] = self.usual_lease
        for it in self.processes.values():
            if it.role == "worker":
                it.kill()
        self.sql("update shards set lease_until = '-infinity'")

    def disarm_all(self):
        """No failpoint is armed, and nothing stands still."""
        for it in list(self.processes.values()):
            for file in it.points.iterdir():
                if not file.name.startswith("mut."):
                    file.unlink()
            if it.alive() and state_of(it.pid) == "T":
                it.thaw()

    def close(self):
        self.unsupervise()
        for it in self.processes.values():
            it.wanted = False
            if it.alive():
                it.signal(signal.SIGCONT)
                it.signal(signal.SIGKILL)
        for it in self.processes.values():
            if it.child:
                it.child.wait()
            if it.log.exists() and SANITIZER.search(it.log.read_bytes()):
                raise AssertionError(f"a sanitizer reported in {it.log}")

    # ------------------------------------------------------------ customers

    def billing(self, *words):
        done = subprocess.run(
            [program("tinworks-billing"), *words], env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        if done.returncode != 0:
            raise AssertionError(f"billing {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def account(self, name, credit_usd=100):
        """A new account with a key: (account id, key).  Waits for Postgres."""

        def made():
            try:
                return self._make_account(f"{name} {secrets.token_hex(4)}", credit_usd)
            except AssertionError as e:
                if not NO_POSTGRES.search(str(e)):
                    raise
                return None

        return wait_for(made, "an account, which needs Postgres")

    def _make_account(self, name, credit_usd):
        self.billing("account", "create", name, "--credit-usd", str(credit_usd))
        [(account,)] = self.sql("select id from accounts where name = %s", name)
        shown = self.billing("key", "create", "--account", account)
        self.keys[account] = key = re.search(r"tml-[A-Za-z0-9_-]+", shown).group()
        return account, key

    def service(self, key):
        return tinker.ServiceClient(base_url=self.base_url, api_key=key)

    # ------------------------------------------------------------ looking inside

    def connect(self):
        """To our database, once it takes connections: after a kill it recovers for a moment."""

        def connected():
            try:
                return psycopg.connect(self.postgres, autocommit=True)
            except psycopg.OperationalError:
                return None

        return wait_for(connected, "Postgres to take connections")

    def sql(self, text, *values):
        with self.connect() as db:
            cursor = db.execute(text, values)
            return cursor.fetchall() if cursor.description else cursor.rowcount

    def counters(self, who):
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as store:
            return {k: int(v) for k, v in store.hgetall(f"{self.redis_prefix}{who}").items()}

    def epochs(self):
        return dict(self.sql("select stream || '/' || partition, epoch from shards"))

    def owner_slot(self, stream="train", partition=0):
        [(slot,)] = self.sql("select slot from shards where stream = %s and partition = %s", stream, partition)
        return slot

    def logs(self):
        return sorted((self.home / "log").glob("*.log"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
