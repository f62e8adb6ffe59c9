"""The command line as a user meets it: exit codes, messages, files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import pyro_vae
from pyro_vae import cli
from pyro_vae.cli import main
from pyro_vae.errors import InputError

read = lambda path: Path(path).read_text()  # noqa: E731
QUICK = ["--epochs", "2", "--samples", "5", "--quiet", "--model.latent_dim", "2"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder of its own and gives (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str):
        status = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder that `pyro-vae train` wrote."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert (
        main(["train", *QUICK, "--out", str(folder), "--model.prior", "Mixture", "--model.prior.components", "3"]) == 0
    )
    return folder


def test_train_writes_the_run_folder_and_ends_with_a_table(run):
    status, out, _ = run("train", *QUICK)
    assert status == 0
    assert "test log p(x)" in out
    assert "runs/digits-1/figures" in out
    with open("runs/digits-1/metrics.csv") as file:
        assert len(list(csv.DictReader(file))) == 2
    config = yaml.safe_load(read("runs/digits-1/config.yaml"))
    assert config["binarize"] == "dynamic"
    assert config["model"]["init_args"]["event_shape"] == [1, 8, 8]
    scores = json.loads(read("runs/digits-1/test.json"))
    assert scores["log_likelihood"]["num_samples"] == 5
    assert scores["log_likelihood"]["num_data"] == 360
    assert run("train", *QUICK)[0] == 0
    assert "runs/digits-2" in run("train", *QUICK, "--out", "runs/digits-2")[2]  # refused: it holds a run already


def test_evaluate_gives_the_same_numbers_as_train(run, trained):
    status, out, _ = run("evaluate", trained, "--json", "scores.json", "--quiet")
    assert status == 0
    assert "test log p(x)" in out
    assert json.loads(read("scores.json")) == json.loads(read(trained / "test.json"))
    assert set(json.loads(read("scores.json"))["log_likelihood"]) >= {"mean", "stderr", "num_data", "num_samples"}
    assert run("evaluate", trained, "--samples", "9", "--json", "nine.json", "--quiet")[0] == 0
    assert json.loads(read("nine.json"))["log_likelihood"]["num_samples"] == 9


def test_full_evaluation_adds_a_report_and_its_figures(run, trained, monkeypatch):
    from pyro_vae.inference import evaluation

    monkeypatch.setitem(evaluation.PARTS, "disentanglement", _refuse)
    status, out, _ = run("evaluate", trained, "--samples", "5", "--json", "full.json", "--full", "--quiet")
    assert status == 0
    assert "test log p(x)" in out
    assert "expected coverage" in out
    assert "left out: disentanglement  refused" in out
    content = json.loads(read("full.json"))
    assert content["log_likelihood"]["num_samples"] == 5
    assert set(content["full"]["parts"]) == {"latent_use", "calibration", "posterior_predictive"}
    for name in content["full"]["parts"]:
        assert (trained / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def _refuse(asked):
    raise InputError("refused")


def test_sample_writes_pictures_and_numbers(run, trained):
    assert run("sample", trained, "-n", "5", "--out", "s.pt")[0] == 0
    assert torch.load("s.pt", weights_only=True).shape == (5, 1, 8, 8)
    assert run("sample", trained, "-n", "5", "--out", "s.png", "--mean")[0] == 0
    assert Path("s.png").read_bytes()[:4] == b"\x89PNG"
    assert run("sample", trained, "-n", "3", "--out", "s.npy")[0] == 0
    assert "s.jpg" not in run("sample", trained, "--out", "s.jpg")[1]


def test_a_conditional_run_is_sampled_by_label(run, trained):
    condition = ["--model.condition", "Labels", "--model.condition.num_labels", "10"]
    assert run("train", *QUICK, *condition, "--out", "given")[0] == 0
    assert run("sample", "given", "-n", "12", "--out", "each.pt", "--mean", "--labels", *range(10))[0] == 0
    assert run("sample", "given", "-n", "12", "--out", "turns.pt", "--mean")[0] == 0
    each, turns = (torch.load(name, weights_only=True) for name in ("each.pt", "turns.pt"))
    assert torch.equal(each, turns)
    pair = pyro_vae.load("given")
    y = torch.arange(12) % 10
    assert torch.allclose(each, pyro_vae.generate(pair, 12, output="mean", condition=y, seed=0))
    assert run("sample", "given", "-n", "4", "--out", "threes.pt", "--mean", "--labels", "3")[0] == 0
    threes = pyro_vae.generate(pair, 4, output="mean", condition=torch.full((4,), 3), seed=0)
    assert torch.allclose(torch.load("threes.pt", weights_only=True), threes)
    status, _, err = run("sample", "given", "--labels", "3", "12")
    assert status == 2
    assert "12 is no label; wanted are 0 to 9" in err
    assert "--labels" in run("sample", trained, "--labels", "3")[2]


def test_sequences_in_a_file_are_trained_on_and_scored_with_their_lengths(run):
    x = (torch.rand(40, 4, 2, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    lengths = torch.arange(40) % 4 + 1
    for name, beyond in (("zeros", 0.0), ("other", -1.0)):  # what is beyond an end is not looked at
        padded = x.where((torch.arange(4) < lengths[:, None])[..., None], torch.tensor(beyond))
        torch.save({"x": padded, "lengths": lengths}, f"{name}.pt")
        words = ["--data", f"{name}.pt", "--model", "DeepMarkovModel"]
        assert run("train", *QUICK, *words, "--out", name)[0] == 0
    assert json.loads(read("zeros/test.json"))["elbo"] == pytest.approx(json.loads(read("other/test.json"))["elbo"])
    status, _, err = run("train", *QUICK, "--data", "zeros.pt", "--out", "vae")
    assert status == 2
    assert "the batch holds 2 tensors" in err


def test_a_runs_config_trains_the_same_again(run, trained):
    status, _, _ = run("train", "--config", trained / "config.yaml", "--quiet", "--out", "again")
    assert status == 0
    assert json.loads(read("again/test.json")) == json.loads(read(trained / "test.json"))
    assert run("train", "--config", trained / "config.yaml", "--quiet", "--out", "other", "--seed", "5")[0] == 0
    assert json.loads(read("other/test.json")) != json.loads(read(trained / "test.json"))


def test_the_command_line_and_yaml_say_the_same(run):
    Path("c.yaml").write_text(
        yaml.safe_dump(
            {
                "epochs": 1,
                "samples": 3,
                "model": {
                    "class_path": "VAE",
                    "init_args": {
                        "latent_dim": 2,
                        "prior": {"class_path": "Vamp", "init_args": {"pseudo_inputs": 3}},
                        "encoder": {"class_path": "MLP", "init_args": {"hidden": [9]}},
                    },
                },
                "fit": {"lr": 0.01},
            }
        )
    )
    assert run("train", "--config", "c.yaml", "--quiet", "--out", "a")[0] == 0
    words = [
        "--epochs",
        "1",
        "--samples",
        "3",
        "--model.latent_dim",
        "2",
        "--model.prior",
        "Vamp",
        "--model.prior.pseudo_inputs",
        "3",
        "--model.encoder",
        "MLP",
        "--model.encoder.hidden",
        "[9]",
        "--fit.lr",
        "0.01",
    ]
    assert run("train", *words, "--quiet", "--out", "b")[0] == 0
    assert json.loads(read("a/test.json")) == json.loads(read("b/test.json"))


def test_an_interrupted_run_resumes(run, monkeypatch):
    from pyro_vae import training

    original, calls = training.Trainer._epoch, []

    def interrupted(self, epoch, bar):
        calls.append(epoch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, epoch, bar)

    monkeypatch.setattr(training.Trainer, "_epoch", interrupted)
    status, _, err = run("train", *QUICK)
    assert status == 130
    assert "--resume" in err
    status, _, _ = run("train", *QUICK, "--resume")  # the last run under runs/
    assert status == 0
    assert [p.name for p in Path("runs").iterdir()] == ["digits-1"]
    assert run("train", *QUICK, "--out", "whole")[0] == 0
    assert json.loads(read("runs/digits-1/test.json")) == json.loads(read("whole/test.json"))


def test_files_and_real_numbers_find_their_likelihood(run):
    import numpy as np

    rng = np.random.default_rng(0)
    np.save("real.npy", rng.normal(size=(60, 5)).astype("float32"))
    assert run("train", *QUICK, "--data", "real.npy", "--out", "r")[0] == 0
    config = yaml.safe_load(read("r/config.yaml"))
    assert config["model"]["init_args"]["likelihood"]["class_path"] == "pyro_vae.likelihoods.Normal"
    assert config["binarize"] == "none"
    assert run("evaluate", "r", "--quiet")[0] == 0


def test_a_class_of_the_users_is_named_by_its_path(run):
    Path("my_priors.py").write_text(
        "import pyro.distributions as dist\nfrom pyro_vae.priors import Prior\n\n"
        "class Wide(Prior):\n    '''A wide normal.\n\n    Args:\n        width: its standard deviation.\n    '''\n"
        "    def __init__(self, width: float = 3.0):\n        super().__init__()\n        self.width = width\n\n"
        "    def forward(self):\n        return dist.Normal(self.zero, self.width).expand(self.latent_shape).to_event(1)\n"
    )
    words = ["--model.prior", "my_priors.Wide", "--model.prior.width", "2.0"]
    assert run("train", *QUICK, *words, "--out", "r")[0] == 0
    assert run("evaluate", "r", "--quiet")[0] == 2
    assert "my_priors" in run("evaluate", "r", "--quiet")[2]
    assert run("evaluate", "r", "--quiet", "--allow", "my_priors")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["Did you mean 'train'"]),
        (["train", "--epoch", "3"], ["--epoch", "Did you mean '--epochs'"]),
        (["train", "--fit.batch_sizes", "3"], ["Did you mean '--fit.batch_size'"]),
        (["train", "--model.prior", "Mixtur"], ["no class 'Mixtur'", "Did you mean 'Mixture'"]),
        (["train", "--model.latent_dims", "3"], ["VAE takes no 'latent_dims'", "Did you mean 'latent_dim'"]),
        (["train", "--model.prior", "Mixture", "--model.prior.component", "3"], ["Did you mean 'components'"]),
        (["train", "--data", "mnits"], ["mnits", "mnist"]),
        (["train", "--data", "nowhere.npy"], ["nowhere.npy"]),
        (["train", "--epochs", "0"], ["epochs=0"]),
        (["train", "--epochs", "many"], ["epochs"]),
        (["train", "--binarize", "statik"], ["Did you mean 'static'"]),
        (["train", "--binarize", "none"], ["grey", "ContinuousBernoulli"]),
        (["train", "--model.latent_dim", "-2"], ["latent_dim=-2"]),
        (["train", "--fit.schedule", "cosin"], ["cosin"]),
        (["train", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["train", "--device", "gpu"], ["device='gpu'"]),
        (["train", "--seed", "-1"], ["--seed=-1"]),
        (["train", "--samples", "-1"], ["--samples=-1"]),
        (["train", "--model.likelihood.scale", "3"], ["--model.likelihood NAME --model.likelihood.scale VALUE"]),
        (["train", "--model.encoder", "MLP", "--model.encoder.hidden", "[4,-1]"], ["hidden=[4, -1]", "holds -1"]),
        (["train", "--model.likelihood", "Categorical", "--quiet"], ["0.3125", "pixels='integer'"]),
        (["train", "--model.prior", "os.system"], ["os.system"]),
        (["evaluate", "nowhere"], ["nowhere", "no run folder"]),
        (["sample", "nowhere"], ["nowhere", "no run folder"]),
        (["sample"], ["run"]),
    ],
)
def test_what_the_user_got_wrong_gets_a_line_and_status_two(run, arguments, words):
    status, _, err = run(*arguments)
    assert status == 2
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["train", "evaluate", "sample"]),
        ([], ["train", "evaluate", "sample"]),
        (["train", "--help"], ["--data", "--model", "--fit.batch_size", "--epochs", "learning rate", "mnist"]),
        (["train", "--model.help", "VAE"], ["latent_dim", "prior", "likelihood", "Mixture", "ConvEncoder"]),
        (["train", "--model.prior.help", "Mixture"], ["components", "number of Gaussians"]),
        (["evaluate", "--help"], ["--samples", "--json", "--full"]),
        (["sample", "--help"], ["-n", "--mean"]),
        (["--version"], ["pyro-vae"]),
    ],
)
def test_help_is_worth_reading(run, arguments, words):
    status, out, _ = run(*arguments)
    assert status == 0
    for word in words:
        assert word in out
    for jargon in ("CONFIG | CLASS_PATH_OR_NAME | .INIT", "config_text"):
        assert jargon not in out or arguments[0] == "train"


def test_help_does_not_wait_for_torch():
    code = "import sys; from pyro_vae.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - start < 3


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "pyro_vae", "nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no command 'nope'" in done.stderr
    assert cli.USAGE.startswith("usage: pyro-vae")
