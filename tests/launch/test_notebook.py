"""The Colab notebook: what it may hold, and every cell run on CPU with small settings."""

import ast
import os
import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from spvit_jax.convert import load
from spvit_jax.report import Result
from spvit_jax.single_path.prune import form

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch" / "spvit_colab.ipynb"
BACKENDS = "import jax; assert not jax._src.xla_bridge._backends, 'the kernel took a device'"


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
    small = "--config.measure_seconds=0.2 --config.search.batch_size=32"
    small += " --config.finetune.batch_size=32"
    notebook = filled(
        read(),
        QUICKSTART="configs/quickstart.py:tiny",
        WORK=str(work),
        TARGET_RATIO=0.6,
        SEARCH_EPOCHS=0.1,
        FINETUNE_EPOCHS=0.1,
        OPTIONS=small,
    )
    notebook.cells.append(nbformat.v4.new_code_cell(BACKENDS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patch.setenv("PATH", f"{Path(os.sys.executable).parent}:{os.environ['PATH']}")
        where = {"metadata": {"path": str(FILE.parent)}}
        NotebookClient(notebook, timeout=500, resources=where).execute()
    return notebook, work


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_every_cell_runs(executed):
    notebook, work = executed
    assert (work / "quickstart" / "result.json").exists()
    assert pictures(notebook) == 5  # two reports, two trade-offs, what the model sees
    text = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "JAX" in text and "top-1" in text and "Error" not in text
    assert "0.01666 GMACs as published, to become 0.009995" in text


def test_the_users_own_model_is_pruned_to_the_ratio_that_was_asked_for(executed):
    _, work = executed
    model = load(str(work / "own" / "pruned.safetensors"))
    assert form(model) == "deploy" and len(model.architecture.ops) == len(model.blocks)
    result = Result.from_json((work / "own" / "result.json").read_text())
    (budget,) = result.budgets
    assert budget.target == round(0.6 * result.dense_published_macs)
    assert result.pruned_macs == budget.found <= budget.target
    assert (work / "own" / "pruned.pth").exists() == bool(find_spec("torch"))
