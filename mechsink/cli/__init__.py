"""The command line: `mechsink VERB`.

Every verb that measures writes a folder (tables as CSV, meta.json, figures, a page, and
run.toml, which repeats the run) and prints the path of the page last, or with --json
one object that says it all. A mistake of the caller ends in one clear paragraph on
stderr; exits.py lists the exit codes, verbs.py says how a verb is made.
May import: all rooms; imports them inside the verbs, so that help is quick.
"""

from mechsink.cli import toys, models, behaviours, experiments  # noqa: F401, I001
from mechsink.cli import replay  # noqa: F401
from mechsink.cli.app import app


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="mechsink")
