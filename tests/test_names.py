"""Public names: each resolves, lazily, and `import mechsink` stays light."""

import subprocess
import sys

HEAVY = ("matplotlib", "seaborn", "transformers", "transformer_lens", "pandas", "rich")


def test_every_public_name_resolves() -> None:
    # In a fresh process: other tests import submodules, which would hide a gap.
    code = (
        "import mechsink as ms; assert len(ms.__all__) > 20; "
        "found = [getattr(ms, n) for n in ms.__all__]; "
        "homes = [getattr(o, '__module__', None) or o.__name__ for o in found]; "
        "print({home.split('.')[0] for home in homes})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "{'mechsink'}\n", done.stderr


def test_importing_is_light_and_silent() -> None:
    code = f"import sys, mechsink; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
