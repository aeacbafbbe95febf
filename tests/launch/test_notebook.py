"""The Colab notebook: what it may hold, and every cell run on CPU with small settings."""

import ast
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from spvit_jax.convert import load
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.export.runtimes import run_onnx
from spvit_jax.predict.classify import normalise_of
from spvit_jax.single_path.prices import published_macs
from spvit_jax.single_path.prune import form

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch" / "spvit_colab.ipynb"


def read():
    return nbformat.read(FILE, as_version=4)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_valid_short_and_has_no_outputs():
    notebook = read()
    nbformat.validate(notebook)
    assert len(notebook.cells) < 20
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert cell.source.strip()


def test_no_model_code_stands_in_cells():
    for source in code(read()):
        plain = re.sub(r"^(\s*)!(?:.*\\\n)*.*", r"\1pass", source, flags=re.MULTILINE)
        tree = ast.parse(plain)
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"nnx", "jnp", "optax", "grad", "jit"}, source


def test_every_command_is_followed_by_a_look_at_how_it_ended():
    for source in code(read()):
        commands = len(re.findall(r"^\s*!", source, flags=re.MULTILINE))
        assert source.count("assert _exit_code == 0") == commands, source


def filled(notebook, **values):
    """The notebook with these values in its forms."""
    for cell in notebook.cells:
        for name in list(values):
            form = re.compile(rf"^{name} = .*(  # @param .*)$", re.MULTILINE)
            if form.search(cell.source):
                value = repr(values.pop(name))
                cell.source = form.sub(
                    lambda found, v=value, n=name: f"{n} = {v}{found[1]}", cell.source
                )
    assert not values, f"there is no form for {list(values)}"
    return notebook


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after all of its cells have run, and where it worked."""
    work = tmp_path_factory.mktemp("colab")
    notebook = filled(read(), WORK=str(work), SHARES="0.9, 0.6", SHARE=0.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patch.setenv("PATH", f"{Path(os.sys.executable).parent}:{os.environ['PATH']}")
        where = {"metadata": {"path": str(FILE.parent)}}
        NotebookClient(notebook, timeout=500, resources=where).execute()
    return notebook, work


def shown(notebook, kind):
    """What cells put out of a kind, by their id; what was printed is "text"."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            value = output.get("text") if kind == "text" else output.get("data", {}).get(kind)
            if value:
                found[cell.id] = found.get(cell.id, "") + value
    return found


def test_every_cell_runs_and_shows_what_it_found(executed):
    notebook, work = executed
    words, printed = shown(notebook, "text/plain"), shown(notebook, "text")
    assert "12 files" in printed["gather"]
    assert "dense form" in words["load"] and "deploy form" in words["choose"]
    assert all(f"{share}%" in words["frontier"] for share in (90, 60))
    assert "data:image/png;base64" in shown(notebook, "text/html")["frontier"]
    assert set(shown(notebook, "image/png")) == {"look"}
    assert "small.onnx" in printed["download"] and not (work / "small.onnx.failed").exists()


def test_the_file_is_the_chosen_model_within_its_share(executed):
    _, work = executed
    model = load(work / "small.safetensors")
    assert form(model) == "deploy"
    share = model.architecture.macs(model.spec) / published_macs(model.spec).dense
    assert 0.55 < share <= 0.6
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3)).astype(np.uint8)
    expected = model(normalise_of(model)(pixels))
    preprocess = Preprocess.from_json((work / "small.preprocess.json").read_text())
    outputs = run_onnx(work / "small.onnx", preprocess)(pixels)
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4 * np.abs(expected).max())
