"""Fixtures of the whole suite: a pair whose answers are known, and a guard that tests leave no global switched."""

from __future__ import annotations

import os
import random
from pathlib import Path

# Before torch is imported: workers that each start a thread per core wait for each other's threads most of the time.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pyro
import pytest
import torch

from tests.linear_gaussian import LinearGaussian


@pytest.fixture(autouse=True)
def clean_globals():
    """Each test starts from seed 0 and an empty parameter store, and must leave torch's and Pyro's switches alone."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    before = switches()
    yield
    assert switches() == before
    pyro.clear_param_store()


def switches() -> dict[str, object]:
    """Global settings that a library must not flip."""
    return {
        "default dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "distribution validation": torch.distributions.Distribution._validate_args,
        "pyro validation": pyro.infer.util.is_validation_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "anomaly": torch.is_anomaly_enabled(),
        "module-local params": pyro.settings.get("module_local_params"),
        "default device": str(torch.get_default_device()),
    }


def random_states() -> tuple:
    """Torch's and Python's random states, to be compared before and after."""
    return torch.get_rng_state().tolist(), random.getstate()


@pytest.fixture
def linear_gaussian() -> LinearGaussian:
    """Factor analysis with D = 2 latents and 5 outputs, in float64."""
    return LinearGaussian(latent_dim=2, data_dim=5)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """Where real MNIST lies, in torchvision's layout; tests that need it are skipped elsewhere."""
    root = os.environ.get("PYRO_VAE_DATA")
    if not root or not (Path(root) / "MNIST").is_dir():
        pytest.skip("real MNIST is not here: PYRO_VAE_DATA names no folder with MNIST in torchvision's layout")
    return Path(root)
