import io
import re
import sys

import jax
import numpy as np
import pytest

from spvit_jax import progress
from spvit_jax.progress import Console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_bar(console, steps=4, initial=0, images=0):
    with console.bar(10, initial, "search", images=images) as bar:
        for _ in range(steps):
            bar.show({"loss": np.float32(0.123456)})
            bar.update()
    return bar


def test_stage_is_one_line_with_elapsed_time(capsys):
    Console().stage("search", "469 steps")
    assert re.fullmatch(r"\[00:0\d\] search +469 steps\n", capsys.readouterr().out)


def test_without_terminal_a_bar_is_few_whole_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 3600.0)
    with Console().bar(1000, 0, "search") as bar:
        for step in range(1000):
            bar.show({"loss": step})
            bar.update()
    err = capsys.readouterr().err
    assert "\r" not in err and err.endswith("\n")
    first, last = err.splitlines()
    assert "0/1000" in first and "1000/1000" in last and "loss=999" in last


def test_without_terminal_a_line_comes_after_the_interval(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    with Console().bar(5, 0, "search") as bar:
        for _ in range(3):
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert all(any(f"{n}/5" in line for line in lines) for n in range(4))


def test_on_a_terminal_a_bar_is_redrawn_in_place(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    run_bar(Console())
    assert terminal.getvalue().count("\r") > 1
    assert terminal.getvalue().count("\n") == 1
    assert "loss=0.1235" in terminal.getvalue()


def test_rate_and_eta_count_this_run_only():
    bar = Console(silent=False).bar(10, 6, "search", images=32)
    bar.update(2)
    bar.start_t = bar._time() - 4.0  # two steps in four seconds
    bar._ema_dn = bar._ema_dt = lambda: 0
    line = bar.format_meter(**bar.format_dict)
    bar.close()
    assert "8/10" in line and "16 images/s" in line
    assert "<00:04" in line


def test_rate_without_images_is_in_steps():
    bar = Console().bar(10, 0, "search")
    bar.update(1)
    assert "it/s" in bar.format_dict["speed"]
    bar.close()


def test_silent_prints_nothing(capsys):
    console = Console(silent=True)
    console.stage("search", "text")
    console.say("text")
    assert run_bar(console) is not None
    assert capsys.readouterr() == ("", "")


def test_only_process_0_prints(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    Console().say("text")
    run_bar(Console())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["one line", "two\nlines"])
def test_say_goes_to_stdout_while_a_bar_is_open(capsys, text):
    console = Console()
    with console.bar(10, 0, "search"):
        console.say(text)
    assert capsys.readouterr().out == text + "\n"
