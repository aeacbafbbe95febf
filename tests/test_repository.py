"""Rules of the repository that a linter does not know."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "spvit_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = (  # what a shell starts, and what reads its flags
    "command_line.py",
    "main.py",
    "plan.py",
    "prepare.py",
    "prices.py",
    "convert/__main__.py",
    "export/__main__.py",
    "measure/__main__.py",
    "predict/__main__.py",
    "data/package.py",
    "checkpoint_options.py",
)
ALONE = "export/spvit_torch.py"  # it is copied next to weights and has but torch: all in one file
MAY_PRINT = (*COMMANDS, "progress.py")
MAY_IMPORT = {  # subpackage: which of ours it may import, besides itself
    "models": {"sizes"},
    "models/transformer.py": {"models", "sizes", "single_path"},  # a model's words, see __repr__
    "single_path": {"models", "remote", "sizes", "state"},
    "data": {"config", "lock", "remote", "sizes"},
    "convert": {"models", "single_path", "remote", "shell", "sizes", "checkpoint_options"},
    "training": {
        "checksums",
        "config",
        "data",
        "hosts",
        "local_copy",
        "models",
        "progress",
        "remote",
        "single_path",
        "state",
    },
    "export": {
        "config",
        "convert",
        "data",
        "models",
        "pretrained",
        "remote",
        "shell",
        "single_path",
        "sizes",
        "text",
        "checkpoint_options",
    },
    "measure": {
        "config",
        "convert",
        "data",
        "drawing",
        "export",
        "models",
        "pretrained",
        "progress",
        "remote",
        "shell",
        "sizes",
        "text",
        "checkpoint_options",
    },
    "planning": {
        "config",
        "convert",
        "data",
        "models",
        "pretrained",
        "progress",
        "single_path",
        "sizes",
        "teachers",
        "text",
        "training",
        "workdir",
    },
    "command_line.py": {"config", "configs", "remote", "shell"},
    "compression.py": {
        "choosing",
        "config",
        "context",
        "convert",
        "curve",
        "data",
        "delivery",
        "judged",
        "models",
        "pipeline",
        "predict",
        "progress",
        "single_path",
        "tradeoff",
        "trained",
        "training",
    },
    "configs": {"config", "recipes"},
    "chart.py": set(),
    "examples.py": {"context", "data", "models", "training"},
    "figures.py": set(),
    "page.py": {"chart", "examples", "markup", "report", "single_path", "trials"},
    "markup.py": {"stylesheet"},
    "curve_page.py": {"curve", "markup"},
    "portions.py": {"config"},
    "config.py": {"sizes", "validate"},
    "validate.py": {"remote", "sizes", "checkpoint_options"},
    "hosts.py": {"remote", "signals"},
    "signals.py": set(),
    "lock.py": {"remote"},
    "local_copy.py": {"remote"},
    "state.py": set(),
    "stylesheet.py": set(),
    "checksums.py": {"remote", "state"},
    "drawing.py": set(),
    "evaluation.py": {"text", "training"},
    "features.py": {"convert"},
    "gate_maps.py": {"drawing", "single_path"},
    "judged.py": {"context", "data", "models", "quality", "training"},
    "recipes.py": {"config"},
    "mosaic.py": set(),
    "pictures.py": {"convert", "data", "mosaic", "remote"},
    "predict": {
        "config",
        "convert",
        "data",
        "features",
        "models",
        "pictures",
        "pretrained",
        "shell",
        "single_path",
        "sizes",
        "checkpoint_options",
        "training",
    },
    "prepare.py": {"data", "progress", "remote", "shell"},
    "pretrained.py": {
        "config",
        "models",
        "single_path",
        "convert",
        "sizes",
        "checkpoint_options",
    },
    "progress.py": set(),
    "quality.py": set(),
    "sizes.py": set(),
    "checkpoint_options.py": {"sizes"},
    "shell.py": {"remote"},
    "remote.py": set(),
    "report.py": {
        "drawing",
        "gate_maps",
        "measure",
        "quality",
        "single_path",
        "state",
        "text",
        "trials",
    },
    "teachers.py": {
        "checkpoint_options",
        "config",
        "convert",
        "models",
        "pretrained",
        "single_path",
        "training",
    },
    "text.py": set(),
    "trials.py": {"text"},
    "workdir.py": {"checksums", "config", "hosts", "lock", "remote", "state"},
}


def names(files):
    return [str(file.relative_to(ROOT)) for file in files]


def tree(file):
    return ast.parse((ROOT / file).read_text())


def inside(file):
    return str((ROOT / file).relative_to(PACKAGE))


def imported(file):
    """Dotted names of all modules a file imports."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: import {node.module} by its full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called(file):
    nodes = ast.walk(tree(file))
    functions = [node.func for node in nodes if isinstance(node, ast.Call)]
    return {function.id for function in functions if isinstance(function, ast.Name)}


