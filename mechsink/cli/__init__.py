"""The command line: `mechsink VERB`.

Every verb that measures writes a folder (tables as CSV, meta.json, figures, one
report.html; README.md of an experiment) and prints the path of that page last. A
mistake of the caller ends in one clear paragraph on stderr and exit code 2, a failure
in exit code 1.
May import: all rooms; imports them inside the verbs, so that help is quick.
"""

from mechsink.cli import toys, models, behaviours, experiments  # noqa: F401, I001
from mechsink.cli.app import app


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="mechsink")
