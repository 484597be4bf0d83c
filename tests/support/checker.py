"""What must hold after any fault, computed from the outside: both logs read whole, Postgres, Redis, the data folder and the log files,
with code of its own.  Nothing here knows how the C programs do it; it knows docs/protocol.md.

  I1 every accepted job has exactly one official result      I6 no tokens of an ok job outside official records
  I2 a run's official results are complete and in seq order  I7 each snapshot is whole and covers decided jobs only
  I3 every future is served, with the official payload       I8 copies, fenced records, mismatches: counted; mismatches 0
  I4 job_outcomes are the official results, row for row      I9 no secret, prompt or list of token ids in any log file
  I5 hours, ledger and balances are the sum of the outcomes

inspect() returns a Report; a Report with problems says which rule each breaks."""

import collections
import concurrent.futures
import dataclasses
import datetime
import hashlib
import json
import pathlib
import re
import time

import confluent_kafka
import redis
from raw import Raw
from waiting import PATIENCE_S

CONTROL = ("expire", "cancel")
LAST_POLLS_S = 60  # of futures, when one was not served in time
WINDOW = 4096  # how far a seq may lie above the unbroken row
KINDS = ("prefill", "sample", "train")
BARRIER = "tinworks.barrier"
TRAIN = {"create", "forward", "forward_backward", "optim_step", "save", "save_sampler", "load", "unload", "reject"}
SAMPLE = {"sample", "compute_logprobs"}
DECIDED = "tinworks.result."
NUMBER = re.compile(r"0|[1-9][0-9]*")
FILES = ("adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors")
LISTS = re.compile(rb"(?:\d{1,6}(?:, ?| )){7,}\d{1,6}")  # eight numbers in a row are a prompt, not a fact of the business


@dataclasses.dataclass
class Record:
    topic: str
    partition: int
    offset: int
    at: int  # append time, ms
    headers: dict
    value: bytes

    @property
    def place(self):
        return self.topic, self.partition, self.offset

    @property
    def id(self):
        return self.headers["ce_id"]

    @property
    def kind(self):
        return self.headers["ce_type"].rsplit(".", 1)[1]

    @property
    def parent(self):
        return self.headers["tw_run"]

    @property
    def seq(self):
        return int(self.headers["tw_seq"])

    @property
    def epoch(self):
        return int(self.headers["tw_epoch"])

    @property
    def status(self):
        return self.headers["tw_status"]

    @property
    def tokens(self):
        return tuple(int(self.headers[f"tw_{kind}"]) for kind in KINDS)


def is_number(text, most=2**63 - 1):
    return bool(text and NUMBER.fullmatch(text)) and int(text) <= most


def is_result(r, model):
    """Is it a record of the results log that it lies in?  What is not, no reader may hear, not even its epoch."""
    h = r.headers
    if h.get("ce_specversion") != "1.0" or not h.get("ce_id") or not is_number(h.get("tw_epoch")):
        return False
    kind = h.get("ce_type", "")
    if kind == BARRIER:
        return not r.value and all(h.get(f"tw_{name}") for name in ("owner", "build", "numerics"))
    if not kind.startswith(DECIDED) or r.kind not in (TRAIN if r.topic.endswith(".train.results") else SAMPLE):
        return False
    bills = [h.get(f"tw_{name}") for name in KINDS]
    return (
        h.get("tw_status") in ("ok", "failed", "cancelled")
        and h.get("content-type") in ("application/json", "application/x-protobuf")
        and is_number(h.get("tw_seq"))
        and all(is_number(n, 2**31 - 1) for n in bills)
        and (h["tw_status"] == "ok" or bills == ["0"] * len(KINDS))
        and h.get("tw_model") == model
        and bool(h.get("tw_tenant") and h.get("tw_run"))
        and h.get("tw_digest") == hashlib.sha256(r.value).hexdigest()
    )


NOT_READY = (
    confluent_kafka.KafkaError.NOT_LEADER_FOR_PARTITION,
    confluent_kafka.KafkaError._UNKNOWN_PARTITION,
    confluent_kafka.KafkaError._UNKNOWN_TOPIC,
)


