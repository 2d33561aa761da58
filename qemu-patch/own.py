# SPDX-License-Identifier: MIT OR Apache-2.0
"""QEMU's own tests under KVM, case by case, on stock QEMU and on the series: what passes on one must pass on the other.

Knows which of QEMU's test programs can use KVM and how they are run. Knows nothing of what they test.
"""

import collections
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from vm import FIRMWARE, Failure

WHICH = ("stock", "memslots")
SECONDS = 300                   # a case that takes longer hangs: most take 1 to 60
OPTION_ROMS = ["/usr/lib/ipxe/qemu"]

# A test program, what it is given, what QEMU is given before all else, and whether `test` runs it each time.
Program = collections.namedtuple("Program", "name arguments options quick")
# Memory is cut into so many slots that the library is asked, and each of its answers is verified.
CUT = {"stock": ",x-max-memslot-size=1M", "memslots": ",x-max-memslot-size=1M,x-memslots-verify=on"}
# These say -accel qtest, which stays the second choice. Nothing of theirs wants vCPUs that run.
FORCED = ["-accel", "kvm", "-S"]
PROGRAMS = [
    Program("vmgenid-test", [], [], True),
    Program("cdrom-test", [], [], False),
    Program("i440fx-test", [], FORCED, True),
    Program("ivshmem-test", [], FORCED, True),
    Program("display-vga-test", [], FORCED, True),
    Program("device-plug-test", [], FORCED, True),
    Program("cpu-plug-test", [], FORCED, False),
    Program("qos-test", [], FORCED, False),
    Program("test-hmp", [], FORCED, False),
    Program("migration-test", ["--full", "-m", "slow"], [], False),
]
# The series' own: there is nothing in stock for it to look at.
SERIES = Program("kvm-memslots-test", [], [], True)
WRAPPER = """#!/bin/sh
set -- {options} "$@"
for word; do
    shift
    case $word in kvm | kvm,*) word=$word{properties} ;; esac
    set -- "$@" "$word"
done
exec {binary} "$@"
"""


class Runner:
    """Runs test programs of a build tree with two QEMUs, each with properties of its own for KVM."""

    def __init__(self, build, binaries, properties):
        self.build = build
        self.properties = properties
        self.directory = tempfile.mkdtemp(prefix="qemu-own-")
        self.binaries = binaries

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        shutil.rmtree(self.directory, ignore_errors=True)

    def make(self, programs):
        """Builds them; only test code is compiled, QEMU is there already."""
        targets = ["tests/qtest/" + program.name for program in programs]
        result = subprocess.run(["nice", "ninja", "-C", self.build, "-j", os.environ.get("JOBS", "2"), *targets],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            raise Failure(f"QEMU's tests were not built: {result.stdout[-2000:]}")

    def wrapper(self, which, program):
        """QEMU, in a directory of its own: tests take the architecture from its name. Adds options and properties."""
        directory = os.path.join(self.directory, which, program.name)
        path = os.path.join(directory, "qemu-system-x86_64")
        if not os.path.exists(path):
            os.makedirs(directory, exist_ok=True)
            options = [word for place in FIRMWARE + OPTION_ROMS for word in ("-L", place)] + program.options
            with open(path, "w", encoding="ascii") as file:
                file.write(WRAPPER.format(options=" ".join(options), properties=self.properties.get(which, ""),
                                          binary=self.binaries[which]))
            os.chmod(path, 0o755)
        return path

    def environment(self, which, program):
        temporary = os.path.join(self.directory, which, program.name, "tmp")
        os.makedirs(temporary, exist_ok=True)
        return dict(os.environ, QTEST_QEMU_BINARY=self.wrapper(which, program), TMPDIR=temporary,
                    PYTHON=os.path.join(self.build, "pyvenv/bin/python3"))

    def cases(self, program):
        """The paths of its cases, with the QEMU that is stock. None where what the program needs is not there."""
        out = subprocess.run([os.path.join(self.build, "tests/qtest", program.name), "-l", *program.arguments],
                             env=self.environment("stock", program), cwd=self.build, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True, check=False).stdout
        return re.findall(r"^(/\S+)$", out, re.M)

    def run(self, which, program, case):
        """The outcome of one case and what there is to say about it."""
        process = subprocess.Popen([os.path.join(self.build, "tests/qtest", program.name), "--tap", "-p", case,
                                    *program.arguments], env=self.environment(which, program), cwd=self.build,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, errors="replace", start_new_session=True)
        try:
            out, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "timeout", f"no end after {SECONDS} s"
        # -p also runs what is below the case.
        result = re.search(rf"^(not ok|ok) \d+ {re.escape(case)}(?: # (SKIP|TODO)(.*))?$", out, re.M)
        if result and result[1] == "ok" and result[2] == "SKIP":
            return "skip", result[3].strip()
        if result and result[1] == "ok":
            return "ok", ""
        return "fail", " / ".join(re.findall(r"^(?:# )?(.*(?:ERROR|ssert|rror:).*)$", out, re.M)[:3]) or out[-300:]


def compare(runner, program, case):
    """One case with both QEMUs, at the same time: (outcomes, remark, seconds)."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(WHICH)) as pool:
        results = list(pool.map(lambda which: runner.run(which, program, case), WHICH))
    outcomes = tuple(result[0] for result in results)
    return outcomes, next((result[1] for result in results if result[1]), ""), time.monotonic() - began


def series_only(build, binaries):
    """The qtest that the series brings along, case by case: {case: (outcome, remark)}."""
    with Runner(build, binaries, {}) as runner:
        runner.make([SERIES])
        return {case: runner.run("memslots", SERIES, case) for case in runner.cases(SERIES)}


def both(build, binaries, words=(), *, quick=False, properties=CUT, say=lambda line: print(line, flush=True)):
    """The cases with one of the words in their names, on stock and on the series, a line for each: {name: outcomes}."""
    results = {}
    programs = [program for program in PROGRAMS if program.quick or not quick]
    with Runner(build, binaries, properties) as runner:
        runner.make(programs)
        for program in programs:
            cases = runner.cases(program)
            if not cases and not words:
                say(f"{'-':7} {'-':7} {program.name} has nothing that it can run here")
            for name, case in ((f"{program.name} {case}", case) for case in cases):
                if words and not any(word in name for word in words):
                    continue
                outcomes, remark, seconds = compare(runner, program, case)
                results[name] = outcomes
                say(f"{outcomes[0]:7} {outcomes[1]:7} {name} ({seconds:.0f} s){': ' + remark if remark else ''}")
    return results


def summary(results):
    """One line for what both() has returned, and if all is well: nothing passes on stock alone."""
    passed = collections.Counter((stock == "ok", series == "ok") for stock, series in results.values())
    line = (f"stock and series: {passed[True, True]} passed on both, {passed[False, False]} on neither, "
            f"{passed[True, False]} on stock alone, {passed[False, True]} on the series alone")
    return line, bool(results) and not passed[True, False]
