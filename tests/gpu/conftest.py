"""Where the GPU tests run: on CUDA; elsewhere they are left out, or tried on the CPU.

    MECHSINK_TEST_DEVICE=cpu pytest tests/gpu -m gpu

runs their code where there is no GPU; it shows that they work, not that a GPU does.
"""

import os

import pytest
import torch

ASKED = os.environ.get("MECHSINK_TEST_DEVICE")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if ASKED is not None:
        return torch.device(ASKED)
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU (MECHSINK_TEST_DEVICE=cpu tries the code here)")
    return torch.device("cuda", 0)
