#!/usr/bin/env python3
"""Checks the model of the delivery protocol (delivery.pml) with Spin.

    run.py holds      the protocol as it is: every state within the bounds, no promise broken, and every kind of state
                      reached that makes this worth something
    run.py rules      each rule taken out, one at a time: Spin must find a broken promise; and a few rules that are
                      not needed, taken out: it must find none
    run.py large      as holds, with larger bounds: some gigabytes, the better part of an hour
    run.py trace X    the steps of the shortest counterexample without rule X

Needs spin and a C compiler.  Ends with 0 when everything is as it must be.
"""
import argparse
import concurrent.futures
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile

MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "delivery.pml")
DEPTH_MAX = 5000
TROUBLE_MAX = 2000
SECONDS_MAX = 540
LARGE_SECONDS_MAX = 7200


@dataclasses.dataclass
class Check:
    name: str
    flags: str  # of the model
    says: str
    holds: bool = True
    build: str = "-DCOLLAPSE"  # of the verifier: states are stored whole, compressed
    run: str = ""


WORKERS_ONLY = "-DWITHOUT_READERS"
BFS = "-DBFS -DCOLLAPSE"  # the shortest counterexample

HOLDS = [
    Check("whole", "-DJOBS=2 -DWORKERS=2 -DFLUSHES=1", "2 jobs, 2 workers, all readers, a flush"),
    Check("workers", f"-DJOBS=2 -DWORKERS=3 {WORKERS_ONLY}", "2 jobs, 3 workers"),
    Check("jobs", f"-DJOBS=3 -DWORKERS=2 {WORKERS_ONLY}", "3 jobs, 2 workers"),
    Check("readers", "-DJOBS=1 -DWORKERS=2 -DFLUSHES=2", "1 job, 2 workers, all readers, 2 flushes"),
    Check("files", f"-DJOBS=2 -DWORKERS=2 -DKEEP_FILES {WORKERS_ONLY}", "files of snapshots"),
    Check("restored", f"-DJOBS=1 -DWORKERS=3 -DRESTORED {WORKERS_ONLY}", "a database restored from a backup"),
]

# HASHED keeps 64 bits of a state: two that share them would be taken for one (the odds are below one in a thousand at
# these sizes).  BITS keeps three bits of a table: a part of the states is left out, so it finds trouble but proves nothing.
HASHED = {"build": "-DHC4", "run": "-w27"}
BITS = {"build": "-DBITSTATE", "run": "-w34 -k3"}

LARGE = [
    Check("whole", "-DJOBS=2 -DWORKERS=2 -DFLUSHES=2", "2 jobs, 2 workers, all readers, 2 flushes"),
    Check("jobs", f"-DJOBS=4 -DWORKERS=2 {WORKERS_ONLY}", "4 jobs, 2 workers"),
    Check("readers", "-DJOBS=1 -DWORKERS=3 -DFLUSHES=1", "1 job, 3 workers, all readers, 1 flush", **HASHED),
    Check("workers", f"-DJOBS=1 -DWORKERS=4 {WORKERS_ONLY}", "1 job, 4 workers", **HASHED),
    Check("both", f"-DJOBS=3 -DWORKERS=3 {WORKERS_ONLY}", "3 jobs, 3 workers, a part of the states", **BITS),
]


def without(rule, says, jobs=2, workers=2, readers=False, more="", holds=False):
    """A check of the model with one rule taken out."""
    flags = f"-DJOBS={jobs} -DWORKERS={workers} -DCOPIES_ALLOWED -DSHORTEST -D{rule} {more}"
    if not readers:
        flags += " " + WORKERS_ONLY
    return Check(rule.lower(), flags, says, holds, BFS)


