"""Guides: each family's density is that of its own draws, and each does what it was made for."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from pyro_vae import VAE, elbo_terms, fit, guides, likelihoods, log_likelihood, networks, priors
from pyro_vae.distributions.codes import RelaxedGroups
from pyro_vae.distributions.spaces import Reals, Sphere
from pyro_vae.errors import InputError
from pyro_vae.guides.refinement import refined
from tests.component_table import GUIDES, fresh, vae, variants

NUM_DRAWS = 100_000


def joint(z: torch.Tensor) -> torch.Tensor:
    """log of a correlated Gaussian, for families that look at the model."""
    return dist.MultivariateNormal(
        torch.tensor([0.5, -0.5]).double(), torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double()
    ).log_prob(z)


def posterior(guide: guides.Guide, size: tuple[int, ...] = (), dim: int = 2):
    """q in float64, with parameters and params off their start; relaxed where it relaxes."""
    torch.manual_seed(0)
    built = fresh(guide).build(latent_shape=torch.Size([dim])).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    params = 0.5 * torch.randn(*size, *built.params_shape, dtype=torch.float64)
    return built.refine(params, joint), params


@pytest.mark.parametrize("guide", variants(GUIDES), ids=repr)
def test_guides_at_every_batch(guide):
    for batch in ((), (5,), (2, 5)):
        q, _ = posterior(guide, batch)
        assert (q.batch_shape, q.event_shape) == (batch, (2,))
        z = q.rsample() if q.has_rsample else q.sample()
        assert q.log_prob(z).shape == batch
        wide = q.expand((3, *batch))
        z = wide.rsample() if q.has_rsample else wide.sample()
        assert (z.shape, wide.log_prob(z).shape) == ((3, *batch, 2), (3, *batch))
        assert wide.log_prob(z).isfinite().all()


def coordinates(q: dist.TorchDistribution, z: torch.Tensor) -> torch.Tensor:
    """What the density is on: R², the first coordinate of the segment, the circle's angle."""
    kind = str(q.support)
    if isinstance(q, RelaxedGroups) or "Simplex" in kind:
        return z[..., :1]
    if "Sphere" in kind:
        return torch.atan2(z[..., 1:], z[..., :1])
    return z


