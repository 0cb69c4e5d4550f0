"""The demo model through a node against the bare diffusers loop, in turns, in one run.

Both use the numerics that the node chose on this machine. Steps per second come from the denoise time of each side; the
first picture is timed from outside, over HTTP, from a worker that has just become ready.
Run: python3 bench/demo/run.py
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, Node, finish, summary, worker_python

ROUNDS = 7
STEPS = 20
PROMPT = "a 3d render of a red apple on a blue background"


class Bare:
    """The rival as a process that draws one picture for each line that it is sent."""

    def __init__(self, numerics):
        self.process = subprocess.Popen(
            [
                worker_python(), ROOT / "bench/demo/bare_diffusers.py", ROOT / "models/demo",
                "--prompt", PROMPT, "--steps", str(STEPS), "--guidance", "4",
                "--dtype", numerics["dtype"], "--threads", str(numerics["threads"]),
                "--memory-format", numerics["memory_format"], "--on-demand",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )

    def draw(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)


ours, theirs, pictures, ratios = [], [], [], []
with Node() as node:
    node.wait_ready()
    job, first_s = node.draw(prompt=PROMPT, steps=STEPS, seed=0)
    chosen_once_s = first_s
    _, devices = node.call("GET", "/v1/devices")
    numerics = devices["data"][0]["capabilities"]["numerics"]
with Node() as node:
    # Another node of the same data would know the numerics; here the choice is timed apart, above.
    node.wait_ready()
    node.draw(prompt=PROMPT, steps=STEPS, seed=0)
    bare = Bare(numerics)
    bare.draw()
    for seed in range(ROUNDS):
        job, seconds = node.draw(prompt=PROMPT, steps=STEPS, seed=seed)
        answer = bare.draw()
        ours.append(STEPS / (job["timings"]["denoise_ms"] / 1000))
        theirs.append(len(answer["step_ms"]) / (sum(answer["step_ms"]) / 1000))
        ratios.append(ours[-1] / theirs[-1])
        pictures.append((seconds * 1000, answer["total_ms"]))
    bare.close()

warm = summary([ms / 1000 for ms, _ in pictures])
whole = summary([ours_ms / bare_ms for ours_ms, bare_ms in pictures])
results = {
    "numerics": numerics,
    "steps_per_s": summary(ours),
    "bare_steps_per_s": summary(theirs),
    "ratio": summary(ratios),
    "picture_s": warm,
    "picture_against_bare": whole,
    "first_job_of_a_new_data_folder_s": chosen_once_s,
}
finish("demo", results, {
    "steps per second at least 0.95 of the bare diffusers loop (median)": results["ratio"]["median"] >= 0.95,
    "a picture from a warm worker in at most 4 s at 20 steps (median)": warm["median"] <= 4,
    "a whole picture at most 1.05 of the bare loop's time (median)": whole["median"] <= 1.05,
})
