"""Every measurement with a model on a device that is not the CPU.

    python -m tests.gpu.audit BACKEND

prints one JSON object: measurement to what went wrong, "" for nothing. In a process of
its own, for the fake device (fake_device.py) stays registered with torch.
"""

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mechsink as ms
from mechsink.experiments.emergence.measures import in_view
from mechsink.models.toy import ToyModel
from tests.gpu.fake_device import fake_device
from tests.gpu.measurements import EDITED, MEASUREMENTS, RUNS
from tests.models.families import tiny
from toy_tasks import PRESETS, BigramBackcopy, Sums, ToyConfig, ToyTransformer, train
from toy_tasks.operators.catalogue import OPERATORS

ROOT = Path(__file__).parents[2]
BACKENDS = (
    "transformer_lens",
    "nnsight",
    "toy",
    "two transformer_lens",
    "two nnsight",
    "training",
)
"""What is measured on the fake device; "two": layers spread over two of them."""
REFUSED = {
    "toy": ("losses of a stream", "losses of windows"),
    "nnsight": ("attribution: relp",),
}
"""What a backend can't do on any device."""


def model_on(backend: str, device: Any) -> Any:
    if backend == "toy":
        sizes = {"d_vocab": 80, "n_layers": 3, "d_model": 32, "d_head": 8, "n_heads": 4}
        return ToyModel(ToyTransformer(ToyConfig(**sizes)).eval().to(device), name="m")
    own = tiny("llama")
    if backend.startswith("two") and device != "cpu":
        spread(own)
    else:
        own.to(device)
    return ms.load_model(own, backend=backend.removeprefix("two "), name="m")


def spread(model: Any) -> None:
    """Layers on two devices, as transformers' device_map would put them."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    class Placed(AlignDevicesHook):
        def init_hook(self, module: Any) -> Any:
            return module  # its weights lie there: ours can't be put anew

    first, second = torch.device("fake", 0), torch.device("fake", 1)
    where = {"model.embed_tokens": first, "model.rotary_emb": first}
    where |= {f"model.layers.{n}": (first, second, second)[n] for n in range(3)}
    where |= {"model.norm": second, "lm_head": second}
    for name, device in where.items():
        model.get_submodule(name).to(device)
    for name, module in model.named_modules():
        at = [d for part, d in where.items() if f"{name}.".startswith(f"{part}.")]
        if name == "" or at:
            hook = Placed(
                execution_device=at[0] if at else first,
                io_same_device=name == "",
                skip_keys="past_key_values",
            )
            add_hook_to_module(module, hook)


def audit(backend: str) -> Iterator[tuple[str, str]]:
    """Each measurement on the CPU, on the fake device, and the two compared."""
    here = model_on(backend, "cpu")
    with fake_device() as device:
        there = model_on(backend, device)
    for name, measure in (MEASUREMENTS | RUNS | EDITED).items():
        if name in REFUSED.get(backend.removeprefix("two "), ()):
            continue
        want = measure(here)
        yield name, tried(lambda measure=measure: measure(there), want)


def audit_training() -> Iterator[tuple[str, str]]:
    """Toys: training, going on, and every attention operator forward and back."""
    preset = replace(PRESETS["bb-cpu"], steps=6, batch=4, checkpoints=(3, 6), warmup=0)
    sums = replace(PRESETS["sums-planted-small"], steps=4, checkpoints=(2, 4), warmup=0)
    runs = {"bigrams": (BigramBackcopy.from_text(), preset), "sums": (Sums(5), sums)}
    for name, (task, steps) in runs.items():
        with tempfile.TemporaryDirectory() as folder:

            def run(task: Any = task, steps: Any = steps, at: str = folder) -> None:
                seen = []
                if isinstance(task, BigramBackcopy):
                    seen = [ms.FormationRecorder(task.sample(2, 17, 1), task=task)]
                for _ in range(2):  # the second finds it done
                    run = train(
                        task, steps, Path(at) / "run", device="fake", callbacks=seen
                    )
                assert run.model().W_E.device.type == "cpu"
                assert not seen or len(seen[0].result().table)

            yield f"train {name}", tried(run)

            def swapped(task: Any = task) -> Any:
                sizes = {"n_layers": 1, "d_model": 32, "d_head": 8, "n_heads": 4}
                toy = ToyTransformer(ToyConfig(d_vocab=task.d_vocab, **sizes)).eval()
                model = ToyModel(toy.to("fake"))
                text = task.sample(2, 17, 1)
                everything = torch.ones(2, 17, dtype=torch.bool)
                in_view(model, text, everything, 4)
                return ms.swap_effects(model, task, text)

            if isinstance(task, BigramBackcopy):
                yield "swap effects", tried(swapped)
    for name, operator in OPERATORS.items():

        def forward(operator: Any = operator) -> None:
            config = ToyConfig(
                d_vocab=40, n_layers=2, d_model=32, d_head=8, n_heads=4, n_ctx=16,
                operators=(operator, operator),
            )  # fmt: skip
            toy = ToyTransformer(config).to("fake")
            toy(torch.arange(12, device="fake")[None]).square().mean().backward()

        yield f"operator {name}", tried(forward)


def tried(call: Callable[[], Any], want: Any = None) -> str:
    """What is wrong with a call on the fake device, "" for nothing."""
    try:
        with fake_device():
            got = call()
    except Exception as error:
        lines = traceback.extract_tb(error.__traceback__)
        ours = [x for x in lines if x.filename.startswith(str(ROOT))]
        ours = [
            x for x in ours if ".venv" not in x.filename and "/tests/" not in x.filename
        ]
        at = " < ".join(f"{Path(x.filename).name}:{x.lineno}" for x in ours[:-4:-1])
        return f"{type(error).__name__} at {at}: {str(error).splitlines()[0][:200]}"
    a, b = (getattr(result, "table", None) for result in (got, want))
    if not isinstance(a, pd.DataFrame) or not isinstance(b, pd.DataFrame):
        return ""
    numbers = b.select_dtypes("number").columns
    if list(a.columns) != list(b.columns) or len(a) != len(b):
        return "another table than on the CPU"
    x, y = (torch.tensor(t[numbers].to_numpy(dtype=float)) for t in (a, b))
    close = torch.isclose(x, y, rtol=1e-3, atol=1e-4, equal_nan=True)
    return "" if close.all() else f"{int((~close).sum())} other numbers than on the CPU"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = audit_training() if sys.argv[1] == "training" else audit(sys.argv[1])
    print(json.dumps(dict(found)), flush=True)
    os._exit(0)  # autograd's thread for the fake device does not end by itself
