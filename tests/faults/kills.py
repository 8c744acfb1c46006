"""Kills at random moments: `python -m tests.faults.kills JOB N FOLDER`.

One process imports everything and forks a child for each try, so that a kill costs
milliseconds. After every kill the folder is read as a user would, and whatever is found
there must be what an undisturbed run has. When a job ends before its kill it starts
anew in another folder. Prints JSON: kills, finished, and the bytes read as good.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from tests.faults.jobs import JOBS, Job, same


def child(job: Job, folder: Path) -> int:
    """Begin or go on with the job in a process of its own."""
    pid = os.fork()
    if pid:
        return pid
    try:
        job.work(folder)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def ends(pid: int, seconds: float) -> int | None:
    """Exit status, None if it had to be killed at that moment."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code  # it may just have ended


def main(name: str, n: int, root: Path) -> None:
    """Kill until it is enough, then let the last one finish."""
    torch.set_num_threads(1)
    job, draw = JOBS[name], random.Random(0)
    started = time.monotonic()
    assert ends(child(job, root / "whole"), 600) == 0
    seconds = time.monotonic() - started
    truth = job.state(root / "whole")
    assert truth, "the undisturbed run left nothing to read"
    kills, finished, read, round_ = 0, 0, 0, 0
    folder = root / "round-0"
    while kills < n or finished == 0:
        # Mostly early in what is left, so that many kills meet one folder.
        wait = draw.random() ** 2 * seconds if kills < n else 600
        code = ends(child(job, folder), wait)
        assert code in (None, 0), f"after {kills} kills: exit code {code}"
        kills += code is None
        found = job.state(folder)
        wrong = [part for part in found if not same(found[part], truth.get(part))]
        assert not wrong, f"after {kills} kills: {wrong} read as good"
        read += len(found)
        if code == 0:
            assert found.keys() >= {k for k in truth if k in ("whole", "log")}
            finished += 1
            shutil.rmtree(folder)
            round_ += 1
            folder = root / f"round-{round_}"
    print(json.dumps({"kills": kills, "finished": finished, "read": read}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
