"""What version 0.1 wrote and named still works: its run folders load, score and resume; its import paths resolve.

`tests/data/run_v0_1*` are run folders of that version, without figures. `tests/data/names_v0_1.txt` lists its public
names by module.
"""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import pyro_vae
from pyro_vae import data, elbo_terms, generate, load, log_likelihood, reconstruct, save
from pyro_vae.cli import main
from pyro_vae.runs import read_config

DATA = Path(__file__).parent / "data"
# Of 50 thresholded digits under seed 3, computed by version 0.1: log p(x) at 20 samples; ELBO and KL at 5 draws.
SCORES = {
    "run_v0_1": (-25.4081, -26.1477, 0.8733),
    "run_v0_1_hierarchical": (-24.0810, -24.5741, 0.4923),
    "run_v0_1_labels": (-27.2823, -27.4455, 2.4808),
    "run_v0_1_vamp": (-24.2960, -24.4859, 0.1284),
}
WITH_LABELS = ("run_v0_1_hierarchical", "run_v0_1_labels")
# The losses of the two epochs of run_v0_1, the second by `--resume`.
LOSSES = (28.8888, 28.5194)


def digits(name: str):
    test = data.load("digits").test.take(range(50)).with_binarize("threshold")
    return test.with_labels() if name in WITH_LABELS else test


@pytest.mark.parametrize("name", SCORES)
def test_saved_run_scores_as_before(name):
    pair, x = load(DATA / name), digits(name)
    terms = elbo_terms(pair, x, num_samples=5, seed=3)
    found = (log_likelihood(pair, x, 20, seed=3, compile="eager").mean, terms.elbo, terms.kl)
    assert found == pytest.approx(SCORES[name], abs=2e-3)


@pytest.mark.parametrize("name", SCORES)
def test_saved_run_generates_reconstructs_and_saves_the_same_config(name, tmp_path):
    pair, batch = load(DATA / name), digits(name).batch(slice(0, 3))
    assert reconstruct(pair, batch).shape == (3, 1, 8, 8)
    drawn = generate(pair, 3, condition=batch[1:] or None)
    assert (drawn["x"] if isinstance(drawn, dict) else drawn).numel() == 3 * 64
    save(pair, tmp_path / "again")
    before, after = (read_config(folder)["model"] for folder in (DATA / name, tmp_path / "again"))
    assert after["class_path"] == before["class_path"]
    assert {key: after["init_args"][key] for key in before["init_args"]} == before["init_args"]
    again = load(tmp_path / "again").state_dict()
    assert all(again[key].equal(tensor) for key, tensor in pair.state_dict().items())


def test_weights_of_the_guide_family_load_under_their_former_key():
    tensors = load_file(DATA / "run_v0_1_labels" / "model.safetensors")
    assert "posterior.done" in tensors
    pair = load(DATA / "run_v0_1_labels")
    assert pair.state_dict()["guide_family.done"] == tensors["posterior.done"] > 0
    assert pair.posterior is pair.guide_family


@pytest.mark.parametrize("name", SCORES)
def test_command_line_evaluates_a_saved_run(name, tmp_path):
    assert main(["evaluate", str(DATA / name), "--json", str(tmp_path / "scores.json"), "--quiet"]) == 0
    before, now = (json.loads(path.read_text()) for path in (DATA / name / "test.json", tmp_path / "scores.json"))
    for key in ("elbo", "kl", "reconstruction"):
        assert now[key] == pytest.approx(before[key], abs=2e-3), key
    assert now["log_likelihood"]["mean"] == pytest.approx(before["log_likelihood"]["mean"], abs=2e-3)


def test_command_line_resumes_a_saved_run_with_the_same_numbers(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(DATA / "run_v0_1", folder)
    config = ["--config", str(folder / "config.yaml"), "--samples", "0"]
    assert main(["train", *config, "--out", str(folder), "--resume", "--epochs", "2", "--quiet"]) == 0
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx(LOSSES, abs=2e-3)


def test_command_line_samples_from_a_saved_run(tmp_path):
    assert main(["sample", str(DATA / "run_v0_1"), "-n", "4", "--out", str(tmp_path / "x.npy")]) == 0
    assert (tmp_path / "x.npy").exists()


NAMES = [line.partition(":") for line in (DATA / "names_v0_1.txt").read_text().splitlines()]


@pytest.mark.parametrize(("module", "names"), [(module, names.split()) for module, _, names in NAMES])
def test_import_paths_of_version_0_1_resolve(module, names):
    imported = importlib.import_module(module)
    missing = [name for name in names if not hasattr(imported, name)]
    assert not missing, f"{module} has no {missing}"


def test_names_of_version_0_1_at_the_root():
    wanted = (
        "DeepMarkovModel HierarchicalVAE InputError Pair SemiSupervisedVAE TrainingDiverged VAE VariationalRNN VeryDeepVAE "
        "classify data elbo_terms encode fit fit_prior forecast generate guides likelihoods load log_likelihood log_weights "
        "networks objectives pareto_khat priors reconstruct save"
    )
    assert set(wanted.split()) <= set(pyro_vae.__all__)
    from pyro_vae.svi import SVI

    assert SVI
