"""Every component and every function runs where the pair lies: a walk on a CUDA device that needs no card.

Pairs are built on the CPU and moved, as users do. Each run is compared with the same run on the CPU, under one seed.
Not walked: CUDA graphs (`WholeStep`) and Inductor, which need a card; files, which fake tensors cannot be written to.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.optim import ClippedAdam
from torch import nn

from pyro_vae import (
    VAE,
    DeepMarkovModel,
    HierarchicalVAE,
    Pair,
    SemiSupervisedVAE,
    VariationalRNN,
    VeryDeepVAE,
    classify,
    elbo_terms,
    encode,
    fit,
    fit_prior,
    forecast,
    generate,
    guides,
    likelihoods,
    log_likelihood,
    log_weights,
    models,
    networks,
    objectives,
    priors,
    reconstruct,
)
from pyro_vae.component import Component
from tests.component_table import (
    GUIDES,
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    PRIORS,
    data_for,
    fresh,
    guide_for,
    leaves,
    prior_for,
    vae,
    variants,
)
from tests.fake_cuda import HostTensor, fake_cuda, to_cuda, values

# Data and their order may lie on the CPU.
PACKAGE = Path(inspect.getfile(Component)).parent
LOADERS = tuple(str(path) for room in ("training", "data") for path in (PACKAGE / room).glob("*.py"))
MIXED = "Expected all tensors to be on the same device|two different devices"  # of torch 2.14 and 2.11

Batch = tuple[torch.Tensor, ...]


def binary(size: int, *event_shape: int) -> torch.Tensor:
    return torch.rand(size, *event_shape).round()


X = (torch.arange(24).reshape(6, 4) % 5 % 2).float()
Y = torch.arange(6) % 3


def same_on_both(
    run: Callable[[Any, Any], dict[str, Any]], pair: Any, batch: Any, on_cpu: bool = False, files: Any = ()
) -> None:
    """`run(pair, batch)` on "cuda" returns tensors that lie there, of the same values as on the CPU.

    Args:
        on_cpu: leave pair and batch on the CPU, as for `fit`, which moves them.
        files: further source files that may use tensors on the CPU.
    """
    twin = copy.deepcopy(pair)
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    expected = run(twin, batch)
    pyro.clear_param_store()
    with fake_cuda([*LOADERS, *files], [Component.build, VAE.replace]):
        if not on_cpu:
            pair, batch = to_cuda(pair), to_cuda(batch)
        pyro.set_rng_seed(1)
        found = run(pair, batch)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            assert value.device.type == "cuda", name
            value = values(value)
        close = torch.testing.assert_close
        close(value, expected[name], rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def gradients(pair: Any, batch: Batch, objective: Any = None) -> dict[str, Any]:
    """The loss and its gradients, by name without the number of the pair."""
    objective = objective or getattr(pair, "default_objective", Trace_ELBO)()
    out = {"loss": objective.loss_and_grads(pair.model, pair.guide, *batch)}
    moved = pyro.get_param_store().named_parameters()
    return out | {re.sub(r"_\d+\$\$\$", "$$$", name): p.grad for name, p in moved if p.grad is not None}


def drawn(pair: Any, batch: Batch) -> dict[str, Any]:
    """New data and reconstructions."""
    condition = tuple(t[:2] for t in batch[1:]) or None
    return {"new": generate(pair, 2, condition=condition, seed=0, like=batch), "again": reconstruct(pair, batch)}


def trained_and_drawn(pair: Any, batch: Batch) -> dict[str, Any]:
    return gradients(pair, batch) | drawn(pair, batch)


def weighted(pair: Any, batch: Batch) -> dict[str, Any]:
    return trained_and_drawn(pair, batch) | {"log w": log_weights(pair, batch, 2).detach()}


def everything(pair: Any, batch: Batch) -> dict[str, Any]:
    """All that is computed of a pair and data."""
    out = trained_and_drawn(pair, batch)
    score = log_likelihood(pair, batch, 30, compile="eager")  # so many that k-hat is computed
    terms = elbo_terms(pair, batch)
    draws = encode(pair, batch).sample((2,))
    out |= {"log p": score.values, "k-hat": score.khat, "error": score.mc_stderr, "ess": score.ess}
    out |= {"elbo": terms.elbo, "elbos": terms.values, "stderr": terms.stderr}
    out |= {"one level": reconstruct(pair, batch, output="sample", keep=1, seed=1)}
    return out | (draws if isinstance(draws, dict) else {"z": draws})


# --- the device -------------------------------------------------------------------------------------------------------


def test_devices_mix_as_on_a_card():
    weight = torch.arange(6.0).reshape(2, 3)
    with fake_cuda():
        x = torch.ones(3, device="cuda")
        assert (values(x + torch.tensor(1.0))).tolist() == [2, 2, 2]
        assert (x + 1).sum().item() == 6
        with pytest.raises(HostTensor, match="arange.* makes a tensor on the CPU"):
            torch.arange(3)
        with pytest.raises(HostTensor, match="reads a tensor on the CPU"):
            x * weight
        with pytest.raises(HostTensor):
            x.cpu()
    with fake_cuda([__file__]):
        for mixed in (
            lambda: x + torch.zeros(3),
            lambda: weight @ x,
            lambda: torch.where(x > 0, x, torch.zeros(3)),
            lambda: torch.stack([x, torch.zeros(3)]),
            lambda: x.gather(0, torch.arange(3)),
        ):
            with pytest.raises(RuntimeError, match=MIXED):
                mixed()


def test_gradients_are_those_of_torchs_engine():
    """Sums over paths, broadcasting, second derivatives, unused inputs, a graph that is cut."""

    def loss(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.softplus(net[0](x) + net[0].bias)
        return (net[1](h.chunk(2, -1)[0]) * h.detach().mean()).logsumexp(0).sum() + net[0].weight.square().mean()

    def both(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        loss(net, *batch).backward()
        loss(net, *batch).backward()
        x = batch[0].clone().requires_grad_()
        unused = torch.zeros_like(x).requires_grad_()
        first, none = torch.autograd.grad(loss(net, x), [x, unused], create_graph=True, allow_unused=True)
        assert none is None
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return {"first": first.detach(), "second": second} | {name: p.grad for name, p in net.named_parameters()}

    same_on_both(both, nn.Sequential(nn.Linear(4, 6), nn.Linear(3, 2)), (X,))


# --- components -------------------------------------------------------------------------------------------------------


def short(component: Any) -> Any:
    """An unbuilt twin with one of what it has several of: one map, one step."""
    component = fresh(component)
    for name in {"transforms", "steps"} & vars(component).keys():
        setattr(component, name, 1)
    return component


@pytest.mark.parametrize("prior", variants(PRIORS), ids=repr)
def test_priors(prior):
    same_on_both(trained_and_drawn, vae(prior=short(prior), guide=guide_for(prior)), (X,))


@pytest.mark.parametrize("prior", variants([cls for cls in PRIORS if cls is not priors.Program]), ids=repr)
def test_priors_given_y(prior):
    parts = {"condition": networks.Labels(3), "conditional_prior": True}
    same_on_both(trained_and_drawn, vae(prior=short(prior), guide=guide_for(prior), **parts), (X, Y))


def test_a_program_given_y():
    def shifted(y: torch.Tensor) -> None:
        pyro.sample("cause", dist.Normal(y[..., 0], 1.0))
        pyro.sample("effect", dist.Normal(0.0, 1.0))

    parts = {"condition": networks.Labels(3), "conditional_prior": True}
    same_on_both(trained_and_drawn, vae(prior=priors.Program(shifted), **parts), (X, Y))


@pytest.mark.parametrize("guide", variants(GUIDES), ids=repr)
def test_guides(guide):
    same_on_both(weighted, vae(prior=prior_for(guide), guide=short(guide)), (X,))


@pytest.mark.parametrize("likelihood", variants(LIKELIHOODS), ids=repr)
def test_likelihoods(likelihood):
    def run(pair: VAE, batch: Batch) -> dict[str, Any]:
        pair.start_at(batch[0].float().nanmean(0))
        pair.check(*batch)
        return trained_and_drawn(pair, batch)

    same_on_both(run, vae(likelihood=fresh(likelihood)), (data_for(likelihood, 6, (4,)),))


def test_a_colour_image_and_missing_values():
    image = vae((3, 2, 2), likelihood=likelihoods.DiscretizedLogisticMixture(2, 8))
    same_on_both(trained_and_drawn, image, (data_for(likelihoods.Categorical(8), 3, (3, 2, 2)),))
    kinds = [likelihoods.Normal(), likelihoods.Bernoulli(), likelihoods.Categorical(3), likelihoods.Poisson()]
    table = X.clone()
    table[0, 0] = table[1, 2] = torch.nan
    same_on_both(trained_and_drawn, vae(likelihood=likelihoods.Columns(kinds)), (table,))


def place(network: networks.Network) -> tuple[VAE, Batch]:
    """A VAE with the network in it, and data that it reads."""
    name = type(network).__name__
    if name == "DeepSets":
        sets = {"likelihood": likelihoods.Normal(), "decoder": networks.MLP([5])}
        return vae((4, 2), encoder=network, **sets), (torch.rand(3, 4, 2),)
    if name == "Embedding":
        condition = networks.Features([1], 3, network)
        return vae(condition=condition), (X, Y[:, None].float() % 2)
    shape = (1, 4, 4) if any(part in name for part in ("Conv", "ResNet", "PixelCNN")) else (4,)
    role = "decoder" if "Decoder" in name or name == "PixelCNN" else "encoder"
    return vae(shape, **{role: network}), (binary(3, *shape),)


@pytest.mark.parametrize("network", [n for n in variants(NETWORKS) if not isinstance(n, networks.Condition)], ids=repr)
def test_networks(network):
    same_on_both(trained_and_drawn, *place(fresh(network)))


@pytest.mark.parametrize("condition", [n for n in variants(NETWORKS) if isinstance(n, networks.Condition)], ids=repr)
def test_conditions(condition):
    y = torch.rand(6, *condition.y_shape) if len(condition.y_shape) else Y
    same_on_both(trained_and_drawn, vae(condition=fresh(condition)), (X, y))


# --- objectives -------------------------------------------------------------------------------------------------------


def made(cls: type[objectives.Objective]) -> objectives.Objective:
    return cls(nats=0.01) if cls is objectives.FreeBits else cls()


@pytest.mark.parametrize("cls", OBJECTIVES, ids=lambda cls: cls.__name__)
def test_objectives(cls):
    def run(pair: VAE, batch: Batch) -> dict[str, Any]:
        objective = made(cls)
        if hasattr(objective, "num_data"):
            objective.num_data = 6
        objective.progress(0.5)
        return gradients(pair, batch, objective) | {"value": objective.loss(pair.model, pair.guide, *batch)}

    same_on_both(run, vae(), (X,))


OF_CODES = [c for c in OBJECTIVES if not c.reparameterised and c not in (objectives.MeanFieldELBO, objectives.BetaTC)]


@pytest.mark.parametrize("cls", OF_CODES, ids=lambda cls: cls.__name__)
def test_objectives_of_discrete_latents(cls):
    pair = vae(prior=priors.Categorical(2), guide=guides.RelaxedCategorical(2, hard=True))
    same_on_both(lambda pair, batch: gradients(pair, batch, made(cls)), pair, (X,))


# --- pairs ------------------------------------------------------------------------------------------------------------


def mlp() -> networks.MLP:
    return networks.MLP([5])


def hierarchy(**arguments: Any) -> HierarchicalVAE:
    return HierarchicalVAE((4,), [3, 2], width=5, **arguments)


def labelled(**arguments: Any) -> SemiSupervisedVAE:
    parts = {"encoder": mlp(), "decoder": mlp(), "classifier": mlp()}
    return SemiSupervisedVAE((4,), 2, 3, **parts, **arguments)


def deep(**arguments: Any) -> VeryDeepVAE:
    strings = {"encoder": "4x1,4d4,1x1", "decoder": "1x1,4m1"}
    return VeryDeepVAE((1, 4, 4), **strings, width=4, latent_channels=1, **arguments)


UNSURE = torch.tensor([0, 1, 2, -1, -1, 0])
LENGTHS = torch.tensor([2, 1])
SEQUENCES = (torch.arange(8).reshape(2, 2, 2) % 5 % 2).float()
CONVOLUTIONS = {"encoder": networks.ConvEncoder([3]), "decoder": networks.ConvDecoder([3])}
GIVEN_Y = {"condition": networks.Labels(3), "conditional_prior": True}
PAIRS: dict[str, tuple[Callable[[], models.ComposedPair], Batch]] = {
    "VAE": (vae, (X,)),
    "VAE of images given y": (lambda: vae((1, 4, 4), **fresh_parts(CONVOLUTIONS | GIVEN_Y)), (binary(6, 1, 4, 4), Y)),
    "hierarchy, top-down": (hierarchy, (X,)),
    "hierarchy, bottom-up, given y": (lambda: hierarchy(order="bottom-up", **fresh_parts(GIVEN_Y)), (X, Y)),
    "semi-supervised": (labelled, (X, UNSURE)),
    "deep Markov": (lambda: DeepMarkovModel((2, 2), 2, hidden=4, emission=mlp()), (SEQUENCES, LENGTHS)),
    "recurrent": (lambda: VariationalRNN((2, 2), 2, 4, emission=mlp(), encoder=mlp()), (SEQUENCES, LENGTHS)),
    "very deep": (deep, (binary(3, 1, 4, 4),)),
}


SCORED = ("VAE", "VAE of images given y", "hierarchy, top-down", "deep Markov")  # the others have their weights taken


def fresh_parts(parts: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(parts)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    make, batch = PAIRS[name]
    same_on_both(everything if name in SCORED else weighted, make(), batch)


def test_further_ways_of_pairs():
    same_on_both(gradients, labelled(marginalize=False), (X, UNSURE))
    same_on_both(gradients, deep(checkpointing=True), (binary(3, 1, 4, 4),))


def test_none_is_missing():
    """Components are found by themselves; pairs are listed, as is what an objective of labels needs."""
    assert {type(make()) for make, _ in PAIRS.values()} == set(leaves(models.ComposedPair))
    walked = {*OBJECTIVES, objectives.Classified}
    assert {cls for cls in leaves(objectives.Objective) if not cls.__name__.startswith("_")} == walked
    assert networks.Wrapped not in NETWORKS


def test_a_network_of_the_users_own():
    same_on_both(trained_and_drawn, vae(encoder=nn.Linear(4, 4)), (X,))


def of_functions(nets: nn.ModuleList) -> Pair:
    """A pair of two functions, whose parameters Pyro's store holds: two networks', a constrained and a free one."""
    encoder, decoder = nets

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        shift = pyro.param("shift", lambda: x.new_zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", lambda: x.new_ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    return Pair(model, guide)


def test_a_pair_of_functions():
    def run(nets: nn.ModuleList, batch: Batch) -> dict[str, Any]:
        pair = of_functions(nets)
        svi = pyro.infer.SVI(pair.model, pair.guide, ClippedAdam({"lr": 0.1}), Trace_ELBO())
        losses = {f"loss {i}": svi.step(*batch) for i in range(2)}
        return losses | everything(pair, batch) | {"scale now": pyro.param("scale").detach()}

    same_on_both(run, nn.ModuleList([nn.Linear(4, 2), nn.Linear(2, 4)]), (X,))


def test_a_pair_without_modules():
    """The device is that of the data, and after `fit` that of the parameters in Pyro's store."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("mean", lambda: x.new_zeros(())), 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 4), 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1) * pyro.param("slope", lambda: x.new_ones(())), 1.0))

    def run(nets: nn.Module, batch: Batch) -> dict[str, Any]:
        pair = Pair(model, guide)
        before = weighted(pair, batch)
        fitted(pair, batch)
        return before | {"score": log_likelihood(pair, X, 3, compile="eager").values, "new now": generate(pair, 2)}

    same_on_both(run, nn.Identity(), (X,))