def test_there_is_something_to_check():
    assert len(FILES) > 20


@pytest.mark.parametrize("file", names(FILES))
def test_every_module_says_what_it_is(file):
    if Path(file).name != "__init__.py" or (ROOT / file).read_text():
        assert ast.get_docstring(tree(file)), f"{file} needs a docstring"


@pytest.mark.parametrize("file", names(FILES))
def test_files_and_functions_stay_short(file):
    lines = (ROOT / file).read_text().count("\n")
    most = 810 if inside(file) == ALONE else 400
    assert lines <= most, f"{file} has {lines} lines; one noun a file"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            text = node.body[0] if ast.get_docstring(node) else None
            docstring = 0 if text is None else text.end_lineno - text.lineno + 1
            length = node.end_lineno - node.lineno + 1
            assert length <= 80, f"{file}: {node.name} has {length} lines"
            assert length - docstring <= 60, f"{file}: {node.name} has too many lines of code"


@pytest.mark.parametrize("file", names(FILES))
def test_nothing_is_evaluated_and_only_commands_print(file):
    assert not called(file) & {"eval", "exec", "__import__"}
    if inside(file) not in MAY_PRINT:
        assert "print" not in called(file), f"{file} prints; raise, return or log"


@pytest.mark.parametrize("file", names(FILES))
def test_only_commands_read_flags_or_arguments(file):
    if inside(file) not in COMMANDS:
        used = set(imported(file)) | {
            ast.unparse(node) for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute)
        }
        wrong = {"absl.flags", "absl.app", "argparse.ArgumentParser", "sys.argv"}
        assert not used & wrong, f"{file} reads a command line; take an argument instead"


@pytest.mark.parametrize("file", names(FILES))
def test_dependencies_point_one_way(file):
    part = inside(file) if inside(file) in MAY_IMPORT else Path(inside(file)).parts[0]
    if part in MAY_IMPORT:
        ours = {m.split(".")[1] for m in imported(file) if m.startswith("spvit_jax.")}
        allowed = MAY_IMPORT[part] | {part}
        assert ours <= allowed, f"{file} imports {sorted(ours - allowed)}"


def test_models_know_nothing_of_what_is_done_with_them():
    for file in names((PACKAGE / "models").glob("*.py")):
        words = set(re.findall(r"[a-z]+", (ROOT / file).read_text().lower()))
        assert not words & {"gates", "temperature", "supernet"}, file


def test_operations_are_listed_in_one_place():
    elsewhere = [f for f in names(FILES) if "single_path/ops/" not in f and inside(f) != ALONE]
    for file in elsewhere:
        said = {node.value for node in ast.walk(tree(file)) if isinstance(node, ast.Constant)}
        found = said & {"norm_skip", "conv1x1", "conv3x3"}
        assert not found or inside(file) == "config.py", file  # which imports no model


def test_torch_is_needed_for_nothing_but_conversion():
    for file in [name for name in names(FILES) if inside(name) != ALONE]:
        for node in tree(file).body:  # at the top: on every import
            if isinstance(node, ast.Import | ast.ImportFrom):
                found = ast.unparse(node)
                assert "torch" not in found.split() and "tensorflow " not in found, file


def test_what_travels_alone_needs_torch_and_the_standard_library():
    found = {module.partition(".")[0] for module in imported(f"spvit_jax/{ALONE}")}
    assert found - sys.stdlib_module_names == {"torch"}
