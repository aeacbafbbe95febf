"""The README and the pages in docs/: what they name has to exist."""

import importlib.util
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest

from spvit_jax.config import Config, from_config_dict

ROOT = Path(__file__).parents[2]
PAGES = [
    str(file.relative_to(ROOT))
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
]
OURS = ("spvit_jax", "configs", "launch", "tests", "docs", "benchmarks")
READ = (".py", ".sh", ".sbatch")
ABSL = {"--config", "--workdir", "--profile", "--coordinator", "--processes", "--process"}


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def anchor(heading):
    """What GitHub, and MyST as it, make of a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page):
    return {anchor(h) for h in re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)}


def test_the_readme_is_one_page():
    assert read("README.md").count("\n") <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in [link for link in links if not link.startswith("https://")]:
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.is_file(), f"{page}: {link}"
        if heading:
            assert heading in anchors(target.resolve().relative_to(ROOT)), f"{page}: {link}"


def test_every_page_is_reached_from_the_first():
    listed = {"docs/index.md"}
    for folder, page in (
        (ROOT / "docs", "docs/index.md"),
        (ROOT / "docs/api", "docs/api/index.md"),
    ):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", read(page), flags=re.DOTALL):
            names = [line for line in tree.splitlines() if line and line[0] not in ":"]
            listed |= {str((folder / f"{name}.md").relative_to(ROOT)) for name in names}
    assert listed == {page for page in PAGES if page.startswith("docs/")}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    folders = "|".join(OURS)
    for name in re.findall(rf"\b((?:{folders})/[\w./*-]*\w/?)", read(page)):
        assert list(ROOT.glob(name)), f"{page} names {name}"


def commands(page):
    """The lines of its code blocks, and of its prose's code, that start one of our modules."""
    text = read(page).replace("\\\n", " ")
    for start in re.finditer(r"python -m (spvit_jax[\w.]*)([^\n`]*)", text):
        rest = re.split(r"&&|\||>| #", start[2])[0]
        yield start[1], shlex.split(rest.replace("…", "").replace("$HOME", "~"))


@cache
def source(module):
    """The text of what reads a command's flags."""
    spec = importlib.util.find_spec(module)
    assert spec, f"there is no module {module}"
    origin = Path(spec.origin)
    file = origin.with_name("__main__.py") if origin.name == "__init__.py" else origin
    return file.read_text() + (ROOT / "spvit_jax/checkpoint_options.py").read_text()


def flags(arguments):
    return [word.partition("=")[::2] for word in arguments if word.startswith("--")]


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_flags_that_are_shown(page):
    for module, arguments in commands(page):
        for flag, _ in flags(arguments):
            known = flag.startswith("--config.") or flag in ABSL | {"--help"}
            assert known or f'"{flag}"' in source(module) or f"  {flag}=" in source(module), (
                f"{page}: {module} {flag}"
            )


def settings(page):
    """Each ``--config.GROUP.FIELD=value`` and ``GROUP.FIELD=value`` of a page."""
    yield from re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)?)", read(page))
    groups = "|".join(name for name, kind in Config.__annotations__.items() if is_group(kind))
    named = re.findall(rf"`(?:--config\.)?((?:{groups})\.[a-z_]+)[=`]", read(page))
    yield from (
        name for name in named if not name.endswith((".py", ".json", ".png", ".txt", ".html"))
    )


def is_group(kind):
    return hasattr(kind, "__dataclass_fields__")


@pytest.mark.parametrize("page", PAGES)
def test_fields_of_the_configuration_exist(page):
    for setting in settings(page):
        kind = Config
        for name in setting.split("."):
            assert name in kind.__dataclass_fields__, f"{page}: {setting}"
            kind = kind.__dataclass_fields__[name].type


@cache
def made(file, variant):
    spec = importlib.util.spec_from_file_location("config", ROOT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_config_dict(module.get_config(variant))


@pytest.mark.parametrize("page", PAGES)
def test_configs_have_the_variants_that_are_shown(page, tmp_path):
    for file, variant in re.findall(r"\b(configs/\w+\.py)(?::([^\s`]+))?", read(page)):
        folder = "FOLDER" in variant or "HOME" in variant or variant == "VARIANT"
        assert made(file, str(tmp_path) if folder else variant)


def test_the_map_of_the_code_has_every_part():
    """Each module and package of ``spvit_jax`` is named on the page that says how to read it."""
    table = read("docs/code.md").partition("## All files")[2]
    for path in sorted((ROOT / "spvit_jax").iterdir()):
        if path.suffix == ".py" and path.stem != "__init__":
            assert re.search(rf"[`/]{path.stem}\.py`", table), f"docs/code.md lacks {path.name}"
        elif (path / "__init__.py").exists():
            assert f"`spvit_jax/{path.name}/`" in table, f"docs/code.md lacks {path.name}/"


def test_extras_and_scripts_that_are_named_exist():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    for page in PAGES:
        for extras in re.findall(r"pip install (?:-e )?'(?:spvit_jax|\.)\[([\w,]+)\]'", read(page)):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), (
                f"{page}: {extras}"
            )
        for script in re.findall(r"`(spvit(?:-\w+)?)(?=[ `])", read(page)):
            assert script in project["scripts"], f"{page}: {script}"


@cache
def sources():
    """The text of all that reads flags."""
    folders = (ROOT / "spvit_jax", ROOT / "launch", ROOT / "benchmarks")
    files = [file for folder in folders for file in folder.rglob("*.*") if file.suffix in READ]
    return "\n".join(file.read_text() for file in files)


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_prose_belong_to_a_command(page):
    for flag in re.findall(r"`(--[a-z][\w-]*)", prose(page)):
        assert flag.startswith("--config") or flag in sources(), f"{page}: {flag}"


def test_the_readmes_python_is_the_example_that_is_tested():
    blocks = re.findall(r"^```python\n(.*?)^```$", read("README.md"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "spvit" in block)
    example = read("docs/examples/five_lines.py")
    assert block.strip() == re.sub(r'^""".*?"""', "", example, flags=re.DOTALL).strip()


def test_examples_are_shown_and_tested():
    shown = set(re.findall(r"\{literalinclude\} examples/(\w+)\.py", "".join(map(read, PAGES))))
    assert shown == {file.stem for file in ROOT.glob("docs/examples/*.py")}
