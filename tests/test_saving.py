"""Saved and loaded pairs score the same; loading never unpickles, and imports nothing that it was not allowed to."""

from __future__ import annotations

import pickle
import sys
import types

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from pyro_vae import VAE, Pair, fit, guides, likelihoods, load, log_likelihood, networks, priors, save
from pyro_vae.errors import InputError
from tests.component_table import vae


def full_vae() -> VAE:
    return VAE(
        (1, 6, 6),
        3,
        prior=priors.Vamp(4),
        likelihood=likelihoods.Normal("per datum"),
        guide=guides.FullCovariance(),
        encoder=networks.ConvEncoder([3]),
        decoder=networks.ConvDecoder([3]),
    )


@pytest.mark.parametrize("make", [vae, full_vae])
def test_a_reloaded_vae_scores_the_same(make, tmp_path):
    pair = make()
    x = torch.rand(9, *pair.event_shape).round()
    save(pair, tmp_path / "run")
    twin = load(tmp_path / "run")
    assert repr(twin) == repr(pair)
    assert torch.equal(log_likelihood(twin, x, 50).values, log_likelihood(pair, x, 50).values)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.yaml", "model.safetensors"}


def test_loading_never_unpickles(tmp_path, monkeypatch):
    save(vae(), tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    load(tmp_path)


def test_loading_leaves_the_random_state_alone(tmp_path):
    save(vae(), tmp_path)
    before = torch.get_rng_state()
    load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


class Scaled(nn.Module):
    """A user's network that keeps its arguments under their names."""

    def __init__(self, inputs: int, outputs: int, factor: float = 1.0):
        super().__init__()
        self.inputs, self.outputs, self.factor = inputs, outputs, factor
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.factor * self.linear(x)


def test_code_from_outside_the_package_is_refused_unless_allowed_by_name(tmp_path):
    pair = vae(encoder=Scaled(4, 4, 0.5))
    save(pair, tmp_path)
    with pytest.raises(InputError, match=r"encoder: the config names tests\.test_saving\.Scaled.*allow="):
        load(tmp_path)
    twin = load(tmp_path, allow=["tests.test_saving"])
    assert twin.encoder.module.factor == 0.5
    x = torch.rand(5, 4).round()
    assert torch.equal(log_likelihood(twin, x, 9).values, log_likelihood(pair, x, 9).values)


def test_a_module_made_by_hand_is_asked_for(tmp_path):
    make = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))  # noqa: E731
    pair = vae(encoder=make())
    save(pair, tmp_path)
    with pytest.raises(InputError, match=r"encoder is a .*Sequential.*load\(path, encoder=...\)"):
        load(tmp_path)
    twin = load(tmp_path, encoder=make())
    x = torch.rand(5, 4).round()
    assert torch.equal(log_likelihood(twin, x, 9).values, log_likelihood(pair, x, 9).values)


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "torch.nn.Linear", "builtins.exec"])
def test_a_config_can_not_name_other_code(tmp_path, path):
    save(vae(), tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["model"]["init_args"]["encoder"] = {"class_path": path, "init_args": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="outside pyro_vae"):
        load(tmp_path)


@pytest.mark.parametrize(
    "path", ["pyro_vae.saving.save", "pyro_vae.files.Path", "pyro_vae.nothing.X", "pyro_vae.priors.os"]
)
def test_a_config_can_only_name_pairs_and_components(tmp_path, path):
    save(vae(), tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["model"]["init_args"]["prior"] = {"class_path": path}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match="can't be imported|neither a pair, nor"):
        load(tmp_path)


def test_yaml_tags_that_build_objects_are_refused(tmp_path):
    save(vae(), tmp_path)
    (tmp_path / "config.yaml").write_text("model: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(InputError, match="not YAML"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.yaml").unlink(), "no run folder"),
        (lambda d: (d / "config.yaml").write_text("a: [1"), "not YAML"),
        (lambda d: (d / "config.yaml").write_text("a: 1"), "no entry 'model'"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors can't be read"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 50), "model.safetensors can't be read"),
        (
            lambda d: (d / "config.yaml").write_text(
                (d / "config.yaml").read_text().replace("latent_dim: 2", "latent_dim: 3")
            ),
            "weights do not fit",
        ),
        (
            lambda d: (d / "config.yaml").write_text((d / "config.yaml").read_text().replace("latent_dim", "latents")),
            "takes no argument 'latents'",
        ),
    ],
)
def test_spoilt_folders_are_explained(tmp_path, spoil, message):
    save(vae(), tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def hand_written():
    up, down = nn.Linear(2, 4), nn.Linear(4, 2)

    def model(x):
        pyro.module("saved_up", up)
        scale = pyro.param("noise", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(up(z), scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("saved_down", down)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(down(x), 0.5).to_event(1))

    return Pair(model, guide)


def test_hand_written_pairs_keep_modules_and_params(tmp_path):
    x, pair = torch.randn(20, 4), hand_written()
    fit(pair, x, epochs=3, lr=0.05, progress=False, out=tmp_path)
    score = log_likelihood(pair, x, 20).values
    stored = load_file(tmp_path / "model.safetensors")
    assert {"pyro.param.noise", "module.0.weight", "module.1.weight"} <= set(stored)
    with pytest.raises(InputError, match="hand-written pair"):
        load(tmp_path)
    pyro.clear_param_store()
    twin = hand_written()
    with pytest.raises(InputError, match="'noise'.*run pair.guide"):
        load(tmp_path, pair=twin)
    twin.model(x)
    load(tmp_path, pair=twin)
    assert torch.equal(log_likelihood(twin, x, 20).values, score)


def test_saving_into_a_file_or_an_odd_argument_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        save(vae(), tmp_path / "file")


def test_a_component_of_the_users_saves_and_loads(tmp_path, monkeypatch):
    module = types.ModuleType("users_priors")
    exec(
        "from pyro_vae.priors import Prior\n"
        "import pyro.distributions as dist\n"
        "class Wide(Prior):\n"
        "    'A wide normal.'\n"
        "    def __init__(self, width: float = 3.0):\n"
        "        super().__init__()\n"
        "        self.width = width\n"
        "    def forward(self):\n"
        "        return dist.Normal(self.zero, self.width).expand(self.latent_shape).to_event(1)\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "users_priors", module)
    module.Wide.__module__ = "users_priors"
    save(vae(prior=module.Wide(2.0)), tmp_path)
    assert load(tmp_path, allow=["users_priors"]).prior.width == 2.0
