"""Killed writers lose nothing acknowledged; `python tests/crash.py` is the whole sweep."""

import subprocess
import sys
from pathlib import Path


def test_killed_writers_leave_a_consistent_space():
    script = Path(__file__).with_name("crash.py")
    command = [sys.executable, script, "--kills", "12", "--seed", "7"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("12 kills, ") and " 0 operations" not in run.stdout
