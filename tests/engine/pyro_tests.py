"""Runs Pyro's own tests under Pyro's SVI or ours, and writes the outcome of each.

    python tests/engine/pyro_tests.py CHECKOUT pyro|auto|graph|inductor|eager OUTCOMES.json tests/infer/test_inference.py ...

The arguments after the file are pytest's. Tests come from the checkout, Pyro itself is the installed one. Each test
starts from a seed of its own, so that a test of random numbers has the same outcome in each run.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pytest

# Files of Pyro's tests in which an SVI takes steps, themselves or by the code that they test. Left out: examples, which
# run in subprocesses, the funsor back end, benchmarks. SHORT takes a minute a run on one idle core.
SHORT = [
    "tests/contrib/easyguide/test_easyguide.py",
    "tests/nn/test_module.py",
    "tests/optim/test_optim.py",
]
FULL = [
    *SHORT,
    "tests/contrib/cevae/test_cevae.py",
    "tests/contrib/epidemiology/test_models.py",
    "tests/contrib/forecast/test_forecaster.py",
    "tests/contrib/mue/test_models.py",
    "tests/contrib/oed/test_linear_models_eig.py",
    "tests/contrib/test_minipyro.py",
    "tests/contrib/test_zuko.py",
    "tests/contrib/tracking/test_em.py",
    "tests/distributions/test_nanmasked.py",
    "tests/distributions/test_relaxed_straight_through.py",
    "tests/distributions/test_sine_bivariate_von_mises.py",
    "tests/distributions/test_sine_skewed.py",
    "tests/distributions/test_stable_log_prob.py",
    "tests/infer/autoguide",
    "tests/infer/reparam",
    "tests/infer/test_abstract_infer.py",
    "tests/infer/test_autoguide.py",
    "tests/infer/test_elbo_mapdata.py",
    "tests/infer/test_enum.py",
    "tests/infer/test_gradient.py",
    "tests/infer/test_inference.py",
    "tests/infer/test_jit.py",
    "tests/infer/test_predictive.py",
    "tests/infer/test_valid_models.py",
    "tests/integration_tests/test_conjugate_gaussian_models.py",
    "tests/integration_tests/test_tracegraph_elbo.py",
    "tests/poutine/test_counterfactual.py",
    "tests/poutine/test_poutines.py",
]


class Outcomes:
    """A pytest plugin: seeds each test, and keeps its outcome and how the SVIs that it made ran."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.how: dict[str, list[str]] = {}
        self.made: list[Any] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        pyro.set_rng_seed(zlib.crc32(item.nodeid.encode()))  # a mark of the test's own comes after
        self.made.clear()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if report.when == "call" or outcome != "passed":
            self.outcomes[report.nodeid] = outcome
        if report.failed:
            self.reasons[report.nodeid] = str(report.longrepr)[-4000:]
        if report.when == "call":
            self.how[report.nodeid] = [svi.how for svi in self.made]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"outcomes": self.outcomes, "reasons": self.reasons, "how": self.how}))


def replace(mode: str, made: list[Any]) -> None:
    """Puts our SVI in the place of Pyro's, wherever Pyro has imported it by now."""
    import pyro_vae.svi

    theirs = pyro.infer.SVI

    class SVI(pyro_vae.svi.SVI):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{"compile": mode, **kwargs})
            made.append(self)

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "pyro" and vars(module).get("SVI") is theirs:
            module.SVI = SVI


def main(checkout: str, which: str, saved: str, *options: str) -> int:
    root = Path(__file__).resolve().parents[2]
    saved_path = Path(saved).resolve()
    sys.path[0] = str(root)  # so that this pyro_vae is tested, and pytest puts the checkout's `tests` in front
    os.chdir(checkout)
    plugin = Outcomes()
    if which != "pyro":
        replace(which, plugin.made)
    status = pytest.main([*options, "-q", "--no-header", "-p", "no:cacheprovider", "--tb=short"], plugins=[plugin])
    plugin.save(saved_path)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
