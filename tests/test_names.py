"""Public names: each resolves, lazily, and `import mechsink` stays light."""

import subprocess
import sys

import mechsink as ms

HEAVY = ("matplotlib", "seaborn", "transformers", "transformer_lens", "pandas", "rich")


def test_every_public_name_resolves() -> None:
    assert len(ms.__all__) > 20
    for name in ms.__all__:
        value = getattr(ms, name)
        home = getattr(value, "__module__", None) or value.__name__
        assert home.startswith("mechsink."), name


def test_importing_is_light_and_silent() -> None:
    code = f"import sys, mechsink; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
