"""Killed writers lose no acknowledged write; `python -m support.crash` is the whole sweep."""

import os
import subprocess
import sys


def test_killed_writers_leave_a_consistent_space():
    command = [sys.executable, "-m", "support.crash", "--kills", "12", "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("12 kills, ") and " 0 operations" not in run.stdout