@pytest.mark.parametrize("guide", variants(GUIDES), ids=repr)
def test_log_q_is_the_density_of_its_own_draws(guide):
    """E_q[1{z in B} / q(z)] is the volume of any box B, within 4 standard errors (false alarm 1e-3 for all boxes).

    This needs the density at q's own draws alone, so it holds families without inverses to account, too, and the
    Hamiltonian one, whose density has the momentum in it.
    """
    q, _ = posterior(guide)
    with torch.no_grad():
        wide = q.expand((NUM_DRAWS,))
        z = wide.sample() if not q.has_rsample else wide.rsample()
        log_q = wide.log_prob(z)
        if not q.has_rsample:  # codes: the frequency of each
            for code in torch.eye(2).double():
                p = q.log_prob(code).exp()
                assert abs((z == code).all(-1).double().mean() - p) < 4 * (p * (1 - p) / NUM_DRAWS).sqrt()
            return
        at = coordinates(q, z)
        low, high = at.quantile(0.15, dim=0), at.quantile(0.85, dim=0)
        for i in range(4):
            part = (torch.tensor([i % 2, i // 2])[: at.shape[1]]).double()
            a, b = low + part / 2 * (high - low), low + (part + 1) / 2 * (high - low)
            inside = ((at > a) & (at < b)).all(-1)
            estimate = inside.double() * (-log_q).exp()
            assert abs(estimate.mean() - (b - a).prod()) < 4 * estimate.std() / NUM_DRAWS**0.5, i


@pytest.mark.parametrize("guide", [g for g in variants(GUIDES) if g.evaluable], ids=repr)
def test_density_does_not_hang_on_who_drew(guide):
    q, _ = posterior(guide, (50,))
    z = q.rsample() if q.has_rsample else q.sample()
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.detach().clone()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guide", variants(GUIDES), ids=repr)
def test_claimed_moments(guide):
    """Mean and variance, where they are claimed, within 5 standard errors (false alarm 1e-5)."""
    q, _ = posterior(guide)
    with torch.no_grad():
        z = q.expand((NUM_DRAWS,)).sample()
        try:
            mean = q.mean
        except NotImplementedError:
            return
        if isinstance(q, RelaxedGroups):
            return  # claims the mean of what it relaxes
        assert ((z.mean(0) - mean).abs() < 5 * z.std(0) / NUM_DRAWS**0.5).all()
        fourth = (z - mean).square().std(0) / NUM_DRAWS**0.5
        assert ((z.var(0) - q.variance).abs() < 5 * fourth + 1e-6).all()


@pytest.mark.parametrize(
    "guide", [guides.Mixture(3), guides.Mixture(3, stratified=False), guides.Spherical()], ids=repr
)
def test_pathwise_gradients(guide):
    """d/dparams E[f(z)] over draws against a quadrature of f · dq, within 4.5 standard errors (false alarm 1e-4)."""
    torch.manual_seed(0)
    built = fresh(guide).build(latent_shape=torch.Size([2])).double()
    start = torch.randn(built.params_shape).double()

    def f(z):
        return (z[..., 0] - 0.3).square() * (1 + 0.5 * z[..., 1]).cos()

    if guide.space == Sphere():
        angle = torch.arange(4000).double() * 2 * math.pi / 4000
        grid, area = torch.stack([angle.cos(), angle.sin()], -1), 2 * math.pi / 4000
    else:
        axis = torch.linspace(-12, 12, 801).double()
        grid, area = torch.cartesian_prod(axis, axis), (24 / 800) ** 2

    def exact(params):
        return (built(params).log_prob(grid).exp() * f(grid)).sum() * area

    wanted = torch.autograd.functional.jacobian(exact, start)
    params = start.expand(40_000, -1).clone().requires_grad_()
    (slopes,) = torch.autograd.grad(f(built(params).rsample()).sum(), params)
    assert ((slopes.mean(0) - wanted).abs() < 4.5 * slopes.std(0) / 200 + 1e-6).all()


def test_stratified_draws_share_out_the_components():
    """The number of draws by a component deviates from its share by at most one."""
    built = guides.Mixture(2).build(latent_shape=torch.Size([2]))
    params = torch.zeros(100, *built.params_shape)
    params[:, :2] = torch.tensor([0.0, math.log(3.0)])
    params[:, 2:] = -20.0  # all but points, at −21 and −19
    q = built(params)
    for _ in range(5):
        assert (q.rsample()[:, 0] > -20).sum().item() in (75, 74, 76)


def test_relaxed_codes_near_hard_ones_and_are_scored_as_such():
    pair = vae(prior=priors.Categorical(3), guide=guides.RelaxedCategorical(3, 1.0, 0.1), latent_dim=6)
    x = torch.rand(40, 4).round()
    posterior = pair.guide_family
    assert posterior.relaxation().item() == 1.0
    posterior.progress(0.5)
    assert posterior.relaxation().item() == pytest.approx(0.1**0.5)
    fit(pair, x, epochs=3, progress=False, compile="graph")
    assert posterior.done.item() == pytest.approx(1.0, abs=0.4)
    z = pair.encode_input(x).sample()
    assert ((z > 0) & (z < 1)).any()
    pair.eval()
    z = pair.encode_input(x).sample()
    assert ((z == 0) | (z == 1)).all()
    # The score is that of the hard model: a sum over all nine codes gives it exactly.
    codes = pair.prior().enumerate_support()
    with torch.no_grad():
        exact = (pair.log_joint(x, None, codes[:, None].expand(-1, len(x), -1))).logsumexp(0)
    score = log_likelihood(pair, x, 2000)
    assert ((score.values - exact).abs() < 5 * score.mc_stderr + 1e-4).all()
    assert (elbo_terms(pair, x, 50).values < exact + 0.05).all()


def linear(guide: guides.Guide, seed: int = 0, noise: float = 0.5) -> tuple[VAE, torch.Tensor, torch.Tensor]:
    """A linear-Gaussian VAE with any guide: data, and log p(x) in closed form."""
    torch.manual_seed(seed)
    encoder = {} if not guide.amortized else {"encoder": networks.MLP([])}
    pair = VAE((3,), 2, guide=guide, likelihood=likelihoods.Normal(noise), decoder=networks.MLP([]), **encoder).double()
    layer = pair.decoder.layers[-1]
    with torch.no_grad():
        if guide.amortized:
            pair.encoder.layers[-1].weight.mul_(0.1)  # so that no q is too narrow for its weights to have a variance
        layer.weight.copy_(torch.randn(3, 2))
    w, b = layer.weight.detach(), layer.bias.detach()
    marginal = dist.MultivariateNormal(b, w @ w.T + noise**2 * torch.eye(3).double())
    x = marginal.sample((64,))
    return pair, x, marginal.log_prob(x)


@pytest.mark.parametrize("guide", [g for g in variants(GUIDES) if g.space == Reals()], ids=repr)
def test_weights_are_unbiased(guide):
    """The mean over data of p̂(x) / p(x) is 1 within 4.5 standard errors (false alarm 1e-5), whatever the family."""
    pair, x, exact = linear(fresh(guide), noise=1.4)
    score = log_likelihood(pair, x, 2000)
    ratio = (score.values - exact).exp()
    error = (score.mc_stderr * ratio).square().sum().sqrt() / len(x)
    assert abs(ratio.mean() - 1) < 4.5 * error + 1e-6


def test_hamiltonian_steps_and_refinement_tighten_the_bound():
    """Each of them comes nearer to log p(x) than the poor encoder that it starts from."""
    plain, x, exact = linear(guides.MeanField())
    gaps = {"MeanField": (exact - elbo_terms(plain, x, 50).values).mean().item()}
    for guide in (
        guides.Hamiltonian(10, 0.2, 0.1),
        guides.SemiAmortized(steps=20, lr=0.05),
        guides.PerDatum(steps=150),
    ):
        pair, x, exact = linear(guide)
        gaps[type(guide).__name__] = (exact - elbo_terms(pair, x, 50).values).mean().item()
    assert min(gaps.values()) > -0.02
    for name in ("Hamiltonian", "SemiAmortized", "PerDatum"):
        assert gaps[name] < 0.7 * gaps["MeanField"], gaps
    assert gaps["PerDatum"] < 0.35 + 0.2  # what a factorised q leaves of this posterior's correlation, and noise


def test_refinement_finds_each_datums_own_optimum():
    """Adam's steps end at the Gaussian that log p(x, z) is."""
    built = guides.MeanField().build(latent_shape=torch.Size([2])).double()
    target = dist.Normal(torch.tensor([[1.0, -2.0], [0.0, 3.0]]).double(), torch.tensor([0.5, 2.0]).double()).to_event(
        1
    )
    torch.manual_seed(0)
    found = refined(built, torch.zeros(2, 4).double(), target.log_prob, 3000, 0.02, adam=True)
    q = built(found)
    torch.testing.assert_close(q.mean, target.mean, atol=0.15, rtol=0)
    torch.testing.assert_close(q.variance.sqrt(), target.variance.sqrt(), atol=0.15, rtol=0.1)


def test_semi_amortized_gradients_go_through_the_steps():
    """d/dλ_0 of the refined bound against finite differences, under one seed."""
    built = guides.SemiAmortized(steps=2, lr=0.1).build(latent_shape=torch.Size([2])).double()
    start = torch.randn(4).double()

    def bound(params):
        torch.manual_seed(3)
        q = built.refine(params, joint)
        z = q.rsample()
        return joint(z) - q.log_prob(z)

    start.requires_grad_()
    assert torch.autograd.gradcheck(bound, (start,))


def test_guides_without_a_density_elsewhere_say_so():
    for guide in (guides.Planar(), guides.Hamiltonian()):
        q, _ = posterior(guide)
        with pytest.raises(NotImplementedError):
            q.log_prob(torch.zeros(2).double())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guides.Mixture(0), "components=0"),
        (lambda: guides.Hamiltonian(temperature=2.0), "temperature=2.0 must be at most 1"),
        (lambda: guides.SemiAmortized(guides.Hamiltonian()), "must be a family that the encoder alone sets"),
        (lambda: guides.PerDatum(guides.RelaxedCategorical()), "draws codes"),
        (lambda: vae(guide=guides.PerDatum(num_samples=0)), "num_samples=0"),
        (lambda: VAE((4,), 2, guide=guides.Spherical()), r"unit sphere; use guides.MeanField\(\), or priors.Spherical"),
        (lambda: VAE((4,), 2, prior=priors.Vamp(), guide=guides.Planar()), "its own draws alone"),
        (lambda: VAE((4,), 2, prior=priors.Vamp(), guide=guides.PerDatum()), "pseudo-inputs through the encoder"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_full_covariance_is_its_matrix():
    built = guides.FullCovariance().build(latent_shape=torch.Size([3])).double()
    params = torch.randn(4, *built.params_shape).double()
    q = built(params)
    covariance = q.scale_tril @ q.scale_tril.mT
    z = torch.randn(4, 3).double()
    by_scipy = [scipy.stats.multivariate_normal.logpdf(z[i], q.loc[i], covariance[i]) for i in range(4)]
    torch.testing.assert_close(q.log_prob(z), torch.tensor(by_scipy))
    assert (q.scale_tril.triu(1) == 0).all()
    params.requires_grad_()
    built(params).log_prob(z).sum().backward()
    assert (params.grad != 0).all()
