"""``launch/gke.sh``, its manifest and its image, with stand-ins for docker and kubectl."""

import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FLAGS = ("--", "--config.budget.macs=0.7", '--config.model.checkpoint=a "b" \\c.pth')


@pytest.fixture
def gke(shell):
    shell.variables |= {
        "IMAGE": "us-docker.pkg.dev/my-project/images/spvit",
        "TPU": "tpu-v5-lite-podslice",
        "TOPOLOGY": "8x8",
        "WORKDIR": "gs://my-bucket/run",
        "CONFIG": "configs/deit_b.py",
    }
    return shell


def text(gke, name):
    file = Path(gke.variables["CLOUD"], name)
    return file.read_text() if file.exists() else ""


def manifest(gke, *arguments, **variables):
    done = gke.run("gke.sh", "run", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(text(gke, "kubectl.stdin"))


def test_a_run_is_a_job_set_with_a_pod_a_host(gke, head):
    found = manifest(gke, *FLAGS)
    assert text(gke, "kubectl") == "create --filename=-\n"
    assert (found["kind"], found["metadata"]["name"]) == ("JobSet", "spvit")
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 16 and spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == f"us-docker.pkg.dev/my-project/images/spvit:{head}"
    assert container["args"] == [
        "--config=configs/deit_b.py",
        "--workdir=gs://my-bucket/run",
        "--config.budget.macs=0.7",
        '--config.model.checkpoint=a "b" \\c.pth',
    ]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy asks for
    assert pod["terminationGracePeriodSeconds"] == 300
    assert "${" not in text(gke, "kubectl.stdin")


def test_bad_input_ends_it_and_anything_else_starts_it_again(gke):
    spec = manifest(gke)["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    containers = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == containers[0]["name"]
    (end,) = spec["failurePolicy"]["rules"]
    assert (end["action"], end["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert spec["failurePolicy"]["maxRestarts"] == 100


@pytest.mark.parametrize(
    ("variables", "hosts", "operator"),
    [
        ({"TOPOLOGY": "2x4x4", "TPU": "tpu-v4-podslice", "SPOT": "false"}, 8, "NotIn"),
        ({"TOPOLOGY": "2x4", "CHIPS": "8"}, 1, "In"),
        ({"TOPOLOGY": "1x1", "CHIPS": "1", "GRACE": "25"}, 1, "In"),
    ],
)
def test_slices_have_their_hosts_and_nodes(gke, variables, hosts, operator):
    spec = manifest(gke, **variables)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["parallelism"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == variables["TOPOLOGY"]
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (condition,) = affinity["nodeSelectorTerms"][0]["matchExpressions"]
    assert condition == {
        "key": "cloud.google.com/gke-spot",
        "operator": operator,
        "values": ["true"],
    }


def test_the_image_is_built_of_the_commit_and_pushed(gke, head, checkout):
    (checkout / "left_behind.txt").write_text("")
    done = gke.run("gke.sh", "build")
    (checkout / "left_behind.txt").unlink()
    assert done.returncode == 0, done.stderr
    build, push = text(gke, "docker").splitlines()
    image = f"us-docker.pkg.dev/my-project/images/spvit:{head}"
    assert push == f"push {image}"
    assert build == f"build --file=launch/Dockerfile --build-arg=COMMIT={head} --tag={image} -"
    with tarfile.open(Path(gke.variables["CLOUD"], "docker.stdin")) as context:
        names = context.getnames()
    assert "launch/Dockerfile" in names and "left_behind.txt" not in names


def test_a_build_that_fails_is_not_pushed(gke):
    Path(gke.variables["CLOUD"], "docker.fails").touch()
    done = gke.run("gke.sh", "build")
    assert done.returncode == 1 and "the image was not built" in done.stderr
    assert text(gke, "docker").count("push") == 0


def test_a_run_that_is_refused_is_an_error(gke):
    Path(gke.variables["CLOUD"], "kubectl.fails").touch()
    done = gke.run("gke.sh", "run")
    assert done.returncode == 1 and "the run was not started" in done.stderr


def test_what_is_asked_of_a_run_goes_to_its_name(gke):
    for verb in ("logs", "status", "delete"):
        assert gke.run("gke.sh", verb, NAME="mine", NAMESPACE="team").returncode == 0
    calls = text(gke, "kubectl").splitlines()
    assert all("--namespace=team" in call and "mine" in call for call in calls)
    assert [call.split()[0] for call in calls] == ["logs", "get", "get", "delete"]


@pytest.mark.parametrize("verb", ["build", "run", "logs", "status", "delete"])
def test_a_dry_run_prints_the_commands_and_runs_none(gke, verb):
    done = gke.run("gke.sh", verb, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not text(gke, "docker") and not text(gke, "kubectl")
    assert ("| docker build " if verb == "build" else "kubectl ") in done.stdout
    gke.run("gke.sh", verb)
    # What was printed, given to a shell, is what was run.
    notes = ("docker", "kubectl", "kubectl.stdin")
    ran = [text(gke, name) for name in notes]
    for name in notes:
        Path(gke.variables["CLOUD"], name).unlink(missing_ok=True)
    subprocess.run(["bash", "-c", done.stdout], env=gke.variables, check=True, capture_output=True)
    assert [text(gke, name) for name in notes] == ran


@pytest.mark.parametrize(
    ("verb", "variables", "message"),
    [
        ("", {}, "expected build, run, logs, status or delete; got none"),
        ("build", {"IMAGE": None}, "IMAGE is not set"),
        ("build", {"IMAGE": "spvit:latest"}, "IMAGE=spvit:latest is not of the form needed"),
        ("run", {"TPU": "v5e"}, "export TPU=tpu-v5-lite-podslice"),
        ("run", {"TOPOLOGY": "64"}, "TOPOLOGY=64"),
        ("run", {"TOPOLOGY": "3x3"}, "has 9 chips, which hosts of CHIPS=4 cannot divide"),
        ("run", {"WORKDIR": "/tmp/x"}, "export WORKDIR=gs://my-bucket/deit_b"),
        ("run", {"SPOT": "1"}, "SPOT=1"),
        ("run", {"NAME": "a_b"}, "NAME=a_b"),
    ],
)
def test_a_variable_that_cannot_be_is_named(gke, verb, variables, message):
    done = gke.run("gke.sh", *filter(None, [verb]), **variables)
    assert done.returncode == 2 and message in done.stderr
    assert not text(gke, "docker") and not text(gke, "kubectl")


def test_everything_that_the_image_copies_is_there():
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied and all((ROOT / name).exists() for name in copied)
    assert {f"!{name}" for name in copied} <= set(ignored)
