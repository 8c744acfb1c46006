"""A disk that fills up: `python -m tests.faults.full_disk JOB FOLDER`.

One clear error, nothing half-written, and with room again it goes on.

The system's limit on the size of a file stands in for the disk: writes beyond it fail
as they do on a full one, at whatever byte it comes.
"""

import os
import resource
import sys
from pathlib import Path

import torch

from tests.faults.jobs import JOBS, same
from tests.faults.kills import ends

LIMITS = {"training": 20_000, "sweep": 600, "spread": 3_000, "experiment": 20_000}


def with_room(job, folder, room):
    """Exit status and last words of the job, where files may have `room` bytes."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if room is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            job.work(folder)
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    code = ends(pid, 300)
    with os.fdopen(read) as said:
        return code, said.read()


def main(name: str, root: Path) -> None:
    """Too little room, then enough."""
    torch.set_num_threads(1)
    job = JOBS[name]
    assert with_room(job, root / "whole", None)[0] == 0
    truth = job.state(root / "whole")
    code, said = with_room(job, root / "full", LIMITS[name])
    assert code == 1
    assert "disk with room" in said, said
    found = job.state(root / "full")
    assert all(same(found[part], truth.get(part)) for part in found)
    left = [p.name for p in (root / "full").rglob(".*tmp*")]
    assert not left
    code, said = with_room(job, root / "full", None)
    assert code == 0, said
    found = job.state(root / "full")
    assert found.keys() == truth.keys()
    assert all(same(found[part], truth[part]) for part in found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
