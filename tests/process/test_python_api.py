"""Training from Python leaves its process as it was, in the main thread and in another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import runs

STEPS = 2
# Trains in a fresh interpreter: once in the main thread, once in another. Prints what differs afterwards.
PROGRAM = """
import json, os, signal, sys, threading
import torch
import gfgw_prod

def state():
    return {
        "handlers": {number: str(signal.getsignal(number)) for number in signal.valid_signals()},
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "environment": dict(os.environ),
        "hook": str(threading.excepthook),
        "wakeup": signal.set_wakeup_fd(-1),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }

def train(name):
    small = {"model_channels": 8, "channel_mult": [1]}
    config = gfgw_prod.load_config(
        "digits", run={"dir": name}, generator=small, evaluation={"every_kimg": 0}, train={"total_kimg": 0.512}
    )
    results[name] = gfgw_prod.train(config)

torch.set_num_threads(2)
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
signal.signal(signal.SIGUSR1, lambda *_: None)
before, results = state(), {}
train("first")
before["descriptors"] = state()["descriptors"]  # libraries keep some open
train("main")
after_main = state()
thread = threading.Thread(target=train, args=("thread",))
thread.start()
thread.join()
after_thread = state()
left = [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
differs = [key for key in before if not before[key] == after_main[key] == after_thread[key]]
print(json.dumps({"results": results, "differs": differs, "left": left}))
"""


def test_training_in_any_thread_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    done = runs.execute([sys.executable, "-c", PROGRAM], cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "results": {"first": True, "main": True, "thread": True},
        "differs": [],
        "left": [],
    }
    weights = {name: runs.digests(tmp_path / name)[STEPS] for name in ("main", "thread")}
    options = ("--config", "digits", "--generator.model-channels", "8", "--generator.channel-mult", "[1]")
    command = (*runs.GFGW, "train", *options, "--evaluation.every-kimg", "0", "--train.total-kimg", "0.512")
    assert runs.execute((*command, "--run.dir", "command"), cwd=tmp_path).code == 0
    assert set(weights.values()) == {runs.digests(tmp_path / "command")[STEPS]}


STOPPED = """
import os, signal
import gfgw_prod

signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True))
config = gfgw_prod.load_config(
    "digits", run={"dir": "run"}, checkpoint={"every_kimg": 0.128}, evaluation={"every_kimg": 0}
)
print(gfgw_prod.train(config), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_stop_signal_saves_and_returns_to_the_caller(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        cwd=tmp_path,
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("checkpoints/step-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert (process.returncode, printed.split()) == (0, ["False", "mine"])


FAILING = """
import sys, threading
import gfgw_prod

port = int(sys.argv[1])

def train(**changes):
    sections = {
        "run": {"dir": "run"},
        "generator": {"model_channels": 8, "channel_mult": [1]},
        "train": {"total_kimg": 0.128},
        "telemetry": {"prometheus_port": port},
        "checkpoint": {"upload_to": "uploaded"},
        "evaluation": {"every_kimg": 0},
    }
    return gfgw_prod.train(gfgw_prod.load_config("digits", **(sections | changes)))

kept = []  # as a notebook keeps the last error, with all that its frames refer to
for wrong in (
    {"generator": {"model_channels": 8, "channel_mult": [1], "pretrained": "missing.pkl"}},
    {"evaluation": {"every_kimg": 1, "metrics": ["fid"], "inception": "missing.pth"}},
):
    try:
        train(**wrong)
    except gfgw_prod.UserError as error:
        kept.append(error)
uploading = [each for each in threading.enumerate() if each.name == "upload"]
for each in uploading:
    each.join(10)
print(len(kept), any(each.is_alive() for each in uploading), train())
"""


def test_start_that_fails_keeps_neither_directory_nor_port_nor_threads(tmp_path: Path) -> None:
    done = runs.execute([sys.executable, "-c", FAILING, str(runs.free_port())], cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert done.stdout.split() == ["2", "False", "True"]
