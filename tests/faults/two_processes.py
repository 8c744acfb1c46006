"""Two processes on one folder: `python -m tests.faults.two_processes JOB FOLDER`.

The second is told so and changes nothing.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from tests.faults.full_disk import with_room
from tests.faults.jobs import JOBS, same
from tests.faults.kills import child, ends

BEGUN = ("run/config.json", "sweep/sweep.json", "spread/work.json", "out/.new-*")
"""What each job writes once it holds its folder."""


def main(name: str, root: Path) -> None:
    """One process stopped at work, another one beside it."""
    torch.set_num_threads(1)
    job, folder = JOBS[name], root / "shared"
    first = child(job, folder)
    try:
        until = time.monotonic() + 60
        while not any(any(folder.glob(name)) for name in BEGUN):
            assert time.monotonic() < until, "the first never began"
        os.kill(first, signal.SIGSTOP)  # at work, as long as it takes
        code, said = with_room(job, folder, None)
        assert code == 1
        assert "another process is at work in" in said, said
    finally:
        os.kill(first, signal.SIGCONT)
    assert ends(first, 300) == 0
    assert with_room(job, root / "alone", None)[0] == 0
    truth, found = job.state(root / "alone"), job.state(folder)
    assert found.keys() == truth.keys()
    assert all(same(found[part], truth[part]) for part in found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
