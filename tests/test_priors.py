"""Priors: each integrates to one over its space, draws from its own density, and can be given y."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, generate, guides, log_likelihood, priors
from pyro_vae.distributions.spaces import OneHotCodes, Simplex, Sphere
from pyro_vae.distributions.sphere import log_area
from pyro_vae.errors import InputError
from tests.component_table import PRIORS, chain, fresh, guide_for, vae, variants

NUM_DRAWS = 20_000


def points(space: str, dim: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A fine grid over a space of two dimensions, in float64, and the area that each of its points stands for."""
    if isinstance(space, OneHotCodes):
        return torch.eye(2).double(), torch.ones(2)
    if space == Sphere():  # the circle
        angle = torch.arange(2000).double() * (2 * math.pi / 2000)
        return torch.stack([angle.cos(), angle.sin()], -1), torch.full((2000,), 2 * math.pi / 2000)
    if (
        space == Simplex()
    ):  # the segment, by its first coordinate, on which the density is; through a logit, as it peaks
        t = torch.linspace(-30, 30, 60_001).double()
        first = torch.sigmoid(t)
        return torch.stack([first, torch.sigmoid(-t)], -1), first * torch.sigmoid(-t) * 1e-3
    axis = torch.linspace(-20, 20, 321).double()
    grid = torch.cartesian_prod(axis, axis)
    return grid, torch.full((len(grid),), 0.125**2)


def built(prior: priors.Prior, spread: float = 0.0) -> VAE:
    """A VAE in float64 with its prior's parameters moved off their start."""
    torch.manual_seed(0)
    pair = vae(prior=fresh(prior), guide=guide_for(prior)).double().eval()
    with torch.no_grad():
        for parameter in pair.prior.parameters():
            parameter += spread * torch.randn_like(parameter)
    return pair


@pytest.mark.parametrize("prior", variants(PRIORS), ids=repr)
def test_priors_integrate_to_one_and_sample_from_their_density(prior):
    """By the trapezoid rule; E[log p] over draws equals that by quadrature within 4 standard errors (false alarm 6e-5)."""
    pair = built(
        prior, 0.1 if isinstance(prior, priors.Flow) else 0.3
    )  # flows further off have peaks finer than the grid
    grid, area = points(prior.space)
    with torch.no_grad():
        p = pair.prior()
        assert (p.batch_shape, p.event_shape) == ((), (2,))
        log_p = p.log_prob(grid)
        mass = log_p.exp() * area
        assert mass.sum().item() == pytest.approx(1.0, abs=5e-3)  # the Laplace has a kink
        exact = torch.where(mass > 0, mass * log_p, torch.zeros(()).double()).sum()
        draws = p.sample((NUM_DRAWS,))
        drawn = p.log_prob(draws)
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / NUM_DRAWS**0.5 + 5e-3
    assert draws.shape == (NUM_DRAWS, 2)
    middle = (grid * mass[:, None]).sum(0)
    assert ((draws.mean(0) - middle).abs() < 4 * draws.std(0) / NUM_DRAWS**0.5 + 2e-2).all()


@pytest.mark.parametrize("prior", variants(PRIORS), ids=repr)
def test_priors_given_y(prior):
    """p(z | y): one for each y, a density for each, and gradients to all of its parameters."""
    torch.manual_seed(0)
    pair = vae(prior=priors.StandardNormal())
    conditional = fresh(prior)
    if isinstance(prior, priors.Program):
        conditional = priors.Program(lambda y: pyro.sample("z", dist.Normal(y[..., :2], 1.0).to_event(1)))
    offered = {
        "latent_shape": torch.Size([2]),
        "input_shape": torch.Size([4]),
        "pseudo_input": torch.sigmoid,
        "posterior": pair.encode_input,
        "relaxation": pair.guide_family.relaxation,
        "condition_shape": torch.Size([3]),
    }
    conditional.build(**{name: offered[name] for name in conditional.sizes})
    y = torch.randn(5, 3)
    p = conditional(y)
    assert (p.batch_shape, p.event_shape) == ((5,), (2,))
    z = p.sample()
    assert z.shape == (5, 2)
    loss = p.log_prob(z)
    assert loss.shape == (5,)
    torch.testing.assert_close(p.expand((7, 5)).log_prob(z.expand(7, 5, 2)), loss.expand(7, 5))
    if list(conditional.parameters()):
        loss.square().sum().backward()
    for name, parameter in conditional.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter += (0.1 if isinstance(prior, priors.Flow) else 0.5) * torch.randn_like(parameter)
        grid, area = points(prior.space)
        for n in (0, 3):
            mass = conditional(y[n]).log_prob(grid.float()).double().exp() * area
            assert mass.sum().item() == pytest.approx(1.0, abs=5e-3)
        moved = conditional(y).log_prob(z)
    if not isinstance(prior, priors.Program):
        assert not torch.allclose(moved, loss, atol=1e-3)
        with pytest.raises(InputError, match="condition=None"):
            conditional()


