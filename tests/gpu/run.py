"""run.py - what run.sh does.  Parts run one after the other, each within its own limit and what is left of the whole
time; a part that fails or is cut off keeps what it had, and the file is whole after every part and every few seconds."""

import argparse
import datetime
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
LIBRARIES = os.path.join(ROOT, "build", "gpu-libraries")
RESERVE = 4  # seconds that stay for the end

# Dense bf16 operations and bytes of memory a second, by what nvidia-smi calls the chip; NVIDIA's data sheets of H100,
# H200 and A100.  The first that fits.
PEAKS = [("H200", 989e12, 4.8e12), ("H100 NVL", 835e12, 3.9e12), ("H100 PCIe", 756e12, 2.0e12),
         ("H100", 989e12, 3.35e12), ("A100", 312e12, 2.039e12)]

TINY = ["--seq", "64", "--sequences", "2", "--prompt", "8", "--fresh", "3"]


class Child:
    """A program in a group of its own, with what it says in files."""

    running = set()

    def __init__(self, args, env=None):
        self.out, self.err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.began = time.monotonic()
        self.took = None
        self.process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=self.out, stderr=self.err, cwd=ROOT,
                                        env={**os.environ, **(env or {})}, start_new_session=True)
        Child.running.add(self)

    def done(self):
        if self.process.poll() is None:
            return False
        if self.took is None:
            self.took = time.monotonic() - self.began
            Child.running.discard(self)
        return True

    def kill(self):
        """All of the group: what the program started as well."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.done()

    def text(self, file):
        """Without a seek: the program writes at the same offset."""
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0).decode(errors="replace")

    def lines(self):
        """The whole lines of JSON so far."""
        found = []
        for line in self.text(self.out).split("\n")[:-1]:
            try:
                found.append(json.loads(line))
            except ValueError:
                pass  # something else that a library printed
        return found

    def last_words(self, count=12):
        return (self.text(self.out) + self.text(self.err)).strip().split("\n")[-count:]


class Run:
    def __init__(self, args):
        self.args = args
        self.began = time.monotonic()
        self.build_dir = os.path.join(ROOT, "build", "gpu-emulated" if args.emulated else "gpu")
        self.env = {}
        self.parts = {}
        self.result = {"format": 1, "date": datetime.datetime.now(datetime.timezone.utc).strftime("%FT%TZ"),
                       "commit": args.commit or said(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"]) or "unknown",
                       "emulated": args.emulated, "seconds_given": args.seconds, "seconds": 0, "all_held": False,
                       "machine": machine(), "parts": self.parts}

    def left(self):
        return self.args.seconds - RESERVE - (time.monotonic() - self.began)

    def write(self):
        self.result["seconds"] = round(time.monotonic() - self.began, 1)
        path = self.args.out + ".tmp"
        with open(path, "w") as file:
            json.dump(self.result, file, indent=1)
            file.write("\n")
        os.replace(path, self.args.out)

    # ---------------------------------------------------------------- parts

    def part(self, name, limit, least, work):
        """work(part, until) fills the part; it may set a status, which is "passed" otherwise."""
        part = self.parts[name] = {"status": "not run: its turn had not come"}
        seconds = min(limit, self.left())
        if seconds < least:
            part["status"] = "not run: %d s were left, it needs %d" % (max(0, self.left()), least)
        else:
            part["status"] = "cut off"  # unless it ends
            began = time.monotonic()
            print("%s: at most %d s" % (name, seconds), file=sys.stderr, flush=True)
            try:
                part["status"] = work(part, began + seconds) or "passed"
            except Exception as error:  # the other parts go on
                part["status"] = "failed: %s: %s" % (type(error).__name__, error)
            part["seconds"] = round(time.monotonic() - began, 1)
        print("%s: %s" % (name, part["status"]), file=sys.stderr, flush=True)
        self.write()

    def wait(self, children, until, note=lambda: None):
        """Until all have ended or time is up, which kills the others."""
        noted = time.monotonic()
        while not all([child.done() for child in children]) and time.monotonic() < until:
            time.sleep(0.05)
            if time.monotonic() - noted > 3:
                noted = time.monotonic()
                note()
                self.write()
        for child in children:
            if not child.done():
                child.kill()
                child.cut = True
        note()

    def status_of(self, child):
        if getattr(child, "cut", False):
            return "cut off"
        if child.process.returncode == 77:
            return "not run: " + " ".join(child.last_words()[-1:])
        return "passed" if child.process.returncode == 0 else "failed: exit status %d" % child.process.returncode

    def program(self, name):
        path = os.path.join(self.build_dir, "tests", "gpu", "gpu-" + name)
        return path if os.access(path, os.X_OK) else None

    def tests(self, names, env=None):
        """Programs whose exit status is the answer, all at once; a key of the part for each."""
        def work(part, until):
            results = part["tests"] = {name: {"status": "not run: it was not built"} for name in names}
            where = {**self.env, **(env or {})}
            children = {name: Child([self.program(name)], where) for name in names if self.program(name)}
            for name in children:
                results[name]["status"] = "cut off"
            self.wait(list(children.values()), until)
            for name, child in children.items():
                results[name] = {"status": self.status_of(child), "seconds": round(child.took, 2)}
                if results[name]["status"] != "passed":
                    results[name]["last_words"] = child.last_words()
            return worst(result["status"] for result in results.values())
        return work

    def cases(self, args):
        """A program that prints a line of JSON for each case, kept as they come."""
        def work(part, until):
            if args[0] is None:
                return "not run: it was not built"
            child = Child(args, self.env)

            def note():
                part["cases"] = child.lines()
            self.wait([child], until, note)
            status = self.status_of(child)
            if status != "passed":
                part["last_words"] = child.last_words()
                return status
            return worst(case.get("status", "passed") for case in part["cases"])
        return work

    # ---------------------------------------------------------------- the build

    def configure(self, part, until, only):
        """only: GPU or KERNELS.  Its words when it failed, else None."""
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DTINWORKS_WARNINGS_FATAL=OFF"]
        options += ["-DTINWORKS_%s_ONLY=%s" % (one, "ON" if one == only else "OFF") for one in ("GPU", "KERNELS")]
        if not self.args.emulated:
            options += ["-DTINWORKS_CUDA=ON", *cuda_options(part, self.env)]
        if only == "GPU" and os.path.isdir(os.path.join(LIBRARIES, "lib")):
            options.append("-DTINWORKS_LIBRARIES=" + LIBRARIES)
        if shutil.which("ninja"):
            options += ["-G", "Ninja"]
        part["options"] = options
        child = Child(["cmake", "-S", ROOT, "-B", self.build_dir, *options], self.env)
        self.wait([child], until)
        return None if self.status_of(child) == "passed" else child.last_words(30)

    def build(self, part, until):
        part["libraries"] = "build/gpu-libraries" if os.path.isdir(LIBRARIES) else "the machine's"
        part["engine"] = True
        words = self.configure(part, until, "GPU")
        if words:
            part["engine"], part["engine_refused"] = False, words
            words = self.configure(part, until, "KERNELS")
        if words:
            part["last_words"] = words
            return "failed: cmake refused"
        # One program that cannot be built must not cost the others.
        jobs = os.cpu_count() if not self.args.emulated else 2
        keep_on = ["-k", "0"] if shutil.which("ninja") else ["-k"]
        child = Child(["cmake", "--build", self.build_dir, "-j", str(jobs), "--", *keep_on], self.env)
        self.wait([child], until)
        status = self.status_of(child)
        if status != "passed":
            part["last_words"] = [line[:400] for line in child.last_words(60)]
        elif not part["engine"]:
            status = "failed: the kernels alone were built"
        return status

    # ---------------------------------------------------------------- all of it

    def speed_of(self, model, limit):
        folder = os.path.join(ROOT, "models", "shapes", model)
        extra, device, peer_device = [], "cuda:0", "cuda:0"
        if self.args.emulated:
            folder, peer_device, extra = os.path.join(HERE, "tiny"), "cpu", TINY
        common = ["--model", folder, *extra]
        program, threads = self.program("speed"), str(min(16, os.cpu_count()))
        own = ["--seconds", str(int(min(limit, self.left())) - 10), "--threads", threads]
        self.part("speed " + model, limit, 15, self.cases([program, "--device", device, *common, *own]))
        self.part("peer " + model, limit, 25, self.cases(
            [self.args.python, os.path.join(HERE, "peer.py"), "--device", peer_device, *common,
             "--seconds", str(int(min(limit, self.left())) - 20)]))
        self.derive(model)

    def run(self):
        kernels = sorted(name_of(path) for path in glob.glob(os.path.join(ROOT, "tests", "cuda", "test_*.c")))
        laws = ["engine_" + name for name in ("laws", "company", "score", "sample", "prefix", "losses", "training")]
        emulated = self.args.emulated
        self.write()
        self.part("build", 1500 if emulated else 220, 20, self.build)
        self.part("kernels", 300 if emulated else 60, 5, self.tests(kernels))
        whole = self.tests(["engine_device", "engine_decode", "engine_paged"], {"TINWORKS_TEST_ALL": "1"})
        self.part("engine", 300 if emulated else 45, 5, whole)
        self.part("products", 90, 5, self.cases([self.program("products"), *(["512"] if emulated else [])]))
        # The emulation needs minutes for these; what is tried there is the programs.
        self.part("laws", 120, 10, self.tests(laws, {"TINWORKS_TEST_DEVICE": "cpu" if emulated else "cuda:0"}))
        self.speed_of("qwen3-8b", 300 if emulated else 70)
        if not emulated:
            self.speed_of("qwen3-4b", 60)
            self.speed_of("qwen3-14b", 60)
            self.speed_of("qwen3-32b", 60)
        self.finish()

    def finish(self):
        held = [self.parts[name]["status"] for name in ("build", "kernels", "engine", "products", "laws")
                if name in self.parts]
        self.result["all_held"] = len(held) == 5 and all(status == "passed" for status in held)
        self.write()

    # ---------------------------------------------------------------- what follows from the numbers

    def derive(self, model):
        ours = self.parts["speed " + model].get("cases", [])
        theirs = self.parts["peer " + model].get("cases", [])
        chip, flops, bandwidth = peaks(self.result["machine"].get("chip", ""))
        for case in ours:
            if chip and "pass_tokens_per_second" in case:
                for kind in ("lora", "full"):
                    used = case["pass_tokens_per_second"] * case["flop_per_token_" + kind]
                    case["mfu_" + kind] = round(used / flops, 4)
            if chip and "bytes_per_second" in case:
                case["bandwidth_share"] = round(case["bytes_per_second"] / bandwidth, 4)
        for cases in (ours, theirs):
            for case in cases:
                one = same_case(cases, case, adapters=1)
                if one and case.get("adapters", 1) > 1 and "tokens_per_second" in case:
                    case["over_one_adapter"] = round(case["tokens_per_second"] / one["tokens_per_second"], 4)
        for case in ours:
            peer = same_case(theirs, case)
            if peer and "tokens_per_second" in case:
                case["over_peer"] = round(case["tokens_per_second"] / peer["tokens_per_second"], 4)
        if chip:
            self.result["peaks"] = {"chip": chip, "bf16_flop_per_second": flops, "bytes_per_second": bandwidth}
        self.write()


def same_case(cases, case, **other):
    """The case of the same work, or of the same but for what `other` says, that has a rate."""
    keys = ("case", "name", "batch", "adapters", "rank", "sequences", "seq", "prompt")
    wanted = {**{key: case.get(key) for key in keys}, **other}
    for one in cases:
        if "tokens_per_second" in one and all(one.get(key) == value for key, value in wanted.items()):
            return one
    return None


def worst(statuses):
    statuses = list(statuses)
    for kind in ("failed", "cut off", "not run"):
        found = [status for status in statuses if status.startswith(kind)]
        if len(found) == len(statuses) and found:
            return found[0]
        if found and kind != "not run":
            return found[0]
        if found:
            return "passed"  # what there was no room for is said where it stands
    return "passed" if statuses else "failed: it said nothing"


def name_of(path):
    return os.path.splitext(os.path.basename(path))[0]


def said(args):
    try:
        return subprocess.run(args, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def machine():
    smi = said(["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"])
    found = [field.strip() for field in smi.split("\n")[0].split(",")]
    names = ("chip", "driver", "memory", "compute_capability")
    return {**dict(zip(names, found if len(found) == 4 else [""] * 4)), "cpus": os.cpu_count(),
            "kernel": os.uname().release, "gcc": said(["gcc", "-dumpfullversion"]),
            "cmake": said(["cmake", "--version"]).split("\n")[0], "python": sys.version.split()[0],
            "glibc": " ".join(os.confstr("CS_GNU_LIBC_VERSION").split()[1:])}


def peaks(chip):
    for name, flops, bandwidth in PEAKS:
        if name in chip:
            return name, flops, bandwidth
    return None, 0, 0


def cuda_home():
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and os.access(os.path.join(home, "bin", "nvcc"), os.X_OK):
        nvcc = os.path.join(home, "bin", "nvcc")
    return os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))


def cuda_options(part, env):
    """The chip's own code only; and cuBLASLt from the packages that PyTorch brings, where the toolkit has none."""
    home = cuda_home()
    part["cuda"] = home
    version = re.search(r"release ([0-9.]+)", said([os.path.join(home, "bin", "nvcc"), "--version"]))
    part["nvcc"] = version.group(1) if version else "unknown"
    capability = machine().get("compute_capability", "").replace(".", "")
    code = "90a-real" if capability == "90" else capability + "-real" if capability else ""
    options = ["-DCMAKE_CUDA_COMPILER=" + os.path.join(home, "bin", "nvcc")]
    if code:
        options.append("-DCMAKE_CUDA_ARCHITECTURES=" + code)
    places = (os.path.join(home, "include"), os.path.join(home, "targets", "*", "include"), "/usr/include")
    if not any(glob.glob(os.path.join(place, "cublasLt.h")) for place in places):
        wheel = os.path.join(sysconfig.get_paths()["purelib"], "nvidia", "cu13")
        library = glob.glob(os.path.join(wheel, "lib", "libcublasLt.so.*"))
        if library and os.path.exists(os.path.join(wheel, "include", "cublasLt.h")):
            part["cublas"] = wheel
            env["CPATH"] = os.path.join(wheel, "include")
            options.append("-DCUDA_cublasLt_LIBRARY=" + library[0])
    nccl = os.path.join(sysconfig.get_paths()["purelib"], "nvidia", "nccl")
    if os.path.exists(os.path.join(nccl, "include", "nccl.h")):
        part["nccl"] = nccl
        options.append("-DNCCL_INCLUDE=" + os.path.join(nccl, "include"))
        places = [os.path.join(nccl, "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        env["LD_LIBRARY_PATH"] = ":".join(places)
    return options


def main():
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh")
    parser.add_argument("out", help="the JSON")
    parser.add_argument("--seconds", type=int, help="of the whole; 520, emulated 2400")
    parser.add_argument("--commit", default="", help="where there is no git to ask")
    parser.add_argument("--emulated", action="store_true", help="no GPU: emulated kernels, tiny models")
    parser.add_argument("--python", default=sys.executable, help="that has PyTorch")
    args = parser.parse_args()
    args.seconds = args.seconds or (2400 if args.emulated else 520)
    args.out = os.path.abspath(args.out)
    run = Run(args)

    def leave(number, frame):
        for child in list(Child.running):
            child.kill()
        run.write()
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    run.run()
    return 0 if run.result["all_held"] else 1


if __name__ == "__main__":
    sys.exit(main())
