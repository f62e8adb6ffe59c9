"""p(x | z, y), q(z | x, y) and p(z | y): what networks read of y, and exact answers given y."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import (
    VAE,
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
from pyro_vae.errors import InputError
from pyro_vae.networks.base import join
from tests.component_table import GUIDES, PRIORS, fresh, guide_for, prior_for, variants


def labelled(size: int = 12, dim: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(size, dim).round(), torch.arange(size) % classes


def small(**parts) -> VAE:
    if getattr(parts.get("guide"), "amortized", True):
        parts.setdefault("encoder", networks.MLP([5]))
    return VAE((4,), 2, decoder=networks.MLP([5]), condition=networks.Labels(3), **parts)


# --- what networks read -------------------------------------------------------------------------------------------


def test_labels_are_one_hot_and_checked():
    net = networks.Labels(3).build(in_shape=torch.Size([]), out_shape=torch.Size([3]))
    y = torch.tensor([2, 0])
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
    assert torch.equal(net(y), expected)
    assert torch.equal(net(y.float()), expected)
    assert net.double()(y).dtype == torch.float64
    net.check(y)
    for bad, message in (
        (torch.tensor([0, 3]), r"y\[1\] = 3 is no label; wanted are 0 to 2"),
        (torch.tensor([-1]), r"y\[0\] = -1"),
        (torch.tensor([0.5]), r"y\[0\] = 0.5"),
        (torch.zeros(2, 1), r"wants \(N,\)"),
    ):
        with pytest.raises(InputError, match=message):
            net.check(bad)


@pytest.mark.parametrize(
    "call", [log_likelihood, elbo_terms, encode, reconstruct, "generate"], ids=lambda c: getattr(c, "__name__", c)
)
def test_a_label_that_is_none_is_refused_wherever_y_is_given(call):
    """One-hot coded it would be all zeros: a number would come out, of no model."""
    vae, (x, y) = small(), labelled(4)
    y[3] = 3
    with pytest.raises(InputError, match=r"y\[3\] = 3 is no label; wanted are 0 to 2"):
        generate(vae, 4, condition=y) if call == "generate" else call(vae, (x, y))


def test_features_read_any_shape():
    plain = networks.Features([2, 3])
    assert plain.num_features == 6
    built = plain.build(in_shape=plain.y_shape, out_shape=torch.Size([6]))
    y = torch.randn(4, 2, 3)
    assert torch.equal(built(y), y.reshape(4, 6))
    learned = networks.Features([2, 3], 5, networks.MLP([7]))
    assert learned.build(in_shape=learned.y_shape, out_shape=torch.Size([5]))(y).shape == (4, 5)
    with pytest.raises(InputError, match="needs num_features"):
        networks.Features([2], network=networks.MLP())


@pytest.mark.parametrize(
    ("network", "in_shape", "wanted"),
    [
        (networks.MLP(), (4,), (7,)),
        (networks.MLP(), (1, 4, 4), (19,)),
        (networks.ConvEncoder(), (1, 4, 4), (4, 4, 4)),
        (networks.ConvEncoder(), (4, 4), (4, 4, 4)),
        (networks.ResNetEncoder(), (2, 4, 4), (5, 4, 4)),
        (networks.DeepSets(), (5, 2), (5, 5)),
        (networks.Wrapped(torch.nn.Conv2d(4, 1, 3)), (1, 4, 4), (4, 4, 4)),
        (networks.Wrapped(torch.nn.Linear(7, 1)), (4,), (7,)),
    ],
    ids=str,
)
def test_features_join_what_a_network_reads(network, in_shape, wanted):
    """Inputs and features can be taken out of the joined input again, under leading dimensions that broadcast."""
    joined = network.with_context(torch.Size(in_shape), 3)
    assert joined == wanted
    x, c = torch.randn(2, 6, *in_shape), torch.randn(6, 3)
    both = join(x, c, torch.Size(in_shape), joined)
    assert both.shape == (2, 6, *wanted)
    if len(wanted) == 3:
        planes = wanted[0] - 3
        assert torch.equal(both[:, :, :planes].reshape(x.shape), x)
        assert torch.equal(both[:, :, planes:], c[:, :, None, None].expand(2, 6, 3, 4, 4))
    else:
        size = wanted[-1] - 3
        assert torch.equal(both[..., :size].reshape(x.shape), x)
        assert (both[..., size:].movedim(-2, 0)[0] if len(wanted) == 2 else both[..., size:]).eq(c).all()


# --- exact answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional_prior", [False, True])
def test_the_conditional_likelihood_is_that_of_a_model_for_each_class(conditional_prior):
    """Linear networks: given y, x is normal with mean W μ_y + V_y + b and covariance W W' + σ²; 20,000 draws from q.

    Five Monte Carlo standard errors of the mean over 12 data; a false alarm has probability below 1e-6.
    """
    vae = VAE(
        (4,),
        2,
        likelihood=likelihoods.Normal(0.5),
        encoder=networks.MLP([]),
        decoder=networks.MLP([]),
        condition=networks.Labels(3),
        conditional_prior=conditional_prior,
    ).double()
    with torch.no_grad():
        vae.decoder.layers[-1].weight.normal_(std=0.5)
        if conditional_prior:
            vae.prior.centre[0].weight.normal_(std=0.5)
        vae.encoder.layers[-1].weight.zero_()  # a guide that covers what the posterior may be
        vae.encoder.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 1.3, 1.3]))
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    linear = vae.decoder.layers[-1]
    w, v = linear.weight[:, :2], linear.weight[:, 2:]
    expected = []
    for i in range(12):
        one_hot = torch.eye(3, dtype=torch.float64)[y[i]]
        centre = vae.prior.centre[0](one_hot) if conditional_prior else torch.zeros(2, dtype=torch.float64)
        mean = w @ centre + v @ one_hot + linear.bias
        cov = w @ w.T + 0.25 * torch.eye(4, dtype=torch.float64)
        expected.append(torch.distributions.MultivariateNormal(mean, cov).log_prob(x[i]))
    score = log_likelihood(vae, (x, y), 20_000)
    assert abs(score.mean - torch.stack(expected).mean().item()) < 5 * score.mean_mc_stderr
    assert score.mean_mc_stderr < 0.02
    wrong = log_likelihood(vae, (x, (y + 1) % 3), 20_000)
    assert abs(wrong.mean - torch.stack(expected).mean().item()) > 20 * wrong.mean_mc_stderr


def test_conditional_digits_score_as_models_of_one_class_each():
    """A decoder whose only hidden unit is y is one model for each class: it scores as three VAEs made of its parts."""
    vae = small().double()
    x, y = labelled()
    x = x.double()
    together = log_likelihood(vae, (x, y), 500)
    for label in range(3):
        code = torch.eye(3, dtype=torch.float64)[label]

        def at(network, inputs, code=code):
            return network(torch.cat([inputs, code.expand(*inputs.shape[:-1], -1)], -1))

        def model(x, at=at):
            pyro.module(vae.name, vae)
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", vae.prior())
                pyro.sample("x", vae.likelihood(at(vae.decoder, z)), obs=x)

        def guide(x, at=at):
            pyro.module(vae.name, vae)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", vae.guide_family(at(vae.encoder, x)))

        of_class = y == label
        alone = elbo_terms((model, guide), x[of_class], 100)
        again = elbo_terms(vae, (x[of_class], y[of_class]), 100)
        assert alone.elbo == pytest.approx(again.elbo, abs=1e-9)  # the same seed draws the same noise
        assert together.values[of_class].mean() > again.elbo


# --- everything takes it ----------------------------------------------------------------------------------------------


def effect(c: torch.Tensor) -> None:
    """A structured prior that is told y, one-hot."""
    cause = pyro.sample("cause", dist.Normal(c[..., 0], 1.0))
    pyro.sample("effect", dist.Normal(0.5 * cause, 1.0))


@pytest.mark.parametrize(
    "prior", [p for p in variants(PRIORS) if not isinstance(p, priors.Program)] + [priors.Program(effect)], ids=repr
)
def test_every_prior_is_given_y(prior, tmp_path):
    """Trains, scores and draws given y; p(z | y) hears of y."""
    vae = small(prior=fresh(prior), guide=guide_for(prior), conditional_prior=True)
    x, y = labelled()
    result = fit(vae, (x, y), epochs=2, batch_size=6, progress=False, seed=0)
    assert result.history[-1]["loss"] > 0
    assert log_likelihood(vae, (x, y), 10).values.isfinite().all()
    assert generate(vae, 3, condition=torch.arange(3)).shape == (3, 4)
    assert reconstruct(vae, (x, y)).shape == x.shape
    loss = pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x, y)
    loss.backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
    save(vae, tmp_path / "run")
    twin = load(tmp_path / "run") if not hasattr(prior, "program") else vae
    assert torch.equal(log_likelihood(twin, (x, y), 10).values, log_likelihood(vae, (x, y), 10).values)


@pytest.mark.parametrize("guide", variants(GUIDES), ids=repr)
def test_every_guide_is_given_y(guide):
    vae = small(prior=prior_for(guide), guide=fresh(guide))
    x, y = labelled()
    fit(vae, (x, y), epochs=1, batch_size=6, progress=False, seed=0)
    assert log_likelihood(vae, (x, y), 10).values.isfinite().all()


def test_captured_training_is_eager_training():
    x, y = labelled(60)
    losses = []
    for compile in ("eager", "graph"):
        torch.manual_seed(3)
        vae = small(conditional_prior=True)
        result = fit(vae, (x, y), epochs=4, batch_size=10, progress=False, seed=0, compile=compile)
        losses.append([row["loss"] for row in result.history])
    assert result.how == "captured"
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_condition_moves_what_is_generated():
    """Trained on data that are their label, each class is drawn as itself."""
    y = torch.arange(300) % 3
    x = torch.nn.functional.one_hot(y, 4).float()
    vae = small()
    fit(vae, (x, y), epochs=60, batch_size=30, lr=2e-2, progress=False, seed=0)
    drawn = generate(vae, 300, condition=y, seed=0)
    assert (drawn == x).float().mean() > 0.97


def test_images_are_given_y_as_planes():
    vae = VAE(
        (1, 8, 8),
        3,
        encoder=networks.ConvEncoder([4]),
        decoder=networks.ConvDecoder([4]),
        prior=priors.Vamp(3),
        condition=networks.Features([2, 2]),
    )
    x, y = torch.rand(6, 1, 8, 8).round(), torch.randn(6, 2, 2)
    fit(vae, (x, y), epochs=1, progress=False)
    assert log_likelihood(vae, (x, y), 5).values.isfinite().all()
    inputs = vae.pseudo_input(torch.randn(3, *vae.encoder.in_shape))
    assert inputs.shape == (3, 5, 8, 8)
    assert inputs[:, 0].min() > 0
    assert inputs[:, 0].max() < 1


@pytest.mark.parametrize("order", ["top-down", "bottom-up"])
def test_hierarchies_are_given_y(order):
    x, y = labelled()
    for conditional_prior in (False, True):
        vae = HierarchicalVAE((4,), [3, 2], order, 5, condition=networks.Labels(3), conditional_prior=conditional_prior)
        fit(vae, (x, y), epochs=1, progress=False)
        prior = pyro.poutine.trace(pyro.poutine.uncondition(vae.model))
        torch.manual_seed(0)
        one = prior.get_trace(x, torch.zeros(12, dtype=torch.long))
        torch.manual_seed(0)
        other = prior.get_trace(x, torch.ones(12, dtype=torch.long))
        with torch.no_grad():
            vae.levels[0].prior.centre[0].weight.normal_() if conditional_prior else None
        assert not torch.equal(one.nodes["x"]["fn"].base_dist.logits, other.nodes["x"]["fn"].base_dist.logits)
        same = torch.equal(one.nodes["z_1"]["fn"].base_dist.loc, other.nodes["z_1"]["fn"].base_dist.loc)
        assert same == (not conditional_prior)


def test_what_is_missing_or_too_much_is_said():
    x, y = labelled()
    vae = small()
    for bad, message in (
        (x, r"VAE takes \(x, y\), but the batch holds 1 tensors"),
        ((x, y, y), "holds 3 tensors"),
        ((x, y + 1), r"y\[2\] = 3 is no label"),
        ((x, y[:, None]), r"y has shape \(12, 1\)"),
    ):
        with pytest.raises(InputError, match=message):
            fit(vae, bad, epochs=1, progress=False)
    with pytest.raises(InputError, match="pass the 1 after x as condition="):
        generate(vae, 2)
    with pytest.raises(InputError, match=r"condition has 3 rows, but num_samples=2"):
        generate(vae, 2, condition=torch.arange(3))
    with pytest.raises(InputError, match="VAE takes one tensor x"):
        fit(VAE((4,), 2), (x, y), epochs=1, progress=False)
    with pytest.raises(InputError, match="conditional_prior=True needs a condition"):
        VAE((4,), 2, conditional_prior=True)
    with pytest.raises(InputError, match=r"condition=MLP.* must be a pyro_vae.networks"):
        VAE((4,), 2, condition=networks.MLP())


def test_priors_are_fitted_afterwards_given_y():
    from pyro_vae import fit_prior

    x, y = labelled(60)
    for conditional_prior in (False, True):
        vae = small(conditional_prior=conditional_prior, guide=guides.MeanField())
        fit(vae, (x, y), epochs=1, progress=False, seed=0)
        result = fit_prior(vae, (x, y), prior=priors.Mixture(3), epochs=2, num_samples=10, progress=False)
        assert isinstance(result.vae.p_z(y), dist.MixtureSameFamily)
