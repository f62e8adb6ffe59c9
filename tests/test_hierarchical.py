"""HierarchicalVAE: closed forms of linear levels, the factors that the papers write, and what can stand at a level."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import MultivariateNormal

from pyro_vae import (
    HierarchicalVAE,
    elbo_terms,
    encode,
    fit,
    generate,
    guides,
    likelihoods,
    load,
    log_likelihood,
    networks,
    priors,
    reconstruct,
    save,
)
from pyro_vae.distributions.spaces import Reals
from pyro_vae.errors import InputError
from pyro_vae.guides import Guide
from tests.component_table import GUIDES, PRIORS, fresh, prior_for, variants

ORDERS = ("top-down", "bottom-up")


def small(order: str = "top-down", latent_dims=(3, 2, 2), **parts) -> HierarchicalVAE:
    return HierarchicalVAE((4,), latent_dims, order, 5, **parts)


def linear(order: str) -> HierarchicalVAE:
    """Linear networks, and scales that depend on nothing, all weights drawn at random, in float64."""
    flat = {"encoder": networks.MLP([]), "decoder": networks.MLP([]), "likelihood": likelihoods.Normal(0.5)}
    if order == "top-down":
        flat["merge"] = networks.MLP([])
    vae = small(order, (2, 1, 1), guide=guides.FullCovariance(), **flat).double()
    with torch.no_grad():
        for level in list(vae.levels)[1:]:
            level.prior.loc[0].weight.normal_()
            level.prior.loc[0].bias.normal_()
            level.prior.log_scale[0].bias.normal_(std=0.3)
        if vae.start is not None:
            vae.start.normal_()
    return vae


def marginal(vae: HierarchicalVAE) -> MultivariateNormal:
    """p(x) by hand: every quantity is m + A ε with ε standard normal, one block for each level."""
    dims = [level.guide_family.latent_shape[0] for level in vae.levels]
    eye = torch.eye(sum(dims), dtype=torch.float64)
    blocks = eye.split(dims)
    ladder = vae.order == "top-down"

    def through(layer, m, a):
        return layer.weight @ m + layer.bias, layer.weight @ a

    state = (vae.start, torch.zeros(vae.width, len(eye), dtype=torch.float64)) if ladder else None
    for t, level in enumerate(vae.levels):
        if t == 0:
            z = (torch.zeros(dims[0], dtype=torch.float64), blocks[0])
        else:
            m, a = through(level.prior.loc[0], *state)
            z = (m, a + level.prior.log_scale[0].bias.exp()[:, None] * blocks[t])
        below = tuple(torch.cat(pair) for pair in zip(state, z, strict=True)) if ladder else z
        m, a = through(level.down.layers[-1], *below)
        last = t == len(dims) - 1
        state = (state[0] + m, state[1] + a) if ladder and not last else (m, a)
    m, a = state
    return MultivariateNormal(m, a @ a.T + 0.25 * torch.eye(len(m), dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.* was not registered in the param store")
@pytest.mark.parametrize("order", ORDERS)
def test_linear_levels_have_the_closed_form(order):
    """Data drawn from p(x) itself. The exact posterior is in the guide's family, so that training finds it, nearly.

    20,000 draws; five Monte Carlo standard errors, a false alarm below 1e-6.
    """
    vae = linear(order)
    with torch.no_grad():
        exact = marginal(vae)
        x = exact.sample((200,))
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(".up." in name or ".merge." in name)
    fit(vae, x, epochs=300, lr=3e-2, schedule="cosine", batch_size=50, progress=False, seed=0)
    x = x[:20]
    truth = exact.log_prob(x).mean().item()
    score = log_likelihood(vae, x, 20_000)
    assert abs(score.mean - truth) < 5 * score.mean_mc_stderr
    assert score.mean_mc_stderr < 0.01
    terms = elbo_terms(vae, x, 500)
    assert truth - 0.3 < terms.elbo < truth + 0.01
    assert terms.kl == pytest.approx(sum(terms.sites[f"z_{t}"] for t in range(3)))


@pytest.mark.parametrize("order", ORDERS)
def test_latents_factor_as_the_papers_write(order):
    """p goes down from z_0; q goes down too, or up from the latent next to x; sizes are listed from x upwards."""
    vae, x = small(order, (4, 3, 2)), torch.rand(6, 4).round()
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(vae.model).get_trace(x)
    drawn = [n for n in guide.nodes if n.startswith("z_")]
    assert drawn == (["z_0", "z_1", "z_2"] if order == "top-down" else ["z_2", "z_1", "z_0"])
    assert [n for n in model.nodes if n.startswith("z_")] == ["z_0", "z_1", "z_2"]
    assert [model.nodes[f"z_{t}"]["value"].shape[-1] for t in range(3)] == [2, 3, 4]
    assert encode(vae, x).sample((5,))["z_2"].shape == (5, 6, 4)


def test_a_chain_depends_on_its_neighbour_and_a_ladder_on_all_above():
    for order, far in (("bottom-up", False), ("top-down", True)):
        torch.manual_seed(0)
        vae, x = small(order), torch.zeros(1, 4)
        with torch.no_grad():
            for level in list(vae.levels)[1:]:
                level.prior.loc[0].weight.normal_()
        given = {"z_0": torch.zeros(1, 2), "z_1": torch.ones(1, 2)}
        locs = []
        for top in (0.0, 1.0):
            held = poutine.condition(vae.model, data={**given, "z_0": given["z_0"] + top})
            locs.append(poutine.trace(held).get_trace(x).nodes["z_2"]["fn"].base_dist.loc)
        assert torch.equal(*locs) != far


@pytest.mark.parametrize("order", ORDERS)
def test_everything_takes_it(order, tmp_path):
    vae, x = small(order), torch.rand(20, 4).round()
    result = fit(vae, x, epochs=20, batch_size=10, lr=1e-2, progress=False, seed=0, out=tmp_path / "run")
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert log_likelihood(vae, x, 10).values.isfinite().all()
    assert generate(vae, 3, temperature=0.5).shape == (3, 4)
    assert reconstruct(vae, x).shape == x.shape
    twin = load(tmp_path / "run")
    assert repr(twin) == repr(vae)
    assert torch.equal(log_likelihood(twin, x, 10).values, log_likelihood(vae, x, 10).values)
    vae.zero_grad()
    pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    save(vae, tmp_path / "again")


@pytest.mark.parametrize("order", ORDERS)
def test_captured_training_is_eager_training(order):
    x, losses = torch.rand(60, 4).round(), []
    for compile in ("eager", "graph"):
        torch.manual_seed(3)
        result = fit(small(order), x, epochs=4, batch_size=10, progress=False, seed=0, compile=compile)
        losses.append([row["loss"] for row in result.history])
    assert result.how == "captured"
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


LEVEL_GUIDES = [guide for guide in variants(GUIDES) if type(guide).refine is Guide.refine and guide.evaluable]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("guide", LEVEL_GUIDES, ids=repr)
def test_every_family_serves_at_every_level(guide, order):
    vae = small(order, (2, 2), guide=fresh(guide), prior=prior_for(guide))
    x = torch.rand(12, 4).round()
    fit(vae, x, epochs=2, batch_size=6, progress=False, seed=0)
    assert log_likelihood(vae, x, 10).values.isfinite().all()


REAL = [p for p in variants(PRIORS) if p.space == Reals() and not isinstance(p, priors.Program)]


@pytest.mark.parametrize("prior", REAL, ids=repr)
def test_every_prior_serves_at_every_level(prior):
    vae = small(latent_dims=(2, 2), prior=[fresh(prior), fresh(prior)])
    x = torch.rand(12, 4).round()
    fit(vae, x, epochs=2, batch_size=6, progress=False, seed=0)
    assert log_likelihood(vae, x, 10).values.isfinite().all()
    assert generate(vae, 3).shape == (3, 4)


def test_a_vamp_prior_at_the_top_looks_through_the_whole_ladder():
    vae = small(prior=priors.Vamp(4))
    x = torch.rand(12, 4).round()
    fit(vae, x, epochs=2, batch_size=6, progress=False, seed=0)
    top = vae.levels[0].prior
    u = top.pseudo_input(top.free_inputs)
    guide = poutine.trace(vae.guide).get_trace(u)
    mean = guide.nodes["z_0"]["fn"].mean.mean(0)
    torch.testing.assert_close(vae.levels[0].prior().mean, mean)


def test_the_first_latents_are_kept_and_the_others_drawn_anew():
    vae, x = small(), torch.rand(8, 4).round()
    torch.manual_seed(0)
    with torch.no_grad():
        vae.levels[-1].down.layers[-1].weight.mul_(20)
    again = [reconstruct(vae, x, keep=3, seed=0), reconstruct(vae, x, seed=0)]
    assert torch.equal(*again)  # all three are the guide's
    few = [reconstruct(vae, x, keep=0, temperature=t, seed=1) for t in (1.0, 1e-6)]
    assert few[0].std(0).mean() > 1e-3
    assert few[1].std(0).max() < 1e-3  # without noise, nothing of x is left
    kept = reconstruct(vae, x, keep=1, temperature=1e-6, seed=1)
    assert kept.std(0).max() > 1e-4  # z_0 still differs from datum to datum
    with pytest.raises(InputError, match=r"keep=4 must be at most 3.*z_0, z_1, z_2"):
        reconstruct(vae, x, keep=4)


def test_collapsed_levels_are_named():
    vae, x = small(), torch.rand(50, 4).round()
    with torch.no_grad():
        for level in vae.levels:
            level.merge.layers[-1].weight.zero_()
            level.merge.layers[-1].bias[: len(level.merge.layers[-1].bias) // 2] = 0.0
            level.merge.layers[-1].bias[len(level.merge.layers[-1].bias) // 2 :] = 0.5413  # softplus gives 1
        vae.levels[1].merge.layers[-1].bias[:2] = 3.0
    terms = elbo_terms(vae, x, 50)
    assert terms.sites["z_1"] > 5
    assert terms.collapsed == ("z_0", "z_2")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"latent_dims": ()}, r"latent_dims=\[\] must name at least one level"),
        ({"latent_dims": (3, 0)}, "whole numbers of at least 1"),
        ({"order": "sideways"}, "order='sideways' is not known"),
        ({"order": "bottom-up", "merge": networks.MLP()}, "nothing to merge"),
        ({"guide": [guides.MeanField()]}, "guide has 1 entries.*3 levels"),
        ({"guide": guides.Hamiltonian()}, "whole joint"),
        ({"guide": guides.Planar()}, "at its own draws alone"),
        ({"guide": guides.Spherical()}, r"prior=StandardNormal\(\) lives on all of R\^D, but guide=Spherical"),
        ({"order": "bottom-up", "prior": priors.Vamp(3)}, "only order='top-down'"),
        ({"prior": guides.MeanField()}, "prior=MeanField.* must be a"),
    ],
)
def test_bad_input_is_named(parts, message):
    with pytest.raises(InputError, match=message):
        small(**{"latent_dims": (3, 2, 2), **parts})
