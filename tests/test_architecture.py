"""Layers and habits, held by tests: imports go down, importing is cheap and changes nothing, docstrings are there."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vae

PACKAGE = Path(pyro_vae.__file__).parent
# From the top to the bottom: a module imports from its own layer and from the layers below.
LAYERS = {
    "cli": ("cli", "__main__"),
    "training": ("training",),
    "runs": ("runs",),
    "report": ("report",),
    "models": ("models",),
    "objectives": ("objectives",),
    "inference": ("inference",),
    "data": ("data",),
    "engine": ("svi", "engine"),
    "components": ("priors", "guides", "likelihoods", "networks", "distributions", "pair", "component", "errors"),
}  # fmt: skip
# Imports that go up, each until it is moved.
UPWARD: set[tuple[str, str]] = set()


def modules() -> dict[str, Path]:
    return {
        str(path.relative_to(PACKAGE).with_suffix("")).replace("/", "."): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_vae"):
            inner = node.module.removeprefix("pyro_vae").strip(".")
            names |= {inner} if inner else {alias.name for alias in node.names}
    return names


def layer_of(module: str) -> int:
    """The place of a module's layer, 0 at the top; former names count where they are now."""
    room = pyro_vae._FORMER.get(module, module).split(".")[0]
    return next(place for place, rooms in enumerate(LAYERS.values()) if room in rooms)


MODULES = sorted(modules())


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    for other in imported(modules()[name]):
        allowed = layer_of(other) >= layer_of(name) or (name, other) in UPWARD
        assert allowed, f"{name} imports {other}, which lies in a layer above"


def test_root_holds_at_most_twenty_names():
    engine = set(LAYERS["engine"]) - {"svi"}
    names = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__" and path.stem not in engine]
    assert len(names) <= 20, sorted(names)


def test_importing_pulls_in_nothing_heavy():
    code = (
        "import sys, pyro, pyro_vae\n"
        "from pyro_vae import VAE, Pair, fit, log_likelihood, save, load, generate, priors\n"
        "heavy = {'torchvision', 'matplotlib', 'accelerate', 'jsonargparse', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_flips_no_global_switch():
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "import pyro, torch, random\n"
        "from tests.conftest import switches\n"
        "before, state = switches(), torch.get_rng_state().tolist()\n"
        "import importlib, pkgutil, pyro_vae\n"
        "for module in pkgutil.walk_packages(pyro_vae.__path__, 'pyro_vae.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "assert switches() == before\n"
        "assert torch.get_rng_state().tolist() == state"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_public_names_are_there_and_documented():
    for name in pyro_vae.__all__:
        thing = getattr(pyro_vae, name)
        assert inspect.getdoc(thing), name
    with pytest.raises(AttributeError):
        pyro_vae.no_such_name  # noqa: B018
    assert set(dir(pyro_vae)) == set(pyro_vae.__all__)


@pytest.mark.parametrize("name", [n for n in MODULES if n != "__main__"])
def test_public_functions_are_annotated_and_documented(name):
    module = importlib.import_module(f"pyro_vae.{name}")
    assert module.__doc__
    for label, thing in vars(module).items():
        if label.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            assert thing.__doc__, f"{name}.{label}"
        elif inspect.isfunction(thing):
            assert thing.__doc__, f"{name}.{label}"
            for parameter in inspect.signature(thing).parameters.values():
                assert parameter.annotation is not parameter.empty, f"{name}.{label}({parameter.name})"


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_small(name):
    text = modules()[name].read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 40, f"{name}.{node.name} has {length} lines"


def test_names_for_type_checkers_are_the_names_that_are_imported():
    """`pyro_vae/__init__.py` lists its names for type checkers and for the import at first use."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    listed = {alias.name: node.module for node in block.body for alias in node.names}
    homes = {name: f"pyro_vae.{home}" for name, home in pyro_vae._HOMES.items()}
    assert listed == homes | dict.fromkeys(pyro_vae._ROOMS, "pyro_vae")