class Log:
    """Some topics from their beginning, read further at each call of read()."""

    def __init__(self, brokers, topics):
        self.consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "none",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 10,  # a question about offsets waits behind a fetch
            }
        )
        known = self.consumer.list_topics(timeout=60).topics
        self.parts = [
            confluent_kafka.TopicPartition(t, p, 0) for t in topics if t in known for p in known[t].partitions
        ]
        self.next = {(p.topic, p.partition): 0 for p in self.parts}
        self.records = []
        if self.parts:
            self.consumer.assign(self.parts)

    def read(self):
        ends = {}
        for p in self.parts:
            first, end = self._range_of(p)
            assert first == 0, f"{p.topic}/{p.partition} begins at {first}: not the whole log"
            ends[p.topic, p.partition] = end
        limit = time.monotonic() + PATIENCE_S
        while any(self.next[part] < end for part, end in ends.items()):
            assert time.monotonic() < limit, f"the log could not be read in {PATIENCE_S} s"
            for m in self.consumer.consume(1000, timeout=0.2):
                if m.error():
                    continue
                headers = {k: v.decode() for k, v in m.headers() or []}
                self.next[m.topic(), m.partition()] = m.offset() + 1
                self.records.append(
                    Record(m.topic(), m.partition(), m.offset(), m.timestamp()[1], headers, m.value() or b"")
                )
        return self.records

    def _range_of(self, part):
        """A broker that has just come back may not lead its partitions yet."""
        limit = time.monotonic() + 60
        while True:
            try:
                return self.consumer.get_watermark_offsets(part, timeout=60)
            except confluent_kafka.KafkaException as e:
                if time.monotonic() > limit or not (e.args[0].retriable() or e.args[0].code() in NOT_READY):
                    raise
                time.sleep(0.2)

    def close(self):
        self.consumer.close()


@dataclasses.dataclass
class Facts:
    """What the logs say, by the reading rule."""

    jobs: list
    results: list
    accepted: dict = dataclasses.field(default_factory=dict)  # job id: its first record
    official: dict = dataclasses.field(default_factory=dict)  # job id: record
    fenced: list = dataclasses.field(default_factory=list)
    copies: list = dataclasses.field(default_factory=list)  # records after the official one of their job
    barriers: list = dataclasses.field(default_factory=list)
    unannounced: list = dataclasses.field(default_factory=list)  # a result of an epoch that no barrier began
    shared: list = dataclasses.field(default_factory=list)  # a result of an epoch that two barriers began

    def __post_init__(self):
        for job in sorted(self.jobs, key=lambda r: r.place):
            if job.kind not in CONTROL:
                self.accepted.setdefault(job.id, job)
        highest, announced, contested = collections.defaultdict(int), set(), set()
        for r in sorted(self.results, key=lambda r: r.place):
            part = r.topic, r.partition
            if r.epoch < highest[part]:
                self.fenced.append(r)
                continue
            highest[part] = r.epoch
            if r.headers["ce_type"] == BARRIER:
                self.barriers.append(r)
                if (part, r.epoch) in announced:
                    contested.add((part, r.epoch))
                announced.add((part, r.epoch))
                continue
            if (part, r.epoch) not in announced:
                self.unannounced.append(r)
            if (part, r.epoch) in contested:
                self.shared.append(r)
            if r.id in self.official:
                self.copies.append(r)
            else:
                self.official[r.id] = r

    def undecided(self):
        return [job for id, job in self.accepted.items() if id not in self.official]


class Order:
    """Whose turn a run's jobs are, by the log alone: taken has the first job of each seq; failed has those that cannot run."""

    def __init__(self, jobs):
        self.taken, self.failed, self.given_up, self.unbroken = {}, {}, set(), -1
        for job in jobs:
            self.expire() if job.kind == "expire" else self.add(job.id, job.seq)

    def add(self, id, seq):
        if self.taken.get(seq) == id or id in self.failed:
            return  # a copy
        if seq in self.given_up:
            self.failed[id] = f"number {seq} was given up"
        elif seq in self.taken:
            self.failed[id] = f"number {seq} is {self.taken[seq]}"
        elif seq > self.unbroken + WINDOW:
            self.failed[id] = f"number {seq} is too far above {self.unbroken}"
        else:
            self.taken[seq] = id
            self.advance()

    def advance(self):
        while self.unbroken + 1 in self.taken or self.unbroken + 1 in self.given_up:
            self.unbroken += 1

    def expire(self):
        for seq in range(self.unbroken + 1, max(self.taken, default=-1) + 1):
            self.given_up.add(seq)
            if seq in self.taken:
                self.failed[self.taken[seq]] = "it was behind a gap when the client was gone"
        self.advance()


