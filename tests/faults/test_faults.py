"""Kills, full disks, two processes on one folder: in interpreters of their own.

A process that has trained can't be forked and train again (torch's autograd), so the
tests' own is not the one that forks.
"""

import json
import subprocess
import sys

import pytest

from tests.faults.jobs import JOBS

KILLS = 25  # of each job: 100 in all
OFTEN = [
    name
    if name in ("training", "sweep")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in JOBS
]


def run(script, *args):
    command = [sys.executable, "-m", f"tests.faults.{script}", *map(str, args)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_work_ends_as_if_undisturbed(name, tmp_path):
    said = json.loads(run("kills", name, KILLS, tmp_path).splitlines()[-1])
    assert said["kills"] >= KILLS and said["finished"] >= 1 and said["read"] > 0
    print(name, said)


@pytest.mark.matrix
@pytest.mark.parametrize("name", OFTEN)
def test_a_full_disk_is_told_and_nothing_is_lost(name, tmp_path):
    run("full_disk", name, tmp_path)


@pytest.mark.matrix
@pytest.mark.parametrize("name", OFTEN)
def test_a_second_process_is_refused(name, tmp_path):
    run("two_processes", name, tmp_path)
