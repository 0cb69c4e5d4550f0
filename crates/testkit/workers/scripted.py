"""A worker that does what its script says: the double behind the supervisor's tests.

Speaks the worker protocol with the standard library only, draws nothing real and says so (`versions.fake`). The script is
the first argument: a JSON list with one entry a start; the last entry repeats. `--count FILE` remembers how many starts
there were. See `ScriptedWorker` in `src/scripted.rs` for what an entry may hold.
"""

import ctypes
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import time


def dump_stacks():
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def die_with_parent(parent):
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(0)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def crc_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ 0x82F63B78 if n & 1 else n >> 1
        table.append(n)
    return table


CRC_TABLE = crc_table()


def pixels(seed, width, height):
    """A plain colour that depends on the seed: enough to tell one picture from another."""
    value = (seed * 2654435761) & 0xFFFFFFFF
    return bytes([value & 255, value >> 8 & 255, value >> 16 & 255]) * (width * height)


class Worker:
    def __init__(self, script):
        self.script = script
        self.inbox = queue.Queue()
        self.cancelled = set()
        self.runs = 0

    def say(self, **message):
        os.write(1, (json.dumps(message) + "\n").encode())

    def read(self):
        for line in sys.stdin:
            message = json.loads(line)
            if message["type"] == "cancel":
                self.cancelled.add(message["work"]["run"])
            else:
                self.inbox.put(message)
        os._exit(0)

    def start(self):
        how = self.script.get("hello", "normal")
        if how == "none":
            time.sleep(3600)
        if how == "garbage":
            print("Welcome to some other program", flush=True)
            time.sleep(3600)
        if how == "exit":
            print("scripted: cannot go on", file=sys.stderr, flush=True)
            os._exit(3)
        protocol = 999 if how == "wrong_version" else 1
        self.say(type="hello", protocol=protocol, build="scripted", python="3", pid=os.getpid(), schema_hash="-")
        threading.Thread(target=self.read, daemon=True).start()
        welcome = self.inbox.get()
        if welcome["protocol"] != protocol:
            os._exit(64)
        if self.script.get("deaf_to_sigterm"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(self.script.get("import_ms", 0) / 1000)
        self.say(type="ready", versions={"fake": "scripted", "torch": "none"}, backends=["cpu"], max_inflight=1)
        while True:
            self.answer(self.inbox.get())

    def answer(self, message):
        kind = message["type"]
        if kind == "shutdown":
            self.say(type="bye")
            os._exit(0)
        if kind == "probe_devices":
            self.say(type="devices", re=message["id"], devices=[])
        if kind == "measure":
            results = [{"numerics": n, "step_ms": 10.0 + i} for i, n in enumerate(message["candidates"])]
            self.say(type="measured", re=message["id"], results=results)
        if kind == "load":
            if self.script.get("load") == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.script.get("load") == "fail":
                error = {"code": "model.unreadable", "message": "the scripted worker was told to fail"}
                self.say(type="failed", re=message["id"], error=error)
                return
            time.sleep(self.script.get("load_ms", 0) / 1000)
            self.say(type="loaded", re=message["id"], model=message["model"]["model"], bytes=1, load_ms=1.0)
        if kind == "unload":
            self.say(type="unloaded", re=message["id"], model=message["model"], bytes=1)
        if kind == "run":
            self.run(message)

    def run(self, message):
        s = self.script
        item = message["items"][0]
        work = {"run": message["run"], "job": item["job"], "attempt": item["attempt"]}
        latents = next(step for step in message["steps"] if step["step"] == "make_latents")
        denoise = next(step for step in message["steps"] if step["step"] == "denoise")
        self.say(type="started", work=work)
        if s.get("compile_ms"):
            self.say(type="progress", work=work, phase="compile", step=0, steps=1, step_ms=0.0)
            time.sleep(s["compile_ms"] / 1000)
            self.say(type="progress", work=work, phase="compile", step=1, steps=1, step_ms=float(s["compile_ms"]))
        self.say(type="progress", work=work, phase="encode", step=1, steps=1, step_ms=1.0)
        for step in range(1, denoise["steps"] + 1):
            time.sleep(s.get("step_ms", 1) / 1000)
            if step == s.get("crash_at"):
                print("scripted: crashing now", file=sys.stderr, flush=True)
                os.kill(os.getpid(), s.get("crash_signal", signal.SIGKILL))
            if step == s.get("freeze_at"):
                time.sleep(3600)
            if step == s.get("garbage_at"):
                os.write(1, b"\xff\xfe not a message\n" + b"x" * (2 << 20) + b"\n")
            if message["run"] in self.cancelled and not s.get("deaf_to_cancel"):
                error = {"code": "processing.cancelled", "message": "cancelled between steps"}
                self.say(type="failed", work=work, step=step, error=error)
                if s.get("late_after_cancel"):
                    self.say(type="done", work=work, timings={"encode_ms": 0, "denoise_ms": 0, "decode_ms": 0})
                return
            self.say(type="progress", work=work, phase="denoise", step=step, steps=denoise["steps"], step_ms=1.0)
        if s.get("fail"):
            error = {"code": s["fail"], "message": "the scripted worker was told to fail"}
            self.say(type="failed", work=work, error=error)
            return
        width, height = latents["width"], latents["height"]
        data = pixels(item["seed"], width, height)
        fd = os.open(item["slot"]["path"], os.O_WRONLY)
        os.pwrite(fd, data, 0)
        os.close(fd)
        crc = crc32c(data) ^ (1 if s.get("wrong_crc") else 0)
        self.say(
            type="image", work=work, slot=item["slot"]["slot"], offset=0, bytes=len(data),
            width=width, height=height, channels=3, crc32c=crc,
        )
        timings = {"encode_ms": 1.0, "denoise_ms": float(denoise["steps"]), "decode_ms": 1.0}
        self.say(type="done", work=work, timings=timings)
        if s.get("grows_by_mib"):
            self.runs += 1
            self.say(type="usage", rss_bytes=(100 + self.runs * s["grows_by_mib"]) << 20)


def main():
    args = sys.argv[1:]
    script = json.loads(args[0])
    count_file = args[args.index("--count") + 1]
    parent = int(args[args.index("--parent") + 1]) if "--parent" in args else None
    die_with_parent(parent)
    dump_stacks()
    start = os.path.getsize(count_file) if os.path.exists(count_file) else 0
    with open(count_file, "ab") as file:
        file.write(b".")
    Worker(script[min(start, len(script) - 1)]).start()


main()
