"""One walk over all components, then the one exact answer that is each one's own."""

from __future__ import annotations

import copy
import functools
import gc
import math

import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae import VAE, generate, guides, likelihoods, log_likelihood, networks, objectives, priors, reconstruct
from pyro_vae import svi as compiled
from pyro_vae.distributions.spaces import OneHotCodes, Reals, Simplex, Sphere, as_space
from pyro_vae.errors import InputError
from pyro_vae.runs.saving import build
from pyro_vae.runs.specs import spec
from tests.component_table import (
    GUIDES,
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    PRIORS,
    chain,
    data_for,
    fresh,
    guide_for,
    prior_for,
    small,
    vae,
    variants,
)

SHAPES = [(7,), (1, 8, 8), (3, 12, 10)]


def test_none_is_missing():
    assert len(PRIORS) >= 12
    assert len(LIKELIHOODS) >= 19
    assert len(GUIDES) >= 14
    assert len(NETWORKS) >= 9
    for cls in PRIORS + LIKELIHOODS + GUIDES + NETWORKS:
        assert cls.__doc__, f"{cls.__name__} has no docstring"


@pytest.mark.parametrize("prior", variants(PRIORS), ids=repr)
@pytest.mark.parametrize("guide", variants(GUIDES), ids=repr)
def test_every_prior_with_every_guide(prior, guide):
    """What does not fit is refused as it is put together, with two that fit; all else trains."""
    if isinstance(prior, priors.Vamp):
        fits = guide.evaluable and guide.amortized
    else:
        fits = prior.space == guide.space
    make = lambda: vae(prior=fresh(prior), guide=fresh(guide))  # noqa: E731
    if fits:
        walk(make(), torch.rand(6, 4).round())
        return
    with pytest.raises(InputError, match=r"; use guides\.\w+\(.*\).*, or priors\.\w+\(.*\)"):
        make()


NO_DENSITY = ("Planar", "Hamiltonian")  # but at their own draws


def refused(objective: objectives.Objective, guide: guides.Guide) -> bool:
    """Whether an objective has no use for a guide, by what each says of itself."""
    name, family = type(objective).__name__, type(guide).__name__
    relaxes = family == "RelaxedCategorical"
    if objective.reparameterised and relaxes and guide.hard:
        return name != "MeanFieldELBO" or guide.hard
    if name in ("DReG", "StickingTheLanding", "ReweightedWakeSleep", "VIMCO"):
        return family in NO_DENSITY
    if name == "MeanFieldELBO":  # a KL that torch knows
        return family not in ("MeanField", "SemiAmortized", "PerDatum", "Spherical")
    if name == "BetaTC":  # dimensions one by one
        return family not in ("MeanField", "SemiAmortized", "PerDatum")
    return False