RULES = [
    # workers
    without("WITHOUT_BARRIER", "a new owner writes no barrier"),
    without("WITHOUT_SCAN_TO_BARRIER", "it reads results first and writes its barrier then"),
    without("WITHOUT_SCAN_EPOCH", "it reads from the row's offset without the epoch in force there", workers=3),
    without("WITHOUT_SCAN_BELOW", "scan_offset is the log's end, not the lowest result that is needed"),
    without("WITHOUT_RESUME_BELOW", "resume_offset is the log's end, not the lowest job that is needed"),
    without("WITHOUT_KNOWN_RESULTS", "a replay runs jobs again whose result is known"),
    without("WITHOUT_KNOWN_STATUS", "a replay redoes the effect of failed jobs too"),
    without("WITHOUT_ACKS_BEFORE_SNAPSHOT", "a snapshot does not wait for acks"),
    without("WITHOUT_EPOCH_AT_SNAPSHOT", "a snapshot's transaction does not look at the epoch"),
    without("WITHOUT_GAPLESS", "a worker goes on after a result that was not delivered"),
    without("WITHOUT_EPOCH_AT_CLEANING", "a worker removes snapshot files of later epochs", more="-DKEEP_FILES"),
    without("WITHOUT_RAISED_EPOCH", "a restored database hands out an epoch again", 1, 3, more="-DRESTORED"),
    # readers
    without("WITHOUT_RULE_IN_RESOLVER", "the resolver takes records of any epoch", readers=True),
    without("WITHOUT_RULE_IN_BILLING", "billing takes records of any epoch", readers=True),
    without("WITHOUT_REBUILD_EPOCH", "a rebuilt cursor has billing's offset without its epoch", 1, readers=True),
    without("WITHOUT_BILLINGS_CURSOR", "a lost cursor is set to the log's end", 1, readers=True),
    without("WITHOUT_CURSOR_IN_REDIS", "the resolver's cursor survives a flush of the futures", 1, readers=True),
    without("WITHOUT_ONE_SCRIPT", "the cursor moves in one script, the futures in the next", 1, readers=True),
    without("WITHOUT_COMPARE", "the script does not compare the cursor", 1, readers=True),
    without("WORKERS_WRITE_REDIS", "a worker writes a future when its record is acked", 1, readers=True),
    without("WITHOUT_CURSOR_IN_TRANSACTION", "billing commits its cursor, then its rows", 1, readers=True),
    without("WITHOUT_CURSOR_IN_TRANSACTION_OR_KEY", "rows, then the cursor, and no key", 1, readers=True),
    # what safety does not need
    without("WITH_LEASE", "a worker looks at its lease before it sends (the model as such does not)", holds=True),
    without("WITHOUT_KEY", "billing's rows have no key (cursor and rows are one transaction)", 1, readers=True,
            holds=True),
]


# What the assertions of the model say, by a piece of their text.
PROMISES = [
    ("state==(okay&", "a state that is not the sum of the official results"),
    ("decided==", "a job without a result at the end"),
    ("(decided&((1<<applied)", "a snapshot of a job without an official result"),
    ("(decided&((1<<(((rec", "an official result without the one before it"),
    ("((rec>>10)==(okay", "an official result that was computed on another state"),
    ("!(((state", "an effect twice"),
    ("billed[((rec>>6)&7)]==official", "a bill for a record that is not official"),
    ("!(billed[", "a job billed twice"),
    ("billed[at]==official", "an official result without a bill"),
    ("cursor_next==end", "a future that is neither in Redis nor in billing's rows"),
    ("future[((rec>>6)&7)]==official", "a future that is not the official result"),
    ("!(future[", "a client was told what did not become official"),
    ("!(official[", "two records of a job that count"),
    ("files[", "the newest snapshot without its files"),
    (">=resume", "an accepted job that nobody runs"),
    ("me<", "the last worker had to leave"),
    ("invalid end state", "a stop before the end"),
]


def in_words(said):
    return next((words for piece, words in PROMISES if piece in said), said)


@dataclasses.dataclass
class Outcome:
    check: Check
    broken: str = ""  # which promise
    depth: int = 0
    states: int = 0
    megabytes: float = 0
    reached: dict = dataclasses.field(default_factory=dict)
    trouble: str = ""  # the check itself did not work

    @property
    def good(self):
        return not self.trouble and self.check.holds == (not self.broken)


def call(command, where, seconds):
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=seconds, check=False)


def build(check, where, memory_mb):
    """pan, the verifier; returns what went wrong."""
    shutil.copy(MODEL, where)
    made = call(["spin", "-a", *check.flags.split(), os.path.basename(MODEL)], where, 60)
    if made.returncode or "rror" in made.stdout:
        return made.stdout + made.stderr
    cc = os.environ.get("CC", "cc")
    made = call([cc, "-O1", "-w", "-DSAFETY", f"-DMEMLIM={memory_mb}", *check.build.split(), "-o", "pan", "pan.c"],
                where, 300)
    return made.stderr if made.returncode else ""


