"""For all tests: one thread, since tiny models lose by waiting for two."""

import torch

torch.set_num_threads(1)
