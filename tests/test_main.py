"""What a person at the shell sees: help, mistakes, exit codes. Each case is a process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/quickstart.py:tiny"


def main(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "spvit_jax.main", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_help_says_what_there_is():
    shown = main("--help")
    assert shown.returncode == 0 and not shown.stderr
    for word in ("--config=configs/quickstart.py", "--workdir", "pretrain", "evaluate", ":tiny"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config and --workdir must be given; see --help"),
        ([TINY], "--workdir must be given"),
        (["--workdir=x"], "--config must be given"),
        ([TINY, "--workdri=x"], "'workdri'. Did you mean: workdir"),
        ([TINY, "--workdir=x", "y"], "unexpected argument 'y'"),
        (["--config=configs/nowhere.py", "--workdir=x"], "configs/nowhere.py"),
        (
            ["--config=configs/nowhere.py", "--config.seed=1", "--workdir=x"],
            "configs/nowhere.py",
        ),
        (["--config=configs/quickstart.py:huge", "--workdir=x"], "got 'huge'"),
        ([TINY, "--workdir=x", "--config.search.epoch=1"], "did you mean epochs?"),
        ([TINY, "--workdir=x", "--config.serch.epochs=1"], "did you mean search?"),
        ([TINY, "--workdir=x", "--config.search.epochs.more=1"], "--config.search.epochs.more"),
        ([TINY, "--workdir=x", "--config.search.epochs=many"], "--config.search.epochs=many"),
        ([TINY, "--workdir=x", "--config.search.batch_size=1.5"], "batch_size=1.5"),
        ([TINY, "--workdir=x", "--config.search.schedule=cos"], "search.schedule must be one of"),
        ([TINY, "--workdir=x", "--config.stage=train"], "stage must be one of all, pretrain"),
        ([TINY, "--workdir=x", "--config.budget.macs=0"], "set a budget: budget.macs or"),
        ([TINY, "--workdir=x", "--config.budget.latency=t.json"], "budget.latency is TABLE.json:"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, message):
    shown = main(*arguments)
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: ") and message in shown.stderr
    assert len(shown.stderr.splitlines()) == 1 and not shown.stdout
    assert not (ROOT / "x").exists()


def test_a_space_that_the_model_cannot_have_is_one_message(tmp_path):
    shown = main(TINY, f"--workdir={tmp_path}", "--config.search.axes=('op','width')")
    assert shown.returncode == 2
    message = "error: search.axes must be different ones of op, heads, dims, tokens, ffn; got"
    message += " ('op', 'width')"
    assert shown.stderr.splitlines() == [message]
    assert not shown.stdout and not (tmp_path / "dense.json").exists()


def test_a_workdir_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    shown = main(TINY, f"--workdir={tmp_path / 'file'}")
    assert shown.returncode == 2 and not shown.stdout
    assert shown.stderr.startswith("error: cannot write to --workdir=")
    assert len(shown.stderr.splitlines()) == 1


def test_a_workdir_that_is_not_utf8_is_one_message():
    shown = main(TINY, "--workdir=/tmp/caf\udce9")
    assert shown.returncode == 2 and not shown.stdout
    assert shown.stderr == "error: --workdir=/tmp/caf%DCE9 is not UTF-8; choose another name\n"


def test_a_config_that_a_disk_does_not_give_now_may_be_read_later(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise OSError(116, 'Stale file handle')\n")
    shown = main(f"--config={file}", f"--workdir={tmp_path / 'run'}")
    assert shown.returncode == 75 and not shown.stdout
    assert shown.stderr.startswith("error: --config cannot be read: [Errno 116] Stale file handle")


def test_a_mistake_in_a_config_of_ones_own_shows_where(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("import nothing_of_that_name\n")
    shown = main(f"--config={config}", f"--workdir={tmp_path / 'work'}")
    assert shown.returncode != 0 and f'{config}", line 1' in shown.stderr


def test_evaluate_through_the_shell_with_workers_and_again(tmp_path):
    arguments = (TINY, f"--workdir={tmp_path}", "--config.stage=evaluate")
    first = main(*arguments, "--config.data.workers=1")
    assert first.returncode == 0, first.stderr
    assert "128 images of packaged:fashion_mnist" in first.stdout and "top-1" in first.stdout
    again = main(*arguments)  # with as many workers and devices as there are now
    assert again.returncode == 0 and "nothing is left to do" in again.stdout
    other = main(*arguments, "--config.seed=1")
    assert other.returncode == 2 and "seed: 0, now 1" in other.stderr