def number(pattern, text):
    found = re.search(pattern, text)
    return float(found.group(1)) if found else 0


def read(check, text):
    """What pan said.  It must have come to its end: out of memory or depth is no proof of anything."""
    out = Outcome(check)
    out.states = int(number(r"([0-9.e+]+) states, stored", text))
    out.megabytes = number(r"([0-9.]+)\s+total actual memory usage", text)
    out.reached = {m[0]: int(m[1]) for m in re.findall(r"^reached: (.+): (\d+)$", text, re.M)}
    found = re.search(r"pan:\d+: (.+) \(at depth (\d+)\)", text)
    if found:
        out.broken, out.depth = found.group(1), int(found.group(2))
        if not out.broken.startswith(("assertion violated", "invalid end state")):
            out.trouble = out.broken
    elif not re.search(r"errors: 0\b", text) or re.search(r"Search not completed|too small|MEMLIM bound", text):
        out.trouble = "the search did not come to its end:\n" + text[-2000:]
    return out


def run(check, memory_mb, seconds, keep=None):
    with tempfile.TemporaryDirectory(prefix="tinworks-model.") as where:
        where = keep or where
        trouble = build(check, where, memory_mb)
        if trouble:
            return Outcome(check, trouble=trouble)
        try:
            said = call(["./pan", f"-m{DEPTH_MAX}", *check.run.split()], where, seconds)
        except subprocess.TimeoutExpired:
            return Outcome(check, trouble=f"not finished after {seconds} s")
        return read(check, said.stdout + said.stderr)


def tell(out):
    verdict = f"broken after {out.depth} steps: {in_words(out.broken)}" if out.broken else "holds"
    print(f"{'ok  ' if out.good else 'FAIL'} {out.check.name}: {out.check.says}\n"
          f"       {verdict}; {out.states} states, {out.megabytes:.0f} MB", flush=True)
    if out.trouble:
        print("       " + out.trouble.strip()[:TROUBLE_MAX].replace("\n", "\n       "), flush=True)


def run_all(checks, args, seconds):
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        outcomes = []
        for out in pool.map(lambda c: run(c, args.memory_mb, seconds), checks):
            tell(out)
            outcomes.append(out)
    return outcomes


def all_reached(outcomes):
    total = {}
    for out in outcomes:
        for name, count in out.reached.items():
            total[name] = total.get(name, 0) + count
    for name, count in total.items():
        print(f"{'ok  ' if count else 'FAIL'} {count:>10} times: {name}")
    return bool(total) and all(total.values())


def trace(name, args):
    check = next((c for c in RULES if c.name == name.lower()), None)
    if not check:
        sys.exit(f'unknown rule "{name}"; there are: ' + " ".join(c.name for c in RULES))
    with tempfile.TemporaryDirectory(prefix="tinworks-model.") as where:
        tell(run(check, args.memory_mb, SECONDS_MAX, where))
        print(call(["spin", "-t", "-p", "-g", *check.flags.split(), os.path.basename(MODEL)], where, 60).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["holds", "rules", "large", "trace"])
    parser.add_argument("rule", nargs="?")
    parser.add_argument("--parallel", type=int, default=2, help="checks at a time")
    parser.add_argument("--memory-mb", type=int, help="of one check; default 1800, for large 12000")
    args = parser.parse_args()
    large = args.what == "large"
    args.memory_mb = args.memory_mb or (12000 if large else 1800)
    if large:
        args.parallel = 1
    if args.what == "trace":
        return trace(args.rule or "", args)
    checks = {"holds": HOLDS, "rules": RULES, "large": LARGE}[args.what]
    outcomes = run_all(checks, args, LARGE_SECONDS_MAX if large else SECONDS_MAX)
    good = all(out.good for out in outcomes)
    if args.what == "holds":
        good = all_reached(outcomes) and good
    print(f"{sum(out.states for out in outcomes)} states in {len(outcomes)} checks: "
          f"{'as it must be' if good else 'NOT as it must be'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
