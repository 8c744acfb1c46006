"""Progress bars: on a terminal, in a Jupyter kernel, and nowhere else."""

import io

import pytest

from mechsink.progress import bar, waiting
from tests.kernel import run_cells
from toy_tasks import watched
from toy_tasks.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work() -> None:
    with waiting("thinking"), bar("work [/] {x}", 3) as step:
        for _ in range(3):
            step()
    with progress_bar(5, 2, None) as advance:
        for number in range(3, 6):
            advance(number, [{"step": number, "loss": 0.25}])


def test_where_nobody_watches_nothing_is_said(capsys):
    work()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_terminal_is_told_rate_and_time_left(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    work()
    text = terminal.getvalue()
    assert "thinking" in text and "work [/] {x}" in text
    assert "3/3" in text and "/s" in text and "0:00:00" in text
    assert "5/5" in text and "steps/s, loss 0.250" in text


BARS = """
import time
from mechsink.progress import bar, waiting
from toy_tasks import watched
from toy_tasks.progress import progress_bar

watched.LATER, watched.EVERY = 0.1, 0.05
with bar("work", 4) as step:
    for _ in range(4):
        time.sleep(0.1)
        step()
with progress_bar(3, 0, None) as advance:
    for number in range(1, 4):
        time.sleep(0.1)
        advance(number, [{"step": number, "loss": 0.25}])
with bar("over before it is seen", 1) as step:
    step()
with waiting("thinking"):
    pass
"""
HIDDEN = "import sys\nsys.modules['ipywidgets'] = None\n"


@pytest.mark.matrix
@pytest.mark.parametrize("before", ["", HIDDEN], ids=["as installed", "no widgets"])
def test_a_kernel_shows_the_same_bars(before):
    (outputs,) = run_cells(before + BARS)
    assert [output.output_type for output in outputs] == ["display_data"] * 3
    for output in outputs:
        assert output.metadata["mechsink"] == watched.MARK["mechsink"]
    work, training, thought = (output["data"] for output in outputs)
    assert "work" in work["text/plain"] and "4/4" in work["text/plain"]
    assert "/s" in work["text/plain"] and "0:00:00" in work["text/plain"]
    assert "work" in work["text/html"] and "<script" not in work["text/html"]
    assert "3/3" in training["text/plain"] and "loss 0.250" in training["text/plain"]
    assert thought["text/plain"] == ""  # it is over


@pytest.mark.matrix
def test_a_kernel_shows_a_bar_that_stopped_half_way():
    code = BARS.split("with progress_bar")[0].replace(
        "step()", "step(); raise KeyError"
    )
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="KeyError"):
        run_cells(code)


def test_a_bar_inside_another_is_not_drawn(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with bar("outer", 2) as outer:
        for _ in range(2):
            with bar("inner", 3) as step:
                step(3)
            outer()
    with bar("next", 1) as step:
        step()
    text = terminal.getvalue()
    assert "outer" in text and "next" in text and "inner" not in text