def test_a_latent_outside_the_plate():
    def run(nets: nn.Module, batch: Batch) -> dict[str, Any]:
        def model(x: torch.Tensor) -> None:
            w = pyro.sample("w", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

        def guide(x: torch.Tensor) -> None:
            pyro.sample("w", dist.Normal(pyro.param("loc", lambda: x.new_zeros(4)), 1.0).to_event(1))

        return {"elbo": elbo_terms(Pair(model, guide), batch).elbo}

    same_on_both(run, nn.Identity(), (X,))


def test_what_only_some_pairs_do():
    def classified(pair: SemiSupervisedVAE, batch: Batch) -> dict[str, Any]:
        return {"q(y | x)": classify(pair, batch[0])}

    same_on_both(classified, labelled(), (X, UNSURE))

    def foreseen(pair: DeepMarkovModel, batch: Batch) -> dict[str, Any]:
        x, lengths = batch
        return {"future": forecast(pair, x, 2, lengths, num_samples=2, seed=0)}

    same_on_both(foreseen, PAIRS["deep Markov"][0](), (SEQUENCES, LENGTHS))


# --- training and scores of data that lie on the CPU --------------------------------------------------------------------


def fitted(pair: Any, batch: Batch, **arguments: Any) -> dict[str, Any]:
    """Two epochs on the device of the pair."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    common = {"epochs": 2, "batch_size": 4, "seed": 0, "compile": "eager", "progress": False, "device": device}
    result = fit(pair, batch, **(common | arguments))
    assert torch.device(result.device).type == device
    told = ("loss", "validation_elbo", "validation_stderr", "grad_norm", "lr", "skipped")
    out = {f"{n} {i}": row[n] for i, row in enumerate(result.history) for n in told if n in row}
    return out | {str(i): value.detach() for i, value in enumerate(pyro.get_param_store().values())}


@pytest.mark.parametrize(
    "arguments",
    [
        lambda: {},
        lambda: {"validation": X, "patience": 1, "ema": 0.9, "clip": 1.0, "schedule": "cosine", "warmup": 0.5},
        lambda: {"objective": objectives.Annealed(), "skip_gradient_above": 1e6, "optimizer": torch.optim.SGD},
        lambda: {"objective": objectives.IWAE(2), "optimizer": ClippedAdam({"lr": 0.1}), "binarize": "dynamic"},
    ],
    ids=["defaults", "validation", "annealed", "Pyro's optimizer"],
)
def test_fit(arguments):
    relaxes = {"prior": priors.Categorical(2), "guide": guides.RelaxedCategorical(2)}
    same_on_both(lambda pair, batch: fitted(pair, batch, **arguments()), vae(**relaxes), (X,), on_cpu=True)


def test_fit_with_labels():
    same_on_both(fitted, labelled(), (X, UNSURE), on_cpu=True)


def test_a_prior_fitted_afterwards():
    def run(pair: VAE, batch: Batch) -> dict[str, Any]:
        found = fit_prior(pair, batch[0], priors.Mixture(2), num_samples=3, epochs=1)
        return {"before": found.before, "after": found.after, "gain": found.gain}

    same_on_both(run, vae(), (X,))


def test_replaced_parts_lie_where_the_others_do():
    def run(pair: VAE, batch: Batch) -> dict[str, Any]:
        new = pair.replace(prior=priors.Normal(), decoder=networks.MLP([3]))
        return gradients(new, batch)

    same_on_both(run, vae(), (X,))


@pytest.mark.parametrize("binarize", [None, "static", "threshold"])
def test_data_on_the_cpu_are_scored_where_the_pair_lies(binarize):
    def run(pair: VAE, batch: Batch) -> dict[str, Any]:
        score = log_likelihood(pair, X, 3, binarize=binarize, compile="eager")
        terms = elbo_terms(pair, X, binarize=binarize)
        return {"log p": score.values, "elbos": terms.values, "again": reconstruct(pair, X), "z": encode(pair, X).mean}

    same_on_both(run, vae(), (X,), files=[inspect.getfile(reconstruct)])


# --- planted faults ---------------------------------------------------------------------------------------------------


def an_identity_in_a_guide(self: guides.MeanField, params: torch.Tensor) -> Any:
    loc, scale = params.chunk(2, -1)
    return dist.Normal(loc @ torch.eye(2), scale.exp()).to_event(1)


def a_copied_identity_in_a_guide(self: guides.MeanField, params: torch.Tensor) -> Any:
    loc, scale = params.chunk(2, -1)
    return dist.Normal(loc @ torch.eye(2).to(loc), scale.exp()).to_event(1)


def an_index_in_a_guide(self: guides.MeanField, params: torch.Tensor) -> Any:
    loc, scale = params.chunk(2, -1)
    return dist.Normal(loc[..., torch.tensor([1, 0])], scale.exp()).to_event(1)


def zeros_in_a_prior(self: priors.StandardNormal, condition: torch.Tensor | None = None) -> Any:
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def an_attribute_of_a_prior(self: priors.StandardNormal, condition: torch.Tensor | None = None) -> Any:
    return dist.Normal(self.loc, 1.0).to_event(1)


@pytest.mark.parametrize(
    ("cls", "forward", "message"),
    [
        (guides.MeanField, an_identity_in_a_guide, "eye.* makes a tensor on the CPU"),
        (guides.MeanField, a_copied_identity_in_a_guide, "eye.* makes a tensor on the CPU"),
        (guides.MeanField, an_index_in_a_guide, "on the CPU of shape .2,"),
        (priors.StandardNormal, zeros_in_a_prior, "zeros.* makes a tensor on the CPU"),
        (priors.StandardNormal, an_attribute_of_a_prior, "expand.* makes a tensor on the CPU"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_found(cls, forward, message, monkeypatch):
    monkeypatch.setattr(cls, "forward", forward)
    monkeypatch.setattr(priors.StandardNormal, "loc", torch.zeros(2), raising=False)
    with pytest.raises(HostTensor, match=message):
        same_on_both(trained_and_drawn, vae(), (X,))
