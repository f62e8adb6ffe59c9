"""The README runs and is complete: every Python block, the two commands' form, the table of components."""

from __future__ import annotations

import re
import shlex
import types
from pathlib import Path

import pytest

from pyro_vae.cli.parsing import with_inline_config
from pyro_vae.cli.train import train_parser
from pyro_vae.models import ComposedPair
from tests.component_table import GUIDES, LIKELIHOODS, NETWORKS, OBJECTIVES, PRIORS, leaves

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/models.md",
    "docs/hooks.md",
    "docs/tables.md",
    "docs/likelihood.md",
    "docs/evaluation.md",
)


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), flags=re.S)


@pytest.mark.parametrize(("name", "number"), [(n, i) for n in PAGES for i in range(len(blocks(n, "python")))])
def test_every_python_block_runs(name, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("block")
    if name == "docs/tables.md" and number:  # which tells of one file, made in its first block
        exec(blocks(name, "python")[0], {})
    exec(compile(blocks(name, "python")[number], f"{name} block {number}", "exec"), module.__dict__)


def test_the_fifteen_lines_are_fifteen():
    lines = [line for line in blocks("README.md", "python")[0].splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 15


def test_the_table_lists_exactly_the_public_components():
    lines = (ROOT / "README.md").read_text().splitlines()
    kinds = {
        "priors": PRIORS,
        "likelihoods": LIKELIHOODS,
        "guides": GUIDES,
        "networks": NETWORKS,
        "objectives": OBJECTIVES,
    }
    for kind, classes in kinds.items():
        row = next(line for line in lines if line.startswith(f"| {kind} |"))
        named = re.findall(r"`(\w+)`", row)
        assert sorted(named) == sorted(c.__name__ for c in classes), kind


def test_all_models_have_a_row():
    named = set(re.findall(r"(?m)^\| `(\w+)", (ROOT / "docs/models.md").read_text()))
    classes = {c.__name__ for c in leaves(ComposedPair)}
    assert named == classes


@pytest.mark.parametrize("page", PAGES)
def test_files_named_are_there(page):
    text = (ROOT / page).read_text()
    for path in re.findall(r"(?:docs|examples|pyro_vae)/[\w./]*\w", text):
        assert (ROOT / path).exists(), path


def test_the_commands_options_exist(monkeypatch):
    """Each `pyro-vae` line of the README is parsed by its command's own parser."""
    lines = [
        line for block in blocks("README.md", "sh") for line in block.splitlines() if line.startswith("pyro-vae train")
    ]
    assert lines
    monkeypatch.chdir(ROOT)
    for line in lines:
        train_parser().parse_args(with_inline_config(shlex.split(line)[2:]))


def test_two_commands_of_one_line_each():
    commands = [block.strip() for block in blocks("README.md", "sh")[:2]]
    assert all(len(command.splitlines()) == 1 for command in commands)
    assert commands[0].endswith("pyro-vae train")
    assert "pytest" in commands[1]
