"""The examples run offline; at full length they are run by .ci/run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_vae(tmp_path):
    out = run(str(EXAMPLES / "vae.py"), "--epochs", "2", "--out", "run", folder=tmp_path)
    assert "nats per datum (360 data, 500 samples" in out
    assert (tmp_path / "run" / "figures" / "samples.png").exists()


@pytest.mark.slow
def test_custom_pair(tmp_path):
    out = run(str(EXAMPLES / "custom_pair.py"), "--epochs", "2", folder=tmp_path)
    assert "(100, 8, 20)" in out
    assert "latent" in out


@pytest.mark.slow
def test_swap(tmp_path):
    out = run(str(EXAMPLES / "swap.py"), "--epochs", "1", "--samples", "5", folder=tmp_path)
    assert len(out.splitlines()) == 4
    assert out.count("±") == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "printed", "pictures"),
    [
        ("conditional", ["--samples", "5"], "log p(rest | quadrant)", ["classes", "quadrants"]),
        ("hierarchical", ["--samples", "5"], "KL by level: z_0", ["levels"]),
        ("semisupervised", [], "misread", ["styles"]),
        ("sequences", ["--samples", "5"], "nats per row", ["forecasts"]),
        ("very_deep", ["--depths", "1", "3"], "bits/dim", ["levels"]),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_models(script, options, printed, pictures, tmp_path):
    out = run(str(EXAMPLES / f"{script}.py"), "--epochs", "1", "--out", "run", *options, folder=tmp_path)
    assert printed in out
    for picture in pictures:
        assert (tmp_path / "run" / f"{picture}.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.py")), ids=lambda p: p.stem)
def test_each_explains_itself(script, tmp_path):
    assert "usage" in run(str(script), "--help", folder=tmp_path)
