"""What run.py promises about parts, time and the file, with programs that are a line of shell."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest

sys.dont_write_bytecode = True
import run as runner  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


class RunTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.out = os.path.join(self.folder.name, "out.json")
        os.makedirs(os.path.join(self.folder.name, "tests", "gpu"))
        self.run_ = self.new_run(100)

    def tearDown(self):
        self.folder.cleanup()

    def new_run(self, seconds):
        run = runner.Run(argparse.Namespace(out=self.out, seconds=seconds, commit="abc", emulated=False, python="false"))
        run.build_dir = self.folder.name
        return run

    def program(self, name, script):
        path = os.path.join(self.folder.name, "tests", "gpu", "gpu-" + name)
        with open(path, "w") as file:
            file.write("#!/bin/sh\n" + script)
        os.chmod(path, 0o755)
        return path

    def saved(self):
        with open(self.out) as file:
            return json.load(file)

    def test_each_test_has_its_own_status(self):
        self.program("good", "echo fine")
        self.program("bad", "echo about to fail >&2; exit 3")
        self.program("slow", "sleep 60 & wait")
        self.run_.part("kernels", 2, 1, self.run_.tests(["good", "bad", "slow", "absent"]))
        part = self.saved()["parts"]["kernels"]
        self.assertEqual("failed: exit status 3", part["status"])
        self.assertEqual({"good": "passed", "bad": "failed: exit status 3", "slow": "cut off",
                          "absent": "not run: it was not built"},
                         {name: test["status"] for name, test in part["tests"].items()})
        self.assertEqual(["about to fail"], part["tests"]["bad"]["last_words"])
        self.assertLess(part["seconds"], 10)

    def test_cases_are_kept_when_the_program_is_cut_off(self):
        path = self.program("speed", """echo noise; echo '{"case": "open", "status": "passed"}'; printf '{"ca'; sleep 60""")
        self.run_.part("speed x", 2, 1, self.run_.cases([path]))
        part = self.saved()["parts"]["speed x"]
        self.assertEqual("cut off", part["status"])
        self.assertEqual([{"case": "open", "status": "passed"}], part["cases"])

    def test_all_cases_are_kept_of_a_program_that_is_read_while_it_writes(self):
        path = self.program("speed", """for i in 1 2 3 4 5 6 7; do echo '{"case": '$i'}'; sleep 0.1; done""")
        child = runner.Child([path])
        while not child.done():
            child.lines()
        self.assertEqual([1, 2, 3, 4, 5, 6, 7], [case["case"] for case in child.lines()])

    def test_cases_without_room_do_not_fail_the_part_unless_all_are(self):
        line = """echo '{"case": "%s", "status": "%s"}'\n"""
        path = self.program("some", line % ("open", "passed") + line % ("train", "not run: no room"))
        self.run_.part("some", 9, 1, self.run_.cases([path]))
        path = self.program("none", line % ("open", "not run: no room"))
        self.run_.part("none", 9, 1, self.run_.cases([path]))
        path = self.program("wrong", line % ("open", "passed") + line % ("train", "failed: why"))
        self.run_.part("wrong", 9, 1, self.run_.cases([path]))
        self.run_.part("silent", 9, 1, self.run_.cases([self.program("silent", ":")]))
        statuses = [self.saved()["parts"][name]["status"] for name in ("some", "none", "wrong", "silent")]
        self.assertEqual(["passed", "not run: no room", "failed: why", "failed: it said nothing"], statuses)

    def test_a_part_without_time_says_so_and_the_next_may_have_it(self):
        run = self.new_run(runner.RESERVE + 3)
        run.part("long", 60, 20, lambda part, until: None)
        run.part("short", 60, 1, lambda part, until: None)
        run.part("broken", 60, 1, lambda part, until: 1 / 0)
        parts = self.saved()["parts"]
        self.assertRegex(parts["long"]["status"], "not run: [0-9]+ s were left, it needs 20")
        self.assertEqual("passed", parts["short"]["status"])
        self.assertEqual("failed: ZeroDivisionError: division by zero", parts["broken"]["status"])

    def test_a_terminated_run_leaves_the_file_and_no_program(self):
        self.program("slow", "echo $$ >%s/pid; sleep 60 & wait" % self.folder.name)
        script = textwrap.dedent("""
            import sys; sys.path.insert(0, %r); sys.dont_write_bytecode = True
            import run
            run.Run.run = lambda self: (setattr(self, "build_dir", %r), self.part("engine", 50, 1, self.tests(["slow"])))
            sys.argv = ["run.py", %r]
            run.main()
        """) % (HERE, self.folder.name, self.out)
        child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        pid = os.path.join(self.folder.name, "pid")
        until = time.monotonic() + 30
        while not (os.path.exists(pid) and open(pid).read().strip()) and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        self.assertEqual(128 + signal.SIGTERM, child.wait(30))
        self.assertEqual("cut off", self.saved()["parts"]["engine"]["status"])
        with self.assertRaises(ProcessLookupError):
            os.kill(int(open(pid).read()), 0)

    def test_what_follows_from_the_numbers(self):
        run = self.run_
        run.result["machine"]["chip"] = "NVIDIA H100 80GB HBM3"
        train = {"case": "train", "name": "adapters", "rank": 8, "sequences": 64, "seq": 128}
        run.parts["speed m"] = {"cases": [
            {**train, "adapters": 1, "tokens_per_second": 100.0, "pass_tokens_per_second": 120.0,
             "flop_per_token_lora": 989e9, "flop_per_token_full": 2 * 989e9},
            {**train, "adapters": 16, "tokens_per_second": 90.0},
            {"case": "decode", "batch": 1, "adapters": 1, "rank": 32, "prompt": 64, "tokens_per_second": 30.0,
             "bytes_per_second": 1.675e12}]}
        run.parts["peer m"] = {"cases": [{**train, "adapters": 1, "tokens_per_second": 50.0},
                                         {**train, "adapters": 16, "status": "not run: no room"}]}
        run.derive("m")
        one, many, decode = self.saved()["parts"]["speed m"]["cases"]
        self.assertEqual((0.12, 0.24, 2.0), (one["mfu_lora"], one["mfu_full"], one["over_peer"]))
        self.assertEqual(0.9, many["over_one_adapter"])
        self.assertNotIn("over_peer", many)
        self.assertEqual(0.5, decode["bandwidth_share"])


if __name__ == "__main__":
    unittest.main(warnings="ignore")  # files that wait for the collector
