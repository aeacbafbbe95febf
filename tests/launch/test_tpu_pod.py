"""``launch/tpu_pod.sh`` and its worker's side, on pods of two workers that are folders here."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

STARTING = "WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE"
FLAGS = ("--", "--config.budget.macs=0.7", "--config.model.checkpoint=it's here.pth")


class Pod:
    """The script with all it needs, and what is left behind."""

    def __init__(self, shell, cloud):
        self.shell, self.cloud, self.state = shell, cloud, cloud / "state"
        key = Path(shell.variables["HOME"], ".ssh", "google_compute_engine")
        key.parent.mkdir()
        key.write_text("key")
        shell.variables |= {
            "PROJECT": "my-project",
            "ZONE": "us-west4-a",
            "ACCELERATOR": "v5litepod-8",
            "WORKDIR": "gs://my-bucket/run",
            "CONFIG": "configs/quickstart.py:tiny",
            "STATE": str(self.state),
            "POLL": "0",
            "GRACE": "10",
            "RESTARTS": "2",
            "PAUSE": "0",
        }
        (cloud / "states").write_text(STARTING)
        (cloud / "workers").write_text("2")

    def __call__(self, verb, *arguments, code=0, **variables):
        done = self.shell.run("tpu_pod.sh", verb, *arguments, **variables)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def workers(self):
        return sorted((self.cloud / "pods" / "spvit").glob("worker*/spvit/spvit"))

    def text(self, name):
        file = self.cloud / name
        return file.read_text() if file.exists() else ""

    def started(self):
        """What was run on which worker, in order of workers."""
        return sorted(self.text("runs").splitlines())

    def watching(self):
        return self.text("state/watch.pid").strip()

    @contextlib.contextmanager
    def unseen(self):
        """What happens inside happens at once, to whoever watches."""
        watching = ["-f", f"{self.shell.root}/launch/tpu_pod.sh watch"]
        subprocess.run(["pkill", "-STOP", *watching], check=True)
        yield
        subprocess.run(["pkill", "-CONT", *watching], check=True)

    def kill(self, number=signal.SIGKILL):
        """Signals every process of every worker, as one that is switched off."""
        for pid in self.cloud.rglob("spvit/spvit/pid"):
            subprocess.run(["pkill", f"-{number}", "-s", pid.read_text().strip()], check=False)


@pytest.fixture
def pod(shell, tmp_path):
    made = Pod(shell, tmp_path)
    yield made
    if made.watching():
        subprocess.run(["pkill", "-KILL", "-f", f"{made.shell.root}/launch/tpu_pod.sh watch"])
    made.kill()


def test_a_pod_from_queue_to_end(pod, until, head):
    said = pod("create")
    assert re.findall(r"spvit is (\w+)", said) == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]
    said = pod("setup")
    assert said.splitlines() == [f"worker {n}: ready {head}" for n in (0, 1)]
    for worker in pod.workers():
        assert (worker / "uv_calls").read_text().count("pip install --quiet --python") == 1
    pod("setup")  # nothing is left to do
    assert (pod.workers()[0] / "uv_calls").read_text().count("pip") == 1

    said = pod("run", *FLAGS)
    assert "worker 0: started" in said and "worker 1: started" in said
    until(lambda: len(pod.started()) == 2)
    given = "--config=configs/quickstart.py:tiny --workdir=gs://my-bucket/run"
    given += " --config.budget.macs=0.7 --config.model.checkpoint=it's here.pth"
    assert pod.started() == [f"worker{n} run {head} -m spvit_jax.main {given}" for n in (0, 1)]
    assert "already keeps spvit running" in pod("run", *FLAGS, code=2)
    places = {str(worker / "cache") for worker in pod.workers()}
    assert set(pod.text("caches").splitlines()) == places  # and not the home's

    os.kill(int(pod.watching()), signal.SIGHUP)  # the shell it came from is closed
    said = pod("status")
    assert f"worker 1: status=running code=- commit={head[:12]} last=step 1" in said
    assert f"watcher: process {pod.watching()}" in said
    logs = subprocess.Popen(
        ["bash", str(pod.shell.root / "launch" / "tpu_pod.sh"), "logs", "--worker=1"],
        env=pod.shell.variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert logs.stdout.readline().endswith("| step 1\n")

    said = pod("stop")
    assert "worker 0: stopped with exit code 143" in said and not pod.watching()
    assert logs.communicate(timeout=20)[0].count("saved") == 1  # it ends with the run
    assert pod.text("state/exit_code") == "143\n"
    assert "watcher: ended with exit code 143" in pod("status")
    assert "not running" in pod("stop")

    assert "deleted spvit" in pod("delete", "--yes")
    assert not pod.workers() and "spvit is not there" in pod("delete", "--yes")
    kept = [file for file in Path(pod.shell.variables["HOME"]).rglob("*") if file.is_file()]
    assert [(file.name, file.read_text()) for file in kept] == [("google_compute_engine", "key")]
    assert not list(pod.state.glob("replies*"))


def test_a_preempted_pod_is_got_again_and_the_run_goes_on(pod, until):
    for verb in ("create", "setup", "run"):
        pod(verb)
    until(lambda: len(pod.started()) == 2)
    with pod.unseen():
        pod.kill()
        (pod.cloud / "pods" / "spvit" / "states").write_text("SUSPENDED")
    again = "gets spvit again"  # a watcher that had just asked starts them where they were, first
    until(lambda: "started on all workers" in pod.text("state/watch.log").partition(again)[2])
    started = pod.started()
    assert len(started) in (4, 6) and started[:2] == [started[0]] * 2  # the same command
    assert (pod.cloud / "deleted0").exists()
    (pod.cloud / "end").write_text("0")
    until(lambda: pod.text("state/exit_code") == "0\n")
    assert "finished; delete gives the pod back" in pod.text("state/watch.log")
    assert pod.started() == started


def test_machines_that_vanish_from_an_active_pod_are_got_again(pod, until):
    for verb in ("create", "setup", "run"):
        pod(verb)
    until(lambda: len(pod.started()) == 2)
    with pod.unseen():
        pod.kill()
        (pod.cloud / "pods" / "spvit" / "gone").touch()
    until(lambda: "its VMs are gone: PREEMPTED" in pod.text("state/watch.log"))
    until(lambda: len(pod.started()) in (4, 6))


def test_a_worker_that_was_replaced_is_set_up_and_joins_the_others(pod, until):
    for verb in ("create", "setup", "run"):
        pod(verb)
    until(lambda: len(pod.started()) == 2)
    worker = pod.workers()[1]
    session = (worker / "pid").read_text().strip()
    subprocess.run(["pkill", "-KILL", "-s", session], check=True)
    subprocess.run(["rm", "-rf", str(worker / "code"), str(worker / "venv")], check=True)
    for file in worker.iterdir():
        if file.is_file():
            file.unlink()
    until(lambda: len(pod.started()) == 3)
    assert [line.split()[0] for line in pod.started()] == ["worker0", "worker1", "worker1"]


def test_a_crash_is_restarted_and_given_up_after_so_many(pod, until):
    for verb in ("create", "setup", "run"):
        pod(verb)
    until(lambda: len(pod.started()) == 2)
    (pod.cloud / "end").write_text("worker1 1")
    until(lambda: pod.text("state/exit_code") == "1\n")
    runs = [line.split()[0] for line in pod.started()]
    assert runs == ["worker0"] + ["worker1"] * 3
    log = (pod.workers()[1] / "run.log").read_text()
    assert "exit code 1; restart 2 of 2" in log and "gives up after 2 restarts" in log
    assert "exit code 1 on a worker" in pod.text("state/watch.log")
    until(lambda: "saved" in (pod.workers()[0] / "run.log").read_text())  # the other was stopped


def test_a_saved_and_stopped_run_is_started_again_where_nobody_asked_for_the_stop(pod, until):
    for verb in ("create", "setup", "run"):
        pod(verb)
    until(lambda: len(pod.started()) == 2)
    (pod.cloud / "end").write_text("143")  # as after the notice of a preemption that did not come
    until(lambda: len(pod.started()) >= 4)


def test_bad_input_is_not_tried_again(pod, until):
    for verb in ("create", "setup", "run"):
        pod(verb)
    until(lambda: len(pod.started()) == 2)
    (pod.cloud / "end").write_text("worker0 2")
    until(lambda: pod.text("state/exit_code") == "2\n")
    assert len(pod.started()) == 2
    assert "worker 0: status=exited code=2" in pod("status")


def test_a_watcher_that_died_is_replaced_by_run(pod, until):
    for verb in ("create", "setup", "run"):
        pod(verb)
    os.kill(int(pod.watching()), signal.SIGKILL)
    said = pod("run")
    assert "running since before" in said
    until(lambda: len(pod.started()) == 2)
    assert "another run is going on here" in pod(
        "run", code=1, CONFIG="configs/deit_b.py", STATE=str(pod.cloud / "other")
    )


def test_another_commit_waits_until_the_run_has_ended(pod, until, checkout, head):
    for verb in ("create", "setup", "run"):
        pod(verb)
    until(lambda: len(pod.started()) == 2)
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", *settings, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "y"]
    made = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    other = made.stdout.strip()
    origin = checkout.parent / "origin"
    command = ["git", "push", "--quiet", str(origin), f"{other}:refs/heads/other"]
    subprocess.run(command, cwd=checkout, check=True)
    assert "another commit is running here; stop it first" in pod("setup", code=1, COMMIT=other)
    pod("stop")
    assert f"ready {other}" in pod("setup", COMMIT=other)
    assert f"commit {head} is not set up here (found {other})" in pod("run", code=1)


def test_a_worker_without_packages_is_an_error_of_setup(pod):
    pod("create")
    (pod.cloud / "no_packages").touch()
    assert "not every worker is set up" in pod("setup", code=1)
    assert "is not set up here" in pod("run", code=1)


def test_a_pod_that_fails_or_is_not_there_is_an_error(pod):
    assert "spvit is ABSENT, not ACTIVE; create it first" in pod("run", code=1)
    (pod.cloud / "states").write_text("FAILED")
    assert "will not become ACTIVE" in pod("create", code=1)


def test_nothing_is_deleted_unless_it_is_confirmed(pod):
    pod("create")
    assert "nobody answered" in pod("delete", code=2)
    assert (pod.cloud / "pods" / "spvit").exists()


@pytest.mark.parametrize("verb", ["create", "setup", "run", "logs", "status", "stop", "delete"])
def test_a_dry_run_prints_the_commands_and_runs_none(pod, verb, head):
    flags = FLAGS if verb == "run" else ()
    lines = pod(verb, "--dry-run", *flags).splitlines()
    assert not (pod.cloud / "calls").exists() and not pod.state.exists()
    commands = [line for line in lines if line.startswith(("gcloud ", "nohup ", "kill "))]
    where = "spvit --project=my-project --zone=us-west4-a"
    last = {
        "create": f"gcloud compute tpus queued-resources create {where} --node-id=spvit"
        " --accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --spot --quiet",
        "delete": f"gcloud compute tpus queued-resources delete {where} --force --quiet",
    }
    if verb in last:
        assert last[verb] in commands
    if verb == "run":
        start = f"tpu_worker.sh start {head} --config=configs/quickstart.py:tiny"
        assert start in commands[1] and "--worker=all" in commands[1]
        assert commands[2].startswith("nohup bash ") and "tpu_pod.sh watch -- --con" in commands[2]
    if verb == "setup":
        assert f"fetch --quiet --depth 1 https://example.com/owner/repository {head}" in commands[0]
    for command in commands:  # as a shell reads it, it is what would be run
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_the_printed_command_is_the_one_that_is_run(pod):
    pod("create")
    printed = [
        line for line in pod("setup", "--dry-run").splitlines() if line.startswith("gcloud ")
    ]
    pod("setup")
    (call,) = [line for line in pod.text("calls").splitlines() if "tpu-vm ssh" in line]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s ' {printed[0].removeprefix('gcloud ')}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    replies = re.compile(r"replies\.\d+")
    assert replies.sub("", call).split() == replies.sub("", words).split()


@pytest.mark.parametrize(
    ("verb", "variables", "message"),
    [
        ("", {}, "expected create, setup, run, logs, status, stop or delete; got none"),
        ("crate", {}, "got crate"),
        ("create", {"PROJECT": None}, "PROJECT is not set; write for example: export PROJECT="),
        ("create", {"ZONE": "us-west4"}, "ZONE=us-west4 is not of the form needed"),
        ("create", {"ACCELERATOR": "v5e-64"}, "export ACCELERATOR=v5litepod-64"),
        ("create", {"SPOT": "yes"}, "SPOT=yes"),
        ("create", {"NAME": "My_Pod"}, "NAME=My_Pod"),
        (
            "setup",
            {"SSH_KEY": "/nowhere"},
            "there is no ssh key at /nowhere, and this script makes",
        ),
        ("setup", {"COMMIT": "main~9"}, "COMMIT=main~9 is not of the form needed"),
        ("setup", {"REPOSITORY": "https://me:secret@example.com/a/b"}, "keys and passwords"),
        ("run", {"WORKDIR": "/home/me"}, "export WORKDIR=gs://my-bucket/deit_b"),
        ("run", {"CONFIG": "configs/nowhere.py"}, "has no file configs/nowhere.py"),
        ("run", {"CONFIG": None}, "CONFIG is not set"),
        ("run", {"POLL": "1m"}, "POLL=1m"),
    ],
)
def test_a_variable_that_cannot_be_is_named(pod, verb, variables, message):
    said = pod(*filter(None, [verb]), code=2, **variables) if verb else pod("--dry-run", code=2)
    assert said.startswith("error: ") and message in said
    assert not (pod.cloud / "calls").exists()


@pytest.mark.parametrize("name", ["RESTARTS", "PAUSE", "STEADY", "GRACE"])
@pytest.mark.parametrize("value", ["08", "99999999999999999999", "-1", "1m"])
def test_a_number_that_bash_misreads_is_refused_by_a_worker(shell, name, value):
    done = shell.run("tpu_worker.sh", "stop", value if name == "GRACE" else "5", **{name: value})
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {name}={value} is not of the form needed; write for")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--", "search.epochs=3"), "after -- come flags of spvit_jax.main"),
        (("run", "--", "--workdir=gs://a"), "set it with export CONFIG=... or WORKDIR=..."),
        (("run", "--config.search.epochs=3"), "flags of spvit_jax.main come after --"),
        (("logs", "--worker=two"), "a worker's number"),
        (("create", "setup"), "one verb at a time; got create and setup"),
    ],
)
def test_arguments_that_cannot_be_are_explained(pod, arguments, message):
    assert message in pod(*arguments, code=2)


def test_code_that_workers_could_not_fetch_is_refused(pod, checkout):
    file = checkout / "configs" / "quickstart.py"
    text = file.read_text()
    file.write_text(text + "\n")
    try:
        said = pod("setup", "--dry-run", code=2)
    finally:
        file.write_text(text)
    assert "this checkout has changes that are in no commit" in said


def test_help_says_every_variable(pod):
    said = pod("--help")
    for name in ("NAME", "ACCELERATOR", "SPOT", "WORKDIR", "CONFIG", "STATE", "GRACE", "RESTARTS"):
        assert re.search(rf"^  {name}\s", said, re.MULTILINE), name


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((0, 0), ""), ((0, 1), "1"), ((134, 2), "2"), ((2, 134), "2"), ((134, 1), "134")],
)
def test_bad_input_on_one_worker_explains_what_the_others_died_of(pod, codes, expected):
    lines = [f"worker {n}: status=exited code={code} commit=0" for n, code in enumerate(codes)]
    found = subprocess.run(
        ["bash", "-c", f"source {pod.shell.root}/launch/tpu_watch.sh; ended"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == expected and (found.returncode == 0) == bool(expected)
