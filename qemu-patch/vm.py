# SPDX-License-Identifier: MIT OR Apache-2.0
"""One QEMU with the tiny guest in it: starts it, talks QMP to it, tells the guest what to do, reads its memory.

Knows QEMU's command line, QMP and the guest's mailbox (guests/guest.S). Knows nothing of what is tested or measured.
"""

import json
import mmap
import os
import re
import select
import socket
import struct
import subprocess
import time

PAGE = 4096
MIB = 1 << 20
FIRMWARE = ["/usr/share/seabios", "/usr/share/qemu"]
PATIENCE = 180                  # seconds: for a machine that has much else to do

NOTHING, FILL, CHECK, RUN, EXIT = range(5)
MAILBOX = 0x1000


class Failure(Exception):
    """What was expected did not happen; the text says what."""


def wait_until(condition, seconds, what):
    """The first true result of condition(), which must come within that time."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise Failure(f"{what}: nothing after {seconds} s")
        time.sleep(0.002)


class Pages:
    """Some pages of the guest: count of them, stride bytes apart, each wobble pages further or less."""

    def __init__(self, first, stride, count, wobble=0):
        self.first, self.stride, self.count, self.wobble = first, stride, count, wobble

    def addresses(self):
        for i in range(self.count):
            yield self.first + i * self.stride + ((5 * i & self.wobble) * PAGE)


def one_page_a_slot(slot_size, ram):
    """A page in every slot of RAM above 1 MiB, at different places within the slots."""
    first = MIB if slot_size <= MIB else slot_size
    wobble = (1 << (slot_size // PAGE).bit_length() - 1) - 1
    return Pages(first, slot_size, (ram - first) // slot_size, wobble)


class Vm:
    """A QEMU process. Leave the `with` block and it is gone."""

    def __init__(self, binary, directory, name, *, bios=None, ram=510 * MIB, accel="", options=(), trace=(),
                 paused=False, incoming=None, preload=None, machine="pc", kernel=None):
        self.name, self.ram = name, ram
        self.path = os.path.join(directory, name)
        self.log = self.path + ".log"
        self.debug_path = self.path + ".debug"
        self.socket = None
        self.buffer = b""
        self.lines_read = 0
        for stale in (self.path + ".ram", self.debug_path, self.log):
            if os.path.exists(stale):
                os.remove(stale)
        with open(self.path + ".ram", "wb") as file:
            file.truncate(ram)
        with open(self.path + ".ram", "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), ram)

        command = [binary]
        for directory in FIRMWARE:
            command += ["-L", directory]
        command += ["-machine", machine + ",memory-backend=ram", "-accel", "kvm" + accel, "-m", f"size={ram >> 20}M",
                    "-object", f"memory-backend-file,id=ram,size={ram},mem-path={self.path}.ram,share=on",
                    "-nodefaults", "-display", "none", "-qmp", f"unix:{self.path}.qmp,server=on,wait=off",
                    "-chardev", f"file,id=debug,path={self.debug_path}",
                    "-device", f"isa-debugcon,iobase={'0xe9' if bios or kernel else '0x402'},chardev=debug",
                    "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-D", self.log]
        if bios:
            command += ["-bios", bios]
        if kernel:
            command += ["-kernel", kernel]
        if paused:
            command += ["-S"]
        if incoming:
            command += ["-incoming", incoming]
        for event in trace:
            command += ["-trace", event]
        command += options
        environment = dict(os.environ)
        if preload:
            environment["LD_PRELOAD"] = preload
        self.sequence = 0
        self.errors = open(self.path + ".stderr", "w+b")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors,
                                        env=environment)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.stop()

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.socket:
            self.socket.close()
            self.socket = None
        self.memory.close()
        self.errors.close()
        os.remove(self.path + ".ram")

    def stderr(self):
        with open(self.path + ".stderr", errors="replace") as file:
            return file.read()

    # QMP

    def connect(self):
        """Waits until QEMU is there: its machine is made, though the guest may not run yet."""
        def attempt():
            if self.process.poll() is not None:
                raise Failure(f"{self.name}: QEMU ended with status {self.process.returncode}: {self.stderr()}")
            try:
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(self.path + ".qmp")
                return connection
            except OSError:
                return None
        self.socket = wait_until(attempt, PATIENCE, f"{self.name}: QMP")
        self.message(120)
        self.qmp("qmp_capabilities")
        return self

    def message(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.socket], [], [], max(0, deadline - time.monotonic()))
            try:
                data = self.socket.recv(1 << 16) if ready else b""
            except OSError:
                data = b""
            if not data:
                self.gone("no answer on QMP")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def gone(self, what):
        """QEMU does not answer: says why, where it has ended."""
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        raise Failure(f"{self.name}: {what} (status {self.process.returncode}): {self.stderr()}")

    def qmp(self, command, **arguments):
        if not self.socket:
            self.connect()
        request = {"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        try:
            self.socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            self.gone("no QMP")
        while True:
            answer = self.message(300)
            if "error" in answer:
                raise Failure(f"{self.name}: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def memslots(self):
        """What `info memslots` has, as (totals, slots): the first line of each address space, and the slots."""
        text = self.qmp("x-query-memslots")["human-readable-text"]
        slots = re.findall(r"slot (\d+) gpa (0x\w+) size (0x\w+) hva (0x\w+) flags (0x\w+)", text)
        return text, [tuple(int(word, 0) for word in slot) for slot in slots]

    # The guest

    def debug(self):
        """All that was said on the debug port so far."""
        with open(self.debug_path, errors="replace") as file:
            return file.read()

    def line(self, seconds=PATIENCE):
        """The guest's next line."""
        def complete():
            if self.process.poll() is not None:
                raise Failure(f"{self.name}: QEMU ended with status {self.process.returncode}: {self.stderr()}")
            lines = self.debug().split("\n")[:-1]
            return lines[self.lines_read:self.lines_read + 1]
        wait_until(lambda: os.path.exists(self.debug_path), seconds, f"{self.name}: debug port")
        line, = wait_until(complete, seconds, f"{self.name}: the guest's next line")
        self.lines_read += 1
        return line

    def expect(self, wanted, seconds=PATIENCE):
        line = self.line(seconds)
        if line.split()[0] != wanted:
            raise Failure(f"{self.name}: the guest says '{line}', not '{wanted}'")
        return line

    def tell(self, command, pages=Pages(0, 0, 1), key=0):
        """Gives the guest a command. It has not begun when this returns."""
        self.sequence += 1
        fields = struct.pack("<IIIQQI", command, key, pages.wobble, pages.first, pages.stride, pages.count)
        self.memory[MAILBOX + 4:MAILBOX + 4 + len(fields)] = fields
        self.memory[MAILBOX:MAILBOX + 4] = struct.pack("<I", self.sequence)

    def go_on_from(self, other):
        """The next command is the one after the other's last. For a guest that was restored, before it runs."""
        self.sequence = other.sequence
        self.memory[MAILBOX:MAILBOX + PAGE] = other.memory[MAILBOX:MAILBOX + PAGE]

    def do(self, command, pages, key, seconds=PATIENCE):
        self.tell(command, pages, key)
        self.expect("D", seconds)

    def stop_running(self, pages):
        """Ends RUN on these pages; the key of the last pass."""
        self.tell(NOTHING, pages)
        key = int(self.expect("P").split()[1], 16)
        self.expect("D")
        return key

    def traced(self, event):
        """The arguments of every trace event of that name so far, as text."""
        with open(self.log, errors="replace") as file:
            return re.findall(rf"^(?:\S+:)?{event} (.*)$", file.read(), re.M)

    # Migration

    def migrate(self, uri, seconds=PATIENCE, wait=True):
        self.qmp("migrate", uri=uri)
        return self.migrated(seconds) if wait else None

    def migrated(self, seconds=PATIENCE):
        def ended():
            info = self.qmp("query-migrate")
            if info.get("status") == "failed":
                raise Failure(f"{self.name}: migration failed: {info.get('error-desc')}")
            return info if info.get("status") == "completed" else None
        return wait_until(ended, seconds, f"{self.name}: migration")


def same_memory(one, other):
    """Where the memory of two guests first differs, or None. The mailbox, which the host writes to, is left out."""
    step = MIB
    for at in range(0, one.ram, step):
        if one.memory[at:at + step] != other.memory[at:at + step]:
            for page in range(at, at + step, PAGE):
                if page != MAILBOX and one.memory[page:page + PAGE] != other.memory[page:page + PAGE]:
                    return page
    return None