@pytest.mark.parametrize("guide", variants(GUIDES), ids=repr)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda cls: cls.__name__)
def test_every_objective_with_every_guide(objective, guide):
    """Three steps to a finite loss, with a gradient for all; what has no gradient or density to offer is refused."""
    made = objective(nats=0.01) if objective is objectives.FreeBits else objective()
    pair, x = vae(prior=prior_for(guide), guide=fresh(guide)), torch.rand(6, 4).round()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), made)
    if refused(made, guide):
        with pytest.raises(InputError, match=r"use (objectives|guides)\.\w+.* (or|and) \w+"):
            svi.step(x)
        return
    made.progress(1.0)  # what is annealed has its full weight
    losses = [svi.step(x) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    pair.zero_grad()
    made.loss_and_grads(pair.model, pair.guide, x)
    for name, parameter in pair.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("guide", variants(GUIDES), ids=repr)
def test_captured_training_gives_what_eager_training_gives(guide):
    pair, x = vae(prior=prior_for(guide), guide=fresh(guide)), torch.rand(6, 4).round()
    losses = []
    for way in (SVI, functools.partial(compiled.SVI, compile="graph")):
        twin = copy.deepcopy(pair)
        torch.manual_seed(1)
        svi = way(twin.model, twin.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        losses.append([svi.step(x) for _ in range(5)])
    assert svi.how == "captured"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("prior", variants(PRIORS), ids=repr)
@pytest.mark.parametrize("likelihood", variants(LIKELIHOODS), ids=repr)
def test_every_prior_with_every_likelihood(prior, likelihood):
    pair = vae(prior=fresh(prior), likelihood=fresh(likelihood), guide=guide_for(prior))
    walk(pair, data_for(likelihood, 6, (4,)))


def walk(pair: VAE, x: torch.Tensor) -> None:
    """Builds, trains, scores, draws, rebuilds: what every combination must do."""
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    pair.zero_grad()
    Trace_ELBO().differentiable_loss(pair.model, pair.guide, x).backward()
    for name, parameter in pair.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name
    score = log_likelihood(pair, x, 20)
    assert score.values.isfinite().all()
    drawn, again = generate(pair, 3), reconstruct(pair, x, output="sample")
    for values, size in ((drawn, 3), (again, 6)):
        assert values.shape == (size, *x.shape[1:])
        pair.likelihood.check(values)
    twin = build(spec(pair), given={"program": getattr(pair.prior, "program", None)})
    assert repr(twin) == repr(pair)
    assert spec(twin) == spec(pair)
    twin.load_state_dict(pair.state_dict())
    assert torch.equal(log_likelihood(twin, x, 20).values, score.values)


@pytest.mark.parametrize("event_shape", SHAPES)
@pytest.mark.parametrize("likelihood", variants(LIKELIHOODS), ids=repr)
def test_likelihoods_at_every_shape_and_batch(likelihood, event_shape):
    built = fresh(likelihood).build(event_shape=torch.Size(event_shape))
    for batch in ((), (5,), (2, 5)):
        p = built(torch.randn(*batch, *built.params_shape))
        assert p.batch_shape == batch
        assert p.event_shape == event_shape
        x = p.sample()
        assert p.log_prob(x).isfinite().all()
        built.check(x.reshape(-1, *event_shape))
        assert built.as_input(x).shape == (*batch, *built.input_shape)
        assert built.pseudo_input(torch.randn(*batch, *built.input_shape)).shape == (*batch, *built.input_shape)


@pytest.mark.parametrize(
    ("likelihood", "by_scipy"),
    [
        (likelihoods.Bernoulli(), lambda x, p: scipy.stats.bernoulli.logpmf(x, 1 / (1 + torch.exp(-p)))),
        (likelihoods.Binomial(4), lambda x, p: scipy.stats.binom.logpmf(x, 4, 1 / (1 + torch.exp(-p)))),
        (likelihoods.Normal(0.5), lambda x, p: scipy.stats.norm.logpdf(x, p, 0.5)),
        (likelihoods.ContinuousBernoulli(), lambda x, p: p * x + torch.log(p / torch.expm1(p))),
    ],
    ids=lambda value: repr(value) if isinstance(value, likelihoods.Likelihood) else "scipy",
)
def test_densities_match_scipy(likelihood, by_scipy):
    built = likelihood.build(event_shape=torch.Size([3])).double()
    params = torch.randn(6, 3).double()
    x = built(params).sample()
    torch.testing.assert_close(built(params).log_prob(x), torch.as_tensor(by_scipy(x, params)).sum(-1))


def test_normal_scales():
    for scale in ("shared", "per datum"):
        built = likelihoods.Normal(scale).build(event_shape=torch.Size([2])).double()
        params = torch.randn(5, *built.params_shape).double()
        raw = params[:, 2:] if scale == "per datum" else built.raw_scale
        expected = scipy.stats.norm.logpdf(
            torch.ones(5, 2), params[:, :2], (torch.log1p(raw.exp()) + 1e-3).detach().expand(5, 2)
        )
        torch.testing.assert_close(built(params).log_prob(torch.ones(5, 2).double()), torch.tensor(expected).sum(-1))


def test_categorical_is_a_softmax_per_entry_with_one_hot_input():
    built = likelihoods.Categorical(3).build(event_shape=torch.Size([2, 4, 4]))
    params = torch.randn(5, 6, 4, 4)
    x = torch.randint(3, (5, 2, 4, 4)).float()
    table = params.reshape(5, 3, 2, 4, 4).log_softmax(1)
    by_hand = table.gather(1, x.long()[:, None]).sum((1, 2, 3, 4))
    torch.testing.assert_close(built(params).log_prob(x), by_hand)
    code = built.as_input(x).reshape(5, 3, 2, 4, 4)
    assert torch.equal(code.argmax(1).float(), x)
    assert torch.equal(code.sum(1), torch.ones(5, 2, 4, 4))
    soft = built.pseudo_input(torch.randn(5, 6, 4, 4)).reshape(5, 3, 2, 4, 4)
    torch.testing.assert_close(soft.sum(1), torch.ones(5, 2, 4, 4))


@pytest.mark.parametrize("event_shape", [(1, 8, 8), (3, 12, 10), (2, 7, 5), (9, 6)])
def test_convolutions_reach_any_size(event_shape):
    pair = vae(event_shape, 3, encoder=networks.ConvEncoder([4, 4]), decoder=networks.ConvDecoder([4, 4]))
    x = torch.rand(5, *event_shape).round()
    assert log_likelihood(pair, x, 4).values.shape == (5,)
    assert generate(pair, 2).shape == (2, *event_shape)


@pytest.mark.parametrize("network", [networks.MLP([5]), networks.ConvEncoder([3]), networks.ConvDecoder([3])], ids=repr)
def test_networks_take_any_leading_dimensions(network):
    built = network.build(in_shape=torch.Size([2, 6, 6]), out_shape=torch.Size([2, 6, 6])).eval()
    x = torch.randn(3, 4, 2, 6, 6)
    out = built(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out[1, 2], built(x[1, 2]), rtol=1e-4, atol=1e-5)


def test_any_module_serves_and_is_refused_where_it_does_not_fit():
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(4))
    pair = vae((1, 8, 8), 2, encoder=conv, decoder=nn.Sequential(nn.Linear(2, 64)))
    assert log_likelihood(pair, torch.rand(3, 1, 8, 8).round(), 5).values.isfinite().all()
    with pytest.raises(InputError, match=r"Linear returns \(2, 30\).*wanted is one tensor of shape \(2, 4\)"):
        vae(encoder=nn.Linear(4, 30))
    with pytest.raises(InputError, match=r"Linear fails on an input of shape \(N, 4\)"):
        vae(encoder=nn.Linear(7, 4))
    with pytest.raises(InputError, match="torch.nn.Module"):
        vae(encoder=lambda x: x)


@pytest.mark.parametrize("cls", PRIORS + LIKELIHOODS + GUIDES + NETWORKS, ids=lambda c: c.__name__)
def test_arguments_are_kept_and_printed(cls):
    component = small(cls)
    rebuilt = build(spec(component), given={"program": getattr(component, "program", None)})
    assert spec(rebuilt) == spec(component)
    assert repr(rebuilt) == repr(component)
    namespace = {**vars(priors), **vars(likelihoods), **vars(networks), **vars(guides), "chain": chain}
    if isinstance(component, priors.Prior):
        namespace |= vars(priors)
    if isinstance(component, likelihoods.Likelihood):
        namespace |= vars(likelihoods)
    assert repr(eval(repr(component), namespace)) == repr(component)


@pytest.mark.parametrize("component", [*variants(PRIORS), *variants(GUIDES), *variants(LIKELIHOODS)], ids=repr)
def test_build_refuses_names_that_it_does_not_know(component):
    sizes = dict.fromkeys(component.sizes, torch.Size([2]))
    with pytest.raises(InputError, match=r"build\(\) takes \w+_shape.*but got widht=2"):
        fresh(component).build(**sizes, widht=2)


@pytest.mark.parametrize("prior", variants(PRIORS), ids=repr)
def test_priors_get_sizes_only_unless_they_ask_for_more(prior):
    asked = {priors.Vamp: {"input_shape", "pseudo_input", "posterior"}, priors.Categorical: {"relaxation"}}
    assert set(prior.sizes) == {"latent_shape", "condition_shape"} | asked.get(type(prior), set())
    assert prior.needs_posterior == isinstance(prior, priors.Vamp)


def test_spaces_by_their_former_words():
    assert [as_space(word) for word in ("real", "simplex", "sphere")] == [Reals(), Simplex(), Sphere()]
    assert as_space(OneHotCodes(3)) == OneHotCodes(3)
    with pytest.raises(InputError, match=r"space='spehre' is not known. Did you mean 'sphere'"):
        as_space("spehre")


def test_a_prior_that_asks_for_what_the_model_does_not_have_is_refused():
    class Curious(priors.StandardNormal):
        sizes = (*priors.Prior.sizes, "weather")

    with pytest.raises(InputError, match=r"needs weather, which this model does not give"):
        vae(prior=Curious())
    del Curious
    gc.collect()  # so that the walk over subclasses does not find it


def test_an_instance_belongs_to_one_place():
    prior = priors.Mixture(3)
    vae(prior=prior)
    with pytest.raises(InputError, match=r"Mixture\(components=3\) is already built"):
        vae(prior=prior)
    network = networks.MLP([5])
    with pytest.raises(InputError, match="one instance"):
        vae(encoder=network, decoder=network)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAE(event_shape=(0,)), "event_shape"),
        (lambda: VAE(event_shape=(-3, 4)), "event_shape"),
        (lambda: VAE(event_shape=()), "event_shape"),
        (lambda: VAE(event_shape=(4,), latent_dim=-1), "latent_dim=-1"),
        (lambda: VAE(event_shape=(4,), latent_dim=2.0), "latent_dim=2.0"),
        (lambda: VAE(event_shape=(4,), prior=likelihoods.Bernoulli()), r"prior=Bernoulli\(\) must be a .*Prior"),
        (lambda: VAE(event_shape=(4,), prior="Mixture"), "prior='Mixture' must be"),
        (lambda: VAE(event_shape=(4,), likelihood=likelihoods.Bernoulli), "likelihood="),
        (lambda: VAE(event_shape=(4,), encoder=networks.ConvEncoder()), "works on images"),
        (lambda: priors.Mixture(0), "components=0"),
        (lambda: likelihoods.Normal("sharred"), "Did you mean 'shared'"),
        (lambda: likelihoods.Normal(-1.0), "scale=-1.0"),
        (lambda: networks.MLP([400, 0]), r"hidden=\[400, 0\] must hold whole numbers"),
        (lambda: networks.MLP("400"), "hidden='400'"),
        (lambda: networks.MLP([4], activation="rellu"), "Did you mean 'relu'"),
        (lambda: networks.ConvEncoder(kernel=4), "kernel=4 must be odd"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_grey_pixels_meet_the_three_ways_out():
    with pytest.raises(InputError, match="binarise.*ContinuousBernoulli.*relaxed=True"):
        vae().check(torch.full((2, 4), 0.5))


def test_two_models_side_by_side_train_as_each_would_alone():
    x = torch.rand(8, 4).round()

    def trained(others: int) -> list[torch.Tensor]:
        pyro.set_rng_seed(1)
        pair = vae()
        rivals = [vae() for _ in range(others)]
        pyro.set_rng_seed(2)
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        for _ in range(3):
            svi.step(x)
        for rival in rivals:
            SVI(rival.model, rival.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
        return [p.detach().clone() for p in pair.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(trained(0), trained(2), strict=True))


def test_a_deep_copy_trains_on_its_own():
    pair = vae(prior=priors.Vamp(3))
    twin = copy.deepcopy(pair)
    before = [p.detach().clone() for p in pair.parameters()]
    x = torch.rand(8, 4).round()
    SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    moved = [p.detach().clone() for p in pair.parameters()]
    SVI(twin.model, twin.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x)
    assert all(torch.equal(a, b) for a, b in zip(moved, pair.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(before, twin.parameters(), strict=True))


@pytest.mark.parametrize("likelihood", variants(LIKELIHOODS), ids=repr)
def test_outputs_start_at_the_datas_mean(likelihood):
    """E[x | z] is the data's mean at z = 0 where the likelihood can say how, through a decoder of one linear layer."""
    pair = vae(likelihood=fresh(likelihood), decoder=networks.MLP([]))
    mean = data_for(likelihood, 400, (4,)).float().mean(0)
    if pair.start_at(mean):
        with torch.no_grad():
            at = pair.likelihood(pair.decoder(torch.zeros(2)))
        wanted = pair.likelihood(pair.likelihood.start(mean))
        for p in (at, wanted):
            assert p.batch_shape == ()
        try:
            torch.testing.assert_close(at.mean, wanted.mean, rtol=1e-3, atol=1e-4)
        except NotImplementedError:
            torch.testing.assert_close(at.mode, wanted.mode)
    else:
        assert pair.likelihood.start(mean) is None
