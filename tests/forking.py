"""A server that imports TensorFlow once and forks a process for each command, which saves each of them six seconds."""

import json
import os
import signal
import subprocess
import sys
import time

from conftest import ROOT, SMALL_BACKBONE

# What a server imports for trainings and predictions, with a backbone of four layers and eager checkpoints.
TRAINER = (
    """
import keras, tensorflow, sklearn.linear_model, sklearn.model_selection, matplotlib.pyplot, optuna, tiffslide
from cancernet.inference import predict, prediction, results
from cancernet.reporting import illustration, montages, report
from cancernet.training import ensembles
from cancernet.workflow import cross_validate, train
"""
    + SMALL_BACKBONE
)
SERVE = """
import json, os, sys
from cancernet import __main__
from cancernet.cli import run_command
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "process" in job:
        found, status = os.waitpid(job["process"], os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if found else "", flush=True)
        continue
    process = os.fork()
    if process:
        print(process, flush=True)
        continue
    said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["cancernet", *job["command"]]
    exec(job["code"])
    try:
        run_command(__main__.main)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code or 0)  # without the second that TensorFlow takes to end
"""


class ForkServer:
    """Runs commands, each in a process of its own, after the imports of `code`; files of its own are in `folder`."""

    def __init__(self, code, folder, **variables):
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)} | variables
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        command = [sys.executable, "-u", "-c", code + SERVE]
        self.folder, self.started = folder, 0
        self.process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def start(self, command, *, code=""):
        """Start a command, after `code` has run in its process."""
        self.started += 1
        said = self.folder / f"said_{self.process.pid}_{self.started}"
        return Forked(self, int(self.ask(command=[*map(str, command)], said=str(said), code=code)), said)

    def end(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # with what a test that failed has left
        self.process.wait()


class Forked:
    """A process of a ForkServer, to be used as one of `subprocess`."""

    def __init__(self, server, pid, said):
        self.server, self.pid, self.said, self.returncode = server, pid, said, None

    def poll(self):
        if self.returncode is None:
            status = self.server.ask(process=self.pid)
            self.returncode = int(status) if status else None
        return self.returncode

    def read(self):
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def finish(self, timeout=600):
        """Wait until it ends; return its status and what it printed."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return self.returncode, self.read()

    def kill(self, number=signal.SIGKILL):
        if self.poll() is None:
            os.kill(self.pid, number)
