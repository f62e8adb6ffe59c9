"""Rooms and habits, held by tests: imports go one way, importing costs and changes nothing, docstrings are there."""

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
# From the top to the bottom: a module imports only from modules below it.
ORDER = [
    "__main__", "cli", "grid", "ex_post", "svi", "training", "averaging", "settings", "progress", "runs", "report",
    "plotting",
    "evaluation", "saving", "models.semisupervised", "models.hierarchical", "models.vae",
    "models.sequential", "models.transitions", "models.very_deep", "models.blocks", "models.base", "sampling", "temperature",
    "objectives.labels", "objectives.elbo", "objectives.bounds", "objectives.divergences", "objectives.base", "importance",
    "diagnostics", "divergence", "whole_step", "gradients", "replay", "adam", "recording", "lowering", "layouts",
    "arithmetic", "products", "machine", "capture", "pair", "reach", "priors", "guides", "refinement", "networks.conditions",
    "networks.images", "networks.dense", "networks.base", "layers",
    "likelihoods.tables", "likelihoods.levels", "likelihoods.counts", "likelihoods.continuous", "likelihoods.base",
    "distributions.images", "distributions.rows", "distributions.discretized", "distributions.programs",
    "distributions.sequences", "distributions.hamiltonian", "distributions.mixtures", "distributions.flows",
    "distributions.sphere", "distributions.codes",
    "component", "data", "pictures", "readers", "streams", "examples", "files", "checks",
]  # fmt: skip


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


def test_every_module_has_its_place():
    assert sorted(modules()) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_down(name):
    below = ORDER[ORDER.index(name) + 1 :]
    for other in imported(modules()[name]):
        parts = [room for room in ORDER if room.startswith(f"{other}.")]  # of a package, which brings all of them
        for room in parts or [other]:
            assert room in below, f"{name} imports {other}, which is not below it"


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


@pytest.mark.parametrize("name", [n for n in ORDER if n != "__main__"])
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


@pytest.mark.parametrize("name", ORDER)
def test_rooms_and_functions_stay_small(name):
    tree = ast.parse(modules()[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 65, f"{name}.{node.name} has {length} lines"
