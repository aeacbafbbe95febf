"""``launch/slurm.sbatch`` as SLURM runs it, with a stand-in for srun and scontrol."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
FLAGS = ("--", "--config.seed=3", "--config.model.checkpoint=it's here.pth")
SCRIPT = "slurm.sbatch"


@pytest.fixture
def job(shell, tmp_path):
    """A ``Shell`` inside of a job of one process, which is a stand-in as well."""
    shell.variables |= {
        "CONFIG": "configs/quickstart.py:tiny",
        "WORKDIR": str(tmp_path / "work"),
        "PYTHON": str(STAND_INS / "python"),
        "CHECKOUT": str(shell.root),
        "SLURM_JOB_ID": "77",
    }
    return shell


def requeued(job):
    file = Path(job.variables["CLOUD"], "scontrol")
    return file.read_text() if file.exists() else ""


def end(job, code):
    Path(job.variables["CLOUD"], "end").write_text(str(code))


def test_a_finished_run_ends_the_job(job, head):
    end(job, 0)
    done = job.run(SCRIPT, *FLAGS)
    assert done.returncode == 0, done.stderr
    runs = Path(job.variables["CLOUD"], "runs").read_text()
    given = f"--config=configs/quickstart.py:tiny --workdir={job.variables['WORKDIR']}"
    given += " --config.seed=3 --config.model.checkpoint=it's here.pth"
    assert runs == f"worker0 run {head} -m spvit_jax.main {given}\n" and not requeued(job)


@pytest.mark.parametrize(
    ("code", "variables", "again"),
    [
        (143, {}, True),
        (143, {"SLURM_RESTART_COUNT": "99"}, True),  # stopped and saved: as often as it takes
        (1, {}, True),
        (134, {"SLURM_RESTART_COUNT": "19"}, True),
        (134, {"SLURM_RESTART_COUNT": "20"}, False),
        (1, {"SLURM_RESTART_COUNT": "1", "RESTARTS": "1"}, False),
        (2, {}, False),
    ],
)
def test_what_is_not_over_goes_back_into_the_queue(job, code, variables, again):
    end(job, code)
    done = job.run(SCRIPT, **variables)
    assert requeued(job) == ("requeue 77\n" if again else "")
    assert done.returncode == (0 if again else code)


@pytest.mark.parametrize("told", ["processes", "script"])
def test_time_that_is_up_saves_and_requeues_and_a_cancelled_job_only_saves(job, until, told):
    process = subprocess.Popen(
        ["bash", str(job.root / "launch" / SCRIPT)],
        env=job.variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: Path(job.variables["CLOUD"], "runs").exists())
    if told == "script":
        process.send_signal(signal.SIGTERM)
    subprocess.run(["pkill", "-TERM", "-P", str(process.pid)], check=True)  # srun
    said = process.communicate(timeout=30)[0]
    assert "saved" in said
    assert requeued(job) == ("requeue 77\n" if told == "processes" else "")
    assert process.returncode == (0 if told == "processes" else 143)


def test_a_dry_run_prints_the_command_and_runs_none(job):
    done = job.run(SCRIPT, "--dry-run", *FLAGS, SLURM_JOB_ID=None)
    assert done.returncode == 0, done.stderr
    assert not Path(job.variables["CLOUD"], "srun").exists()
    end(job, 0)
    job.run(SCRIPT, *FLAGS)
    called = Path(job.variables["CLOUD"], "srun").read_text().split()
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s ' {done.stdout.removeprefix('srun ')}"],
        capture_output=True,
        text=True,
    )
    assert printed.stdout.split() == called


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CONFIG": None}, "CONFIG is not set; write for example: export CONFIG="),
        ({"CONFIG": "configs/nowhere.py"}, "there is no file configs/nowhere.py"),
        ({"WORKDIR": "runs/a"}, "export WORKDIR=/shared/runs/deit_b"),
        ({"PYTHON": "/nowhere/python"}, "there is no Python at /nowhere/python"),
        ({"PYTHON": None}, "/.venv/bin/python; write: export PYTHON="),
        ({"COMMIT": "0" * 40}, f"not at COMMIT={'0' * 40}"),
        ({"CHECKOUT": "/nowhere"}, "there is no checkout in /nowhere"),
        ({"RESTARTS": "many"}, "RESTARTS=many"),
        ({"RESTARTS": "08"}, "RESTARTS=08"),  # octal, to a shell
        ({"RESTARTS": "9" * 20}, "RESTARTS=9999"),
        ({"SLURM_JOB_ID": None}, "this is a job's script: sbatch launch/slurm.sbatch"),
    ],
)
def test_a_variable_that_cannot_be_is_named(job, variables, message):
    done = job.run(SCRIPT, **variables)
    assert done.returncode == 2 and message in done.stderr
    assert not Path(job.variables["CLOUD"], "srun").exists()


def test_what_sbatch_reads_stands_before_any_command():
    lines = (ROOT / "launch" / SCRIPT).read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(options)] == options
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@300"} <= set(options)


def test_processes_find_each_other_under_slurm(job, tmp_path):
    """The real program, as two processes that only SLURM's variables tell of each other."""
    job.root = ROOT
    done = job.run(
        SCRIPT,
        "--",
        "--config.stage=evaluate",
        timeout=300,
        PYTHON=sys.executable,
        CHECKOUT=str(ROOT),
        TASKS="2",
        JAX_PLATFORMS="cpu",
        JAX_COMPILATION_CACHE_DIR=os.environ["JAX_COMPILATION_CACHE_DIR"],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1 and not requeued(job)
    versions = json.loads((tmp_path / "work" / "versions.json").read_text())
    assert versions["processes"] == 2
