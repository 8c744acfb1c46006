"""Commands in README.md and docs/ exist, and so do their options."""

import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mechsink.cli import app
from tests.docs.pages import PAGES, ROOT, SHELL, blocks, inline_code, name_of

VERBS: Any = typer.main.get_command(app)
WAYS = (" make ", " mechsink ", " pip ", " python ", " pytest ")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Where each command line stands, and its words."""
    for page in PAGES:
        for block in blocks(page):
            if block.language in SHELL:
                for number, line in enumerate(block.code.splitlines()):
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                    words = words[: words.index("|")] if "|" in words else words
                    if words:
                        yield f"{name_of(page)}:{block.line + number}", words
        for line, code in inline_code(page):
            if f" {code} ".startswith(WAYS) and " " in code:
                yield f"{name_of(page)}:{line}", shlex.split(code)


COMMANDS = list(commands())


def after_flags(words: list[str]) -> list[str]:
    """From the verb on: what stands before it are flags of the command itself."""
    known = {flag for p in VERBS.params for flag in p.opts} | {"--help"}
    while words and words[0].startswith("-"):
        assert words[0] in known, f"no flag {words[0]}"
        words = words[1:]
    return words


def of(name: str) -> list[tuple[str, list[str]]]:
    return [(where, words) for where, words in COMMANDS if words[0] == name]


def test_mechsink_takes_every_line_that_is_shown() -> None:
    shown = of("mechsink")
    assert len(shown) > 15
    for where, words in shown:
        if {"VERB", "NAME"} & set(words):  # stand for any
            continue
        command, rest = VERBS, words[1:]
        while hasattr(command, "commands") and (rest := after_flags(rest)):
            assert rest[0] in command.commands, f"{where}: no verb {rest[0]}"
            command = command.commands[rest.pop(0)]
        if "--help" in rest or "-h" in rest or (not rest and command.params):
            continue  # help, or the verb alone, as text names it
        try:
            command.make_context(command.name, list(rest))
        except Exception as error:
            pytest.fail(f"{where}: {shlex.join(words)}: {error}")


def test_make_has_every_target_that_is_shown() -> None:
    made = (ROOT / "Makefile").read_text()
    for where, words in of("make"):
        assert f"\n{words[1]}:" in made, f"{where}: make {words[1]}"


def test_pip_installs_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())
    known = extras["project"]["optional-dependencies"]
    for where, words in of("pip"):
        for word in words[2:]:
            if word.startswith(("mechsink[", ".[")):
                for extra in word[word.index("[") + 1 : -1].split(","):
                    assert extra in known, f"{where}: no extra {extra}"


def test_scripts_and_tests_that_are_named_exist() -> None:
    for where, words in (*of("python"), *of("pytest")):
        for word in words[1:]:
            if word.endswith(".py") or word.startswith("tests/"):
                assert (ROOT / word).exists(), f"{where}: {word}"
        if words[1:2] == ["-m"] and words[0] == "python":
            module = ROOT.joinpath(*words[2].split("."))
            assert module.with_suffix(".py").exists() or Path(module).is_dir(), where
