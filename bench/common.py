"""What every benchmark needs: a node in a folder of its own, the machine's facts, a results file. Standard library only."""

import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = Path(os.environ.get("ATELIER_BINARY", ROOT / "target/debug/atelier"))
ENVS = Path(os.environ.get("ATELIER_ENVS", ROOT / "target/envs"))


class Node:
    """A serving node with an empty data folder; ends with the `with` block."""

    def __init__(self, *args, data=None, **env):
        self.args, self.env = args, env
        self.folder = None if data else tempfile.TemporaryDirectory(prefix="atelier-bench-")
        self.data = Path(data or self.folder.name)

    def __enter__(self):
        env = {**os.environ, "ATELIER_DATA": str(self.data), "ATELIER_ENVS": str(ENVS), "ATELIER_WORKER_SPARE": "off", **self.env}
        self.log = open(self.data / "bench.log", "wb")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [BINARY, "serve", "--listen", "127.0.0.1:0", "--json", *self.args],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )
        line = self.process.stdout.readline()
        self.listening_s = time.monotonic() - self.started
        if not line:
            raise SystemExit(f"the node did not start:\n{(self.data / 'bench.log').read_text()}")
        self.address = json.loads(line)["address"]
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()
        if self.folder:
            self.folder.cleanup()

    def call(self, method, path, body=None, headers=None):
        """One request on a new connection: (status, decoded body)."""
        connection = http.client.HTTPConnection(self.address, timeout=600)
        headers = {"Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text else None

    def draw(self, **fields):
        """Submits a job and waits for its end; returns the job and the seconds that it took from outside."""
        body = {"kind": "text_to_image", **fields}
        started = time.monotonic()
        _, job = self.call("POST", "/v1/jobs", body, {"Prefer": "wait=600"})
        seconds = time.monotonic() - started
        if job.get("state") != "succeeded":
            raise SystemExit(f"the job did not succeed: {json.dumps(job, indent=1)[:2000]}")
        return job, seconds

    def wait_ready(self, limit_s=600):
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            status, _ = self.call("GET", "/readyz")
            if status == 200:
                return
            time.sleep(0.05)
        raise SystemExit("the worker did not become ready")

    def rss_bytes(self):
        return proc_rss(self.process.pid)


def proc_rss(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no VmRSS of {pid}")


def worker_python():
    """The interpreter that the workers use, from `atelier worker info`."""
    env = {**os.environ, "ATELIER_ENVS": str(ENVS)}
    info = subprocess.run([BINARY, "worker", "info", "--json"], env=env, check=True, capture_output=True, text=True)
    return json.loads(info.stdout)["python"]


def machine():
    cpu = next(
        (l.split(":", 1)[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("model name")),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "profile": "release" if "release" in BINARY.parts else "dev",
    }


def summary(values):
    values = sorted(values)
    return {"min": values[0], "median": statistics.median(values), "max": values[-1], "n": len(values)}


def commit():
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip() or None


def finish(name, results, bars):
    """Prints and records; exits with 1 when a bar is not held. `bars`: text → bool."""
    record = {
        "benchmark": name,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "results": results,
        "bars": bars,
    }
    folder = ROOT / "bench/results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    for bar, held in bars.items():
        print(("held      " if held else "NOT HELD  ") + bar)
    print(f"recorded in {path.relative_to(ROOT)}")
    sys.exit(0 if all(bars.values()) else 1)
