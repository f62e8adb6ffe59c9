"""PerDatum: at least as good as where it starts, one search a batch, and no training of another VAE's parts."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from pyro_vae import VAE, data, elbo_terms, encode, fit, guides, load, log_likelihood, networks, save
from pyro_vae.guides import PerDatum
from pyro_vae.guides.refinement import better_of
from pyro_vae.objectives import ELBO


@pytest.fixture(scope="module")
def trained():
    """A small VAE of digits, and 60 test digits."""
    splits = data.load("digits", binarize="static")
    vae = VAE(event_shape=(1, 8, 8), latent_dim=4, encoder=networks.MLP([32]), decoder=networks.MLP([32]))
    fit(vae, splits.train, epochs=20, lr=1e-2, seed=0, progress=False)
    return vae, splits.test.batch(slice(0, 60))[0]


def test_it_never_ends_worse_than_the_encoder_that_it_starts_from(trained):
    """At its defaults it gains on the encoder's mean, and no datum loses more than noise (4 standard errors)."""
    vae, x = trained
    x = x.roll(1, -1)  # which the encoder has not met, so that there is something to gain
    twin = vae.replace(guide=PerDatum())
    assert twin.encoder is vae.encoder
    start, end = elbo_terms(vae, x, 100), elbo_terms(twin, x, 100)
    assert end.elbo > start.elbo + 0.2
    assert (
        end.values - start.values
    ).min() > -4 * 2 / 100**0.5  # the bound's draws have a standard deviation of about 2


def test_a_start_that_is_best_is_kept():
    """From the exact posterior of a Gaussian every change is for the worse."""
    family = guides.MeanField().build(latent_shape=torch.Size([2])).double()
    start = torch.tensor([[1.0, -1.0, 0.5, 0.3], [0.0, 2.0, 0.1, 1.0]], dtype=torch.float64)
    target = family(start)
    moved = start + torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    kept = better_of(family, start, moved, target.log_prob)
    assert torch.equal(kept, start)
    assert torch.equal(better_of(family, moved[:1], start[:1], family(start[:1]).log_prob), start[:1])


def test_one_search_serves_all_draws_of_a_batch(trained, monkeypatch):
    vae, x = trained
    twin = vae.replace(guide=PerDatum(steps=3))
    searches = []
    find = PerDatum.find
    monkeypatch.setattr(PerDatum, "find", lambda self, *given: searches.append(1) or find(self, *given))
    elbo_terms(twin, x, 5)
    few = len(searches)
    assert few <= 2  # the batch, and the few data that are looked at for notes
    elbo_terms(twin, x, 5)
    again = len(searches)
    posterior, same = encode(twin, x[:5]), encode(twin, x[:5].clone())
    assert torch.equal(posterior.mean, same.mean)
    with torch.no_grad():
        twin.decoder.layers[-1].bias.add_(0.1)  # another model: another search
    assert not torch.equal(encode(twin, x[:5]).mean, posterior.mean)
    with torch.no_grad():
        twin.decoder.layers[-1].bias.sub_(0.1)
    searches.clear()
    log_likelihood(twin, x, 200, max_memory=2**20)  # in several chunks of draws for each chunk of data
    assert 0 < len(searches) <= len(x)
    assert again - few <= 2


def test_fit_leaves_what_is_another_vaes(trained, caplog):
    """What is shared stays to the bit, and a message says so; the guide's own start is trained."""
    vae, x = trained
    twin = vae.replace(guide=PerDatum(steps=2))
    before = copy.deepcopy(vae.state_dict())
    start = twin.guide_family.start.detach().clone()
    with caplog.at_level(logging.WARNING, logger="pyro_vae"):
        fit(twin, x, epochs=2, batch_size=20, seed=0, progress=False, objective=ELBO())
    assert all(torch.equal(value, vae.state_dict()[name]) for name, value in before.items())
    assert not torch.equal(twin.guide_family.start, start)
    assert "encoder, decoder of another VAE stay as they are" in caplog.text


def test_built_from_the_start_everything_is_trained():
    vae = VAE((4,), 2, guide=PerDatum(steps=2), encoder=networks.MLP([8]), decoder=networks.MLP([8]))
    before = copy.deepcopy(vae.state_dict())
    fit(vae, torch.rand(40, 4).round(), epochs=3, batch_size=20, seed=0, progress=False)
    changed = {name.split(".")[0] for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert {"encoder", "decoder", "guide_family"} <= changed


def test_another_family_starts_from_a_place_of_its_own(trained):
    vae, x = trained
    twin = vae.replace(guide=PerDatum(guides.FullCovariance(), steps=2))
    assert twin.encoder is None
    elbo_terms(twin, x)


def test_saved_and_loaded_it_finds_the_same(trained, tmp_path):
    vae, x = trained
    twin = vae.replace(guide=PerDatum(steps=5))
    save(twin, tmp_path / "run")
    again = load(tmp_path / "run")
    torch.testing.assert_close(elbo_terms(again, x, 2).values, elbo_terms(twin, x, 2).values)