@dataclasses.dataclass
class Report:
    facts: Facts
    counts: dict
    problems: list  # (rule, text)

    def rules(self):
        return {rule for rule, _ in self.problems}

    def __str__(self):
        counts = " ".join(f"{k}={v}" for k, v in self.counts.items())
        return "\n".join([f"checker: {counts}", *(f"  {rule}: {text}" for rule, text in self.problems[:40])])

    def check(self):
        print(self)
        assert not self.problems, f"{len(self.problems)} problems\n{self}"
        return self


class Inspection:
    def __init__(self, world, prompts):
        self.world, self.prompts = world, prompts
        self.problems = []
        model = f"{world.topic_prefix}{world.model.replace('/', '--')}"
        self.jobs_log = Log(world.brokers, [f"{model}.{s}.jobs" for s in ("train", "sample")])
        self.results_log = Log(world.brokers, [f"{model}.{s}.results" for s in ("train", "sample")])

    def say(self, rule, text):
        self.problems.append((rule, text))

    def read(self):
        jobs = self.jobs_log.read()  # first, so that a result's job is always among them
        results = self.results_log.read()
        good = [r for r in results if is_result(r, self.world.model)]
        self.bad = len(results) - len(good)
        self.facts = Facts(list(jobs), good)
        return self.facts

    def close(self):
        self.jobs_log.close()
        self.results_log.close()

    def sql(self, text, *values):
        return self.db.execute(text, values).fetchall()

    def billed(self):
        """Has billing read all that is in the results logs?"""
        rows = {(t, p): n for t, p, n in self.sql("select topic, partition, next_offset from ingest_cursors")}
        return all(rows.get(part, 0) >= end for part, end in self.results_log.next.items())

    def settle(self, seconds):
        """Until all that was asked is decided and billed, or time is over; what is missing then is a problem."""
        end = time.monotonic() + seconds
        while (self.read().undecided() or not self.billed()) and time.monotonic() < end:
            time.sleep(0.1)

    # ------------------------------------------------------------ the logs

    def one_result_each(self):
        f = self.facts
        for job in f.undecided():
            self.say("I1", f"job {job.id} at {job.place} has no official result")
        for id, r in f.official.items():
            if id not in f.accepted:
                self.say("I1", f"result {id} at {r.place} of a job that was never asked")
        for r in f.copies:
            self.say("I8", f"a second record of {r.id} at {r.place}, the official one is at {f.official[r.id].place}")
        for r in f.unannounced:
            self.say("I8", f"{r.place} has epoch {r.epoch}, which no barrier began")
        for r in f.shared:
            self.say("I8", f"{r.place} has epoch {r.epoch}, which was given to two owners: neither fences the other")
        for r in f.official.values():
            if hashlib.sha256(r.value).hexdigest() != r.headers["tw_digest"]:
                self.say("I1", f"{r.place} is not what its digest says")
            if r.status != "ok" and any(r.tokens):
                self.say("I6", f"{r.id} is {r.status} and bills {r.tokens}")

    def runs_in_order(self):
        jobs, results = collections.defaultdict(list), collections.defaultdict(list)
        for job in sorted(self.facts.jobs, key=lambda r: r.place):
            if job.topic.endswith(".train.jobs"):
                jobs[job.parent].append(job)
        for r in sorted(self.facts.official.values(), key=lambda r: r.place):
            if r.topic.endswith(".train.results"):
                results[r.parent].append(r)
        self.orders = {run: Order(it) for run, it in jobs.items()}
        for run in results:
            order = self.orders.get(run) or Order([])
            expected = [seq for seq, id in sorted(order.taken.items()) if id not in order.failed]
            seqs = [r.seq for r in results[run] if r.id not in order.failed]
            if seqs != expected[: len(seqs)]:
                self.say("I2", f"run {run}: results in the order {seqs}, expected {expected}")
            for r in results[run]:
                if r.id in order.failed and (r.status != "failed" or json.loads(r.value)["category"] != "user"):
                    self.say("I2", f"{r.id} is {r.status}, expected it to fail: {order.failed[r.id]}")
        self.runs = len(set(jobs) | set(results))

    # ------------------------------------------------------------ futures

    def one_future(self, raw, official, deadline):
        if self.unserved and time.monotonic() > deadline + LAST_POLLS_S:
            return f"future {official.id} was not asked for: time was over"
        while (found := raw.poll(official.id)) is None and time.monotonic() < deadline:
            pass
        if found is None:
            self.unserved = True
            return f"future {official.id} was not served, {PATIENCE_S} s after the first one was asked for"
        kind, data = found
        if kind != official.headers["content-type"] or data != official.value:
            return f"future {official.id} is {kind} {data[:60]!r}, official is {official.status} {official.value[:60]!r}"

    def futures(self, most):
        """At most so many, evenly over the log.  All of them have PATIENCE_S together, then one poll each.  Where one is not served the
        others' polls end soon, too: that has to be told before pytest ends the test."""
        by_key = collections.defaultdict(list)
        results = [r for r in self.facts.official.values() if r.headers["tw_tenant"] in self.world.keys]
        for r in results[:: -(-len(results) // most) or 1]:
            by_key[self.world.keys[r.headers["tw_tenant"]]].append(r)
        self.served, self.unserved, deadline = 0, False, time.monotonic() + PATIENCE_S

        def serve(share):
            key, results = share
            raw = Raw(self.world.base_url, key)
            return [self.one_future(raw, r, deadline) for r in results]

        shares = [(key, rs[i::4]) for key, rs in by_key.items() for i in range(4)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for answers in pool.map(serve, shares):
                self.served += len(answers)
                for text in filter(None, answers):
                    self.say("I3", text)

    def redis(self):
        prefix = f"{self.world.redis_prefix}future:"
        with redis.Redis.from_url(self.world.redis_url) as store:
            for key in store.scan_iter(f"{prefix}*", 1000):
                id, value = key.decode().removeprefix(prefix), store.get(key)
                r = self.facts.official.get(id)
                if value is None or not r:
                    continue
                head, _, payload = value.partition(b"\n")
                if head.decode() != f"{r.status} {r.headers['content-type']}" or payload != r.value:
                    self.say("I3", f"Redis has {head!r} for {id}, official is {r.status}")

    # ------------------------------------------------------------ money

    def price(self, rows, model, kind, at):
        for name in (model, "*"):
            for m, k, pico, begins, ends in rows:
                if (m, k) == (name, kind) and begins <= at and (ends is None or at < ends):
                    return pico
        raise AssertionError(f"no price for {kind} of {model} at {at}")

    def outcomes(self):
        prices = self.sql(
            "select model, kind, pico_usd_per_token, case when valid_from = '-infinity' then '0001-01-01'::timestamptz"
            " else valid_from end, valid_to from prices"
        )
        expected = {}
        self.amounts, self.charges = {}, {}
        for r in self.facts.official.values():
            at = datetime.datetime.fromtimestamp(r.at / 1000, datetime.timezone.utc)
            picos = [n * self.price(prices, r.headers["tw_model"], k, at) if n else 0 for k, n in zip(KINDS, r.tokens)]
            self.charges[r.id] = (at, picos)
            self.amounts[r.id] = sum(picos)
            expected[r.id] = (
                r.headers["tw_tenant"], r.headers["tw_model"], r.parent, r.kind, r.seq, r.status, *r.tokens, sum(picos),
                r.headers["tw_digest"], r.topic, r.partition, r.offset, at,
            )  # fmt: skip
        rows = self.sql(
            "select job_id, account_id, model, parent_id, kind, seq, status, prefill_tokens, sample_tokens, train_tokens,"
            " amount_pico, digest, topic, partition, log_offset, decided_at from job_outcomes"
        )
        found = {id: tuple(rest) for id, *rest in rows}
        self.outcome_rows = len(rows)
        for id in expected.keys() - found.keys():
            self.say("I4", f"{id} has no row in job_outcomes")
        for id in found.keys() - expected.keys():
            self.say("I4", f"job_outcomes has {id}, which has no official result")
        for id in expected.keys() & found.keys():
            if expected[id] != found[id]:
                self.say("I4", f"{id}: row {found[id]}, official {expected[id]}")

    def hours(self):
        expected = collections.defaultdict(lambda: [0, 0, 0])
        for id, (at, picos) in self.charges.items():
            r = self.facts.official[id]
            hour = at.replace(minute=0, second=0, microsecond=0)
            for kind, tokens, pico in zip(KINDS, r.tokens, picos):
                if tokens:
                    cell = expected[hour, r.headers["tw_tenant"], r.headers["tw_model"], r.parent, kind]
                    cell[0] += tokens
                    cell[1] += pico
                    cell[2] += 1
        rows = self.sql("select hour, account_id, model, parent_id, kind, tokens, amount_pico, jobs from usage_hours")
        found = {tuple(row[:5]): [row[5], int(row[6]), row[7]] for row in rows}
        if found != dict(expected):
            different = [k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)]
            for key in different[:5]:
                self.say("I5", f"hour {key}: {found.get(key)}, expected {expected.get(key)}")

    def ledger(self):
        expected = collections.defaultdict(collections.Counter)
        owed = collections.Counter()
        for id, (_, picos) in self.charges.items():
            r = self.facts.official[id]
            tenant, model = r.headers["tw_tenant"], r.headers["tw_model"]
            for kind, pico in zip(KINDS, picos):
                if pico:
                    expected[id][f"revenue:{model}:{kind}"] += pico
                    expected[id][f"customer:{tenant}"] -= pico
            owed[tenant] += sum(picos)
        found = collections.defaultdict(collections.Counter)
        for tx, account, pico in self.sql("select tx, account, amount_pico from ledger_entries"):
            found[tx][account] += pico
        for tx, entries in found.items():
            if sum(entries.values()):
                self.say("I5", f"the entries of {tx} sum to {sum(entries.values())}")
            if not tx.startswith("credit:") and entries != expected.get(tx):
                self.say("I5", f"ledger of {tx}: {dict(entries)}, expected {dict(expected.get(tx, {}))}")
        for tx in expected.keys() - found.keys():
            self.say("I5", f"{tx} costs something and is not in the ledger")
        credits = dict(self.sql("select account_id, sum(amount_pico) from credits group by 1"))
        for account, balance in self.sql("select account_id, balance_pico from balances"):
            if int(balance) != int(credits.get(account, 0)) - owed[account]:
                self.say("I5", f"balance of {account} is {balance}, expected {int(credits.get(account, 0)) - owed[account]}")

    # ------------------------------------------------------------ files

    def folder_hash(self, folder):
        lines = b""
        for name in FILES:
            file = folder / name
            if file.exists():
                lines += f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n".encode()
        return hashlib.sha256(lines).hexdigest()

    def damage(self, dir, sha256):
        """What is wrong with a folder, or None."""
        folder = self.world.home / "data" / dir
        if not folder.is_dir():
            return f"folder {dir} is not there"
        return None if self.folder_hash(folder) == sha256 else f"folder {dir} is damaged"

    def snapshots(self):
        by_run = collections.defaultdict(dict)
        for r in self.facts.official.values():
            by_run[r.parent][r.seq] = r
        rows = "select run_id, seq, epoch, dir, sha256, state_digest from run_snapshots where damaged_at is null"
        self.snapshot_rows = self.sql(rows)
        digests, damaged = collections.defaultdict(set), {}
        for row in self.snapshot_rows:
            run, seq, _, dir, sha256, digest = row
            given_up = self.orders[run].given_up if run in self.orders else ()
            missing = [s for s in range(seq + 1) if s not in by_run[run] and s not in given_up]
            if missing:
                self.say("I7", f"snapshot {run} at {seq} covers jobs without a result: {missing}")
            if dir and (why := self.damage(dir, sha256)):
                damaged[row] = why
            digests[run, seq].add(digest)
        for row in damaged.keys() & set(self.sql(rows)):  # a newer snapshot may have replaced it meanwhile
            self.say("I7", f"snapshot {row[0]} at {row[1]}: {damaged[row]}")
        for place, different in digests.items():
            if len(different) > 1:
                self.say("I7", f"snapshots {place} of different epochs differ: {different}")

    def checkpoints(self):
        rows = self.sql("select run_id, seq, dir, sha256, deleted_at from checkpoints")
        found = {(run, seq) for run, seq, *_ in rows}
        for run, seq, dir, sha256, deleted in rows:
            if not deleted and (why := self.damage(dir, sha256)):
                self.say("I7", f"checkpoint {run} at {seq}: {why}")
        for r in self.facts.official.values():
            if r.kind in ("save", "save_sampler") and r.status == "ok" and (r.parent, r.seq) not in found:
                self.say("I7", f"{r.id} is ok and has no checkpoint")

    def positions(self):
        """A shard's row must not be ahead of what is decided, nor start a reader under a wrong epoch."""
        rows = self.sql("select stream, partition, resume_offset, scan_offset, scan_epoch from shards")
        for stream, partition, resume, scan, scan_epoch in rows:
            for job in self.facts.jobs:
                if job.topic.endswith(f".{stream}.jobs") and job.partition == partition and job.offset < resume:
                    if job.kind not in CONTROL and job.id not in self.facts.official:
                        self.say("I7", f"{job.place} lies below resume_offset {resume} and has no result")
            below = [
                r.epoch
                for r in self.facts.results
                if r.topic.endswith(f".{stream}.results") and r.partition == partition and r.offset < scan
            ]
            if max(below, default=0) > scan_epoch:
                self.say("I7", f"{stream}/{partition}: scan_epoch is {scan_epoch} at {scan}, the log had {max(below)} there")

    # ------------------------------------------------------------ log files

    def words(self):
        """What must not be in any log file."""
        world = self.world
        yield "the secret", world.secret
        yield "Postgres' password", re.search(r"password=(\w+)", world.postgres)[1]
        for key in world.keys.values():
            yield "an API key", key
            yield "an API key's secret", key.rsplit("-", 1)[1]
        prompts = list(self.prompts)
        for job in self.facts.accepted.values():
            if job.headers["content-type"] == "application/json" and job.kind in ("sample", "forward", "forward_backward"):
                prompts += [c["tokens"] for c in find_all(json.loads(job.value), "chunks") if len(c["tokens"]) >= 4]
        for tokens in {tuple(p[:4]) for p in prompts}:
            for glue in (",", ", ", " "):
                yield "a prompt", glue.join(map(str, tokens))

    def log_files(self):
        files = [*self.world.logs(), *pathlib.Path(self.world.servers.home / "log").glob("*.log")]
        words = list(self.words())
        self.mismatches = self.log_fenced = 0
        for file in files:
            data = file.read_bytes()
            for what, word in words:
                if word.encode() in data:
                    self.say("I9", f"{file.name} has {what}")
            if file.parent == self.world.home / "log" and (found := LISTS.search(data)):
                self.say("I9", f"{file.name} has a list of numbers: {found.group()[:60]!r}")
            self.mismatches += data.count(b" worker.digest_mismatch ")
        if self.mismatches:
            self.say("I8", f"{self.mismatches} digest mismatches: a replay computed other bits")

    # ------------------------------------------------------------

    def run(self, settle_s, serve):
        with self.world.connect() as self.db:
            self.settle(settle_s)
            self.one_result_each()
            self.runs_in_order()
            self.outcomes()
            self.hours()
            self.ledger()
            self.snapshots()
            self.checkpoints()
            self.positions()
            self.redis()
            self.log_files()
        self.served = 0
        if serve:
            self.futures(serve)
        f = self.facts
        counts = {
            "jobs": len(f.accepted),
            "job_copies": len(f.jobs) - len(f.accepted) - sum(j.kind in CONTROL for j in f.jobs),
            "results": len(f.official),
            "ok": sum(r.status == "ok" for r in f.official.values()),
            "runs": self.runs,
            "futures": self.served,
            "outcomes": self.outcome_rows,
            "tokens": sum(sum(r.tokens) for r in f.official.values()),
            "snapshots": len(self.snapshot_rows),
            "barriers": len(f.barriers),
            "fenced": len(f.fenced),
            "copies": len(f.copies),
            "bad": self.bad,
            "mismatches": self.mismatches,
            "problems": len(self.problems),
        }
        return Report(f, counts, self.problems)


def find_all(value, key):
    """Every item of every list under that key."""
    if isinstance(value, dict):
        for k, v in value.items():
            if k == key and isinstance(v, list):
                yield from (item for item in v if isinstance(item, dict) and "tokens" in item)
            else:
                yield from find_all(v, key)
    elif isinstance(value, list):
        for item in value:
            yield from find_all(item, key)


def inspect(world, settle_s=PATIENCE_S, serve=1_000_000, prompts=()):
    """Reads everything and computes it again.  serve: how many futures the gateway is asked for, at most."""
    it = Inspection(world, prompts)
    try:
        return it.run(settle_s, serve)
    finally:
        it.close()


def read_facts(world):
    """Only what the logs say now."""
    it = Inspection(world, ())
    try:
        return it.read()
    finally:
        it.close()
