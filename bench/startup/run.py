"""From the start of the process to listening, and memory at rest: the orchestrator alone.

Each start has an empty data folder; the floor in the same run is the time to start and end the same binary (`--version`).
Run: python3 bench/startup/run.py
"""

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import BINARY, Node, finish, summary

REPEATS = 10
REST_S = 3


def version_s():
    started = time.monotonic()
    subprocess.run([BINARY, "--version"], check=True, capture_output=True)
    return time.monotonic() - started


floor, listening, answering, rest = [], [], [], []
for round in range(REPEATS):
    floor.append(version_s())
    # No worker: this is about the orchestrator, which must not wait for one.
    with Node("--no-warm-start") as node:
        listening.append(node.listening_s)
        status, _ = node.call("GET", "/livez")
        assert status == 200, status
        answering.append(time.monotonic() - node.started)
        if round < 5:
            time.sleep(REST_S)
            for path in ("/v1/models", "/v1/devices", "/v1/memory", "/v1/jobs"):
                node.call("GET", path)
            rest.append(node.rss_bytes() / 2**20)

results = {
    "process_floor_ms": summary([s * 1000 for s in floor]),
    "listening_ms": summary([s * 1000 for s in listening]),
    "first_answer_ms": summary([s * 1000 for s in answering]),
    "idle_rss_mib": summary(rest),
}
finish("startup", results, {
    "listening in at most 200 ms (median)": results["listening_ms"]["median"] <= 200,
    "first answer in at most 200 ms (median)": results["first_answer_ms"]["median"] <= 200,
    "at most 60 MiB at rest (largest)": results["idle_rss_mib"]["max"] <= 60,
})
