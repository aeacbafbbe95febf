"""What pip installs, what ``import spvit_jax`` shows, and what neither waits for."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import spvit_jax
from spvit_jax import configs, pipeline
from spvit_jax.config import Budget, Config, ConfigError, Data
from spvit_jax.data.errors import DataError
from spvit_jax.data.sources import open_source
from spvit_jax.progress import Console

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements():
    return [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]


def test_requirements_are_the_core_and_what_a_run_of_the_quickstart_takes():
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["tfds"], *extras["reports"]]
    assert sorted(requirements()) == sorted(wanted)


def test_every_command_is_there():
    for name, home in PROJECT["scripts"].items():
        module, _, function = home.partition(":")
        path = ROOT / Path(*module.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        defined = {n.name for n in ast.parse(file.read_text()).body if hasattr(n, "name")}
        assert function in defined, f"{name} = {home}"


def test_the_version_is_one():
    said = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert said[1] == spvit_jax.__version__
    first = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == spvit_jax.__version__
    assert PROJECT["dynamic"] == ["version"]


def test_a_checkout_has_every_config_once():
    for file in sorted(configs.FOLDER.glob("*.py")):
        linked = ROOT / "configs" / file.name
        assert linked.resolve() == file or file.name == "__init__.py", linked
    assert (ROOT / "configs" / "architectures").resolve() == configs.FOLDER / "architectures"
    assert {file.stem for file in (ROOT / "configs").glob("*.py")} == set(configs.names())


def test_a_name_is_the_file_of_it_and_a_path_stays():
    quickstart = str(configs.FOLDER / "quickstart.py")
    assert configs.file_of("quickstart") == quickstart
    assert configs.file_of("quickstart:tiny") == f"{quickstart}:tiny"
    for path in ("configs/deit_b.py", "mine.py:tiny", "/a/b.py", ""):
        assert configs.file_of(path) == path
    with pytest.raises(ConfigError, match=r"'quickstar', only backbone, .*did you mean quickstart"):
        configs.file_of("quickstar:tiny")


def test_help_names_every_config():
    text = (ROOT / "spvit_jax" / "main.py").read_text()
    words = set(re.findall(r"\w+", ast.get_docstring(ast.parse(text))))
    assert set(configs.names()) <= words


def public():
    """Names by what type checkers, ``dir`` and ``from spvit_jax import *`` see."""
    (block,) = (
        node
        for node in ast.parse((ROOT / "spvit_jax" / "__init__.py").read_text()).body
        if isinstance(node, ast.If)
    )
    checked = {alias.name: node.module for node in block.body for alias in node.names}
    return checked, set(dir(spvit_jax)) - {"__version__"}, set(spvit_jax.__all__)


def test_public_names_are_seen_by_all_who_look():
    checked, listed, exported = public()
    assert set(checked) == listed == exported and len(exported) > 30
    for name, module in checked.items():
        home = __import__(module, fromlist=[name])
        found = getattr(spvit_jax, name)
        assert found is getattr(home, name) or name in ("export", "predict"), name
        assert callable(found) or name == "VARIANTS", name
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        spvit_jax.compres  # noqa: B018


def test_import_and_help_do_not_wait_for_jax_nor_the_core_for_extras():
    code = """
import sys
import spvit_jax
dir(spvit_jax), spvit_jax.__version__
import spvit_jax.main, spvit_jax.predict.__main__
assert "jax" not in sys.modules
spvit_jax.compress, spvit_jax.frontier, spvit_jax.fit, spvit_jax.export.export
from spvit_jax import pipeline
late = {"tensorflow_datasets", "matplotlib", "onnx", "onnxruntime", "gcsfs"}
assert not late & set(sys.modules), late & set(sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_what_an_extra_would_bring_is_missed_by_name_and_before_the_first_step(
    monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"tensorflow_datasets: pip install 'spvit_jax\[tfds\]'"):
        open_source(Data(source="tfds:imagenet2012"), "train")
    monkeypatch.setattr(pipeline, "can_draw", lambda: False)
    config = Config(budget=Budget(macs=0.5))
    with pytest.raises(ConfigError, match=r"matplotlib is missing: pip .*\[reports\]'"):
        pipeline.run(config, tmp_path / "run", Console(silent=True), lambda: False)
    assert not (tmp_path / "run").exists()