def test_a_prior_without_y_refuses_one():
    with pytest.raises(InputError, match=r"condition=\(5, 3\); wanted is none"):
        vae(prior=priors.Flow()).prior(torch.randn(5, 3))


@pytest.mark.parametrize("dim", [2, 6])
def test_flows_integrate_to_one_in_any_dimension(dim):
    """By importance sampling from N(0, 4 I), within 4 standard errors (false alarm 6e-5)."""
    torch.manual_seed(0)
    proposal = dist.Normal(torch.zeros(dim).double(), 2.0).to_event(1)
    z = proposal.sample((30_000,))
    for prior in (priors.Flow("coupling"), priors.Flow("spline"), priors.Flow(), priors.Autoregressive()):
        p = vae(prior=prior, latent_dim=dim).double().prior()
        with torch.no_grad():
            ratio = (p.log_prob(z) - proposal.log_prob(z)).exp()
            again = p.sample((50,))
            torch.testing.assert_close(p.log_prob(again), p.log_prob(again.clone()), rtol=1e-5, atol=1e-4)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(z) ** 0.5


def test_an_autoregressive_prior_looks_back_only():
    p = vae(prior=priors.Autoregressive(), latent_dim=5).prior()
    z = torch.randn(5, requires_grad=True)
    for t in range(5):
        (slope,) = torch.autograd.grad(p.conditionals(z).log_prob(torch.zeros(5))[t], z, retain_graph=True)
        assert (slope[t:] == 0).all()
        assert (slope[:t] != 0).all()


def test_a_program_is_its_sites_in_order():
    p = vae(prior=priors.Program(chain)).prior()
    z = torch.randn(7, 2)
    by_hand = dist.Normal(0.0, 1.0).log_prob(z[:, 0]) + dist.Normal(0.5 * z[:, 0], 1.0).log_prob(z[:, 1])
    torch.testing.assert_close(p.log_prob(z), by_hand)
    torch.manual_seed(0)
    drawn = p.sample((20_000,))
    assert drawn.T.cov().tolist() == [pytest.approx([1.0, 0.5], abs=0.05), pytest.approx([0.5, 1.25], abs=0.05)]


def test_a_program_must_fill_the_latent_without_plates():
    with pytest.raises(InputError, match="program samples 2 numbers in all, but latent_dim=3"):
        generate(vae(prior=priors.Program(chain), latent_dim=3), 2)

    def with_plate():
        with pyro.plate("parts", 2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(InputError, match="plate 'parts'"):
        generate(vae(prior=priors.Program(with_plate)), 2)


def test_spherical_is_the_area_and_the_logistic_normal_is_centred():
    assert math.exp(log_area(2)) == pytest.approx(2 * math.pi)
    assert math.exp(log_area(3)) == pytest.approx(4 * math.pi)
    pair = vae(prior=priors.LogisticNormal(0.01), guide=guides.LogisticNormal(), latent_dim=4)
    torch.testing.assert_close(pair.prior().sample(), torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_latents_of_codes_come_in_whole_codes():
    with pytest.raises(InputError, match="latent_dim=5 must be a multiple of categories=2"):
        vae(prior=priors.Categorical(2), guide=guides.RelaxedCategorical(2), latent_dim=5)
    with pytest.raises(InputError, match="one-hot codes of 2, but .* one-hot codes of 4"):
        vae(prior=priors.Categorical(2), guide=guides.RelaxedCategorical(4), latent_dim=8)
    codes = generate(vae(prior=priors.Categorical(2), guide=guides.RelaxedCategorical(2), latent_dim=4), 3)
    assert codes.shape == (3, 4)


def test_vamp_of_codes_and_of_directions():
    for guide, dim in ((guides.RelaxedCategorical(2), 4), (guides.Spherical(), 3), (guides.LogisticNormal(), 3)):
        pair = vae(prior=priors.Vamp(3), guide=guide, latent_dim=dim)
        assert log_likelihood(pair, torch.rand(3, 4).round(), 10).values.isfinite().all()


def test_gradients_reach_the_pseudo_inputs_through_the_guide():
    pair = vae(prior=priors.Vamp(pseudo_inputs=3))
    u = pair.likelihood.pseudo_input(pair.prior.free_inputs)
    q = pair.encode_input(u)
    z = torch.randn(5, 2)
    by_hand = torch.stack([q.log_prob(zi.expand(3, 2)).logsumexp(0) - math.log(3) for zi in z])
    torch.testing.assert_close(pair.prior().log_prob(z), by_hand)
