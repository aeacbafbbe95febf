"""What tests of launch/ share: scripts run beside stand-ins for the programs they call."""

import dataclasses
import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"


@dataclasses.dataclass
class Shell:
    """Runs scripts of a checkout with given variables, and nothing else that they look at."""

    root: Path
    variables: dict[str, str]

    def run(self, script, *arguments, timeout=60, **variables):
        """The finished process; a variable of None is not set."""
        return subprocess.run(
            ["bash", str(self.root / "launch" / script), *arguments],
            env={k: v for k, v in (self.variables | variables).items() if v is not None},
            cwd=self.variables["HOME"],
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A repository with this one's launch/ and configs/, one commit, and what it was pushed to."""
    folder = tmp_path_factory.mktemp("checkout")
    work, origin = folder / "work", folder / "origin"

    def git(*arguments, cwd=work):
        subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True)

    work.mkdir()
    git("init", "--quiet", "--initial-branch=main")
    for name in ("launch", "configs"):
        subprocess.run(["cp", "-rL", ROOT / name, work / name], check=True)
    git("add", "--all")
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    git(*settings, "commit", "--quiet", "--message=x")
    subprocess.run(["git", "clone", "--quiet", "--bare", work, origin], check=True)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=origin)
    git("remote", "add", "origin", "https://example.com/owner/repository")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    return work


@pytest.fixture
def shell(checkout, tmp_path):
    """A ``Shell`` with the stand-ins first in PATH."""
    home = tmp_path / "home"
    home.mkdir()
    origin = f"file://{checkout.parent / 'origin'}"
    return Shell(
        checkout,
        {
            "PATH": f"{STAND_INS}:{os.environ['PATH']}",
            "HOME": str(home),
            "CLOUD": str(tmp_path),
            # git fetches what is at example.com from the bare repository
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{origin}.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://example.com/owner/repository",
            "GIT_CONFIG_NOSYSTEM": "1",
        },
    )


@pytest.fixture
def until():
    """``until(condition)`` waits for something true and returns it."""

    def wait(condition, seconds=30):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)
        return found

    return wait


@pytest.fixture(scope="session")
def head(checkout):
    """The commit of ``checkout``."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True).stdout.strip()
