"""The very deep VAE against a loop written by hand, a likelihood known by quadrature, and the paper's own sizes."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.distributions import Normal
from torch.nn import functional as F

from pyro_vae import data, elbo_terms, encode, fit, generate, likelihoods, load, log_likelihood, reconstruct, save
from pyro_vae.cli import main
from pyro_vae.errors import InputError
from pyro_vae.models.blocks import Bottleneck
from pyro_vae.models.very_deep import VeryDeepVAE
from pyro_vae.pair import log_prob, trace_pair
from pyro_vae.runs.saving import build

DIGITS = {"encoder": "8x1,8d2,4x1,4d4,1x1", "decoder": "1x1,4m1,4x1,8m4"}
PAPER = {
    "encoder": "32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
    "decoder": "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
}
TWENTY = {  # levels, on 8 × 8 and on 32 × 32
    8: {"encoder": "8x2,8d2,4x2,4d4,1x1", "decoder": "1x2,4m1,4x6,8m4,8x10"},
    32: {"encoder": "32x1,32d2,16x1,16d2,8x1,8d2,4x1,4d4,1x1", "decoder": "1x2,4m1,4x5,8m4,8x4,16m8,16x3,32m16,32x2"},
}


def small(event_shape=(1, 8, 8), **options) -> VeryDeepVAE:
    return VeryDeepVAE(event_shape, **{**DIGITS, "width": 8, "latent_channels": 2, **options})


def shaken(pair: VeryDeepVAE, by: float = 0.2) -> VeryDeepVAE:
    """The pair with no weight left at the zero or one where it starts."""
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return pair


def binary(size: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(size, *shape, dtype=dtype).round()


# --- structure --------------------------------------------------------------------------------------------------------


def test_the_papers_cifar_10_configuration():
    """39 M parameters (Child 2020, table 1). Its strings list 43 levels: 1 + 3 + 6 + 11 + 22."""
    with torch.device("meta"):
        pair = VeryDeepVAE((3, 32, 32), **PAPER, width=384, likelihood=likelihoods.DiscretizedLogisticMixture())
    assert sum(p.numel() for p in pair.parameters()) == pytest.approx(39e6, rel=0.03)
    assert [level.resolution for level in pair.top_down] == [1] + [4] * 3 + [8] * 6 + [16] * 11 + [32] * 22
    assert len(pair.bottom_up.blocks) == 33
    assert pair.output.last.out_channels == 100


def test_parameters_by_hand():
    """Every convolution and bias of a small pair, counted from the paper's description."""

    def conv(a, b, k=1):
        return a * b * k * k + b

    def block(a, m, b, k):
        return conv(a, m) + 2 * conv(m, m, k) + conv(m, b)

    def level(k):
        return block(16, 4, 6, k) + block(8, 4, 6 + 8, k) + conv(3, 8) + block(8, 4, 8, k)

    pair = small(width=8, latent_channels=3, bottleneck=0.5)
    up = conv(1, 8, 3) + 4 * block(8, 4, 8, 3) + block(8, 4, 8, 1)
    down = level(1) + 3 * level(3) + 8 * (1 + 16 + 64)
    assert sum(p.numel() for p in pair.parameters()) == up + down + 2 * 8 + conv(8, 1)


def test_starts_as_the_paper_says():
    pair = small()
    for level in pair.top_down:
        assert not level.prior_net.layers[-1].weight.any()
    assert all(not p.any() for n, p in pair.named_parameters() if n.endswith("bias"))
    torch.manual_seed(0)
    many = small(decoder="1x1,4m1,4x30,8m4")
    weights = torch.cat([level.residual.layers[-1].weight.flatten() for level in many.top_down])
    # He's standard deviation for 2 planes times the gain; 528 weights, so 5 of the estimate's own standard errors.
    wanted = math.sqrt(2 / 2) * math.sqrt(1 / 33)
    assert weights.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * 528))


def test_a_bottleneck_keeps_the_scale_of_what_it_reads():
    """A GELU leaves 0.425 of a normal's second moment, the weights double it: four times, so 0.85^2 = 0.72 of the scale."""
    torch.manual_seed(0)
    made = Bottleneck(64, 64, 64, torch.Size([8, 8]))(torch.randn(16, 64, 8, 8))
    assert 0.5 < made.std() < 1


@pytest.mark.parametrize(
    ("event_shape", "options"),
    [
        ((1, 28, 28), {"encoder": "28x2,28d2,14x2,14d2,7x2,7d7,1x1", "decoder": "1x1,7m1,7x2,14m7,14x2,28m14,28x2"}),
        ((1, 8, 4), {"encoder": "8x1,8d2,4d2,2x1", "decoder": "2x1,4m2,8m4"}),
        ((2, 12, 6), {"encoder": "12d3,4x1", "decoder": "4x1,12m4", "likelihood": likelihoods.Normal()}),
        ((3, 8, 8), {"likelihood": likelihoods.DiscretizedLogisticMixture(components=3), "checkpointing": True}),
        ((1, 8, 8), {"likelihood": likelihoods.Categorical(17)}),
        ((2, 1, 1), {"encoder": "1x1", "decoder": "1x3", "bottleneck": 1}),
    ],
    ids=["28", "8x4", "12x6", "colour", "classes", "1"],
)
def test_any_image(event_shape, options):
    """Draws and scores have their shapes, and every parameter a gradient."""
    pair = shaken(small(event_shape, **{n: copy.deepcopy(v) for n, v in options.items()}))
    x = generate(pair, 3, seed=1)
    assert x.shape == (3, *event_shape)
    pair.check(x)
    Trace_ELBO().differentiable_loss(pair.model, pair.guide, x).backward()
    for name, parameter in pair.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


# --- what the programs compute ----------------------------------------------------------------------------------------


def block(s: dict, name: str, h: torch.Tensor) -> torch.Tensor:
    for i in (1, 3, 5, 7):
        weight = s[f"{name}.layers.{i}.weight"]
        h = F.conv2d(F.gelu(h), weight, s[f"{name}.layers.{i}.bias"], padding=weight.shape[-1] // 2)
    return h


def pass_down(s: dict, levels: list, z: list[torch.Tensor], channels: int):
    """Yields h before and the prior after each level, at last the params; levels are (resolution, mixed in from)."""
    maps, n = {}, len(z[0])
    for t, (resolution, mixin) in enumerate(levels):
        name = f"top_down.{t}"
        if resolution not in maps:
            maps[resolution] = s[f"{name}.bias"].expand(n, -1, -1, -1)
        h = maps[resolution]
        if mixin is not None:
            h = h + maps[mixin].repeat_interleave(resolution // mixin, -1).repeat_interleave(resolution // mixin, -2)
        feats = block(s, f"{name}.prior_net", h)
        loc, log_scale = feats[:, :channels], feats[:, channels : 2 * channels]
        yield h, Normal(loc, log_scale.exp())
        h = h + feats[:, 2 * channels :]
        h = h + F.conv2d(z[t], s[f"{name}.project.weight"], s[f"{name}.project.bias"])
        maps[resolution] = h + block(s, f"{name}.residual", h)
    out = maps[resolution] * s["output.gain"] + s["output.bias"]
    yield F.conv2d(out, s["output.last.weight"], s["output.last.bias"]), None


def test_equals_a_loop_written_by_hand():
    """log q and log p of every level, and log p(x | z), to 1e-10 in float64."""
    pair = shaken(small()).double()
    x, s = binary(3, 1, 8, 8, dtype=torch.float64), pair.state_dict()
    guide, model = trace_pair(pair, (x,))
    z = [guide.nodes[f"z_{t}"]["value"] for t in range(4)]
    h = F.conv2d(x, s["bottom_up.first.weight"], s["bottom_up.first.bias"], padding=1)
    seen = {8: h}
    for i, rate in enumerate([1, 2, 1, 4, 1]):  # of "8x1,8d2,4x1,4d4,1x1"
        h = F.avg_pool2d(h + block(s, f"bottom_up.blocks.{i}", h), rate)
        seen[h.shape[-1]] = h
    assert sorted(seen) == [1, 4, 8]
    levels = [(1, None), (4, 1), (4, None), (8, 4)]  # of "1x1,4m1,4x1,8m4"
    for t, (h, prior) in enumerate(pass_down(s, levels, z, channels=2)):
        if prior is None:
            expected = -F.binary_cross_entropy_with_logits(h, x, reduction="none").sum((1, 2, 3))
            torch.testing.assert_close(log_prob(model.nodes["x"]), expected, rtol=0, atol=1e-10)
            continue
        loc, log_scale = block(s, f"top_down.{t}.posterior_net", torch.cat([h, seen[h.shape[-1]]], 1)).chunk(2, 1)
        for trace, law in ((guide, Normal(loc, log_scale.exp())), (model, prior)):
            expected = law.log_prob(z[t]).sum((1, 2, 3))
            torch.testing.assert_close(log_prob(trace.nodes[f"z_{t}"]).expand(3), expected, rtol=0, atol=1e-10)
    assert t == 4


def test_default_objective_has_the_kl_in_closed_form():
    """−log p(x | z) + Σ_t KL(q_t ‖ p_t) at the guide's draws, to 1e-10."""
    pair, x = shaken(small()).double(), binary(3, 1, 8, 8, dtype=torch.float64)
    torch.manual_seed(1)
    loss = pair.default_objective().loss(pair.model, pair.guide, x)
    torch.manual_seed(1)
    guide, model = trace_pair(pair, (x,))
    expected = -log_prob(model.nodes["x"]).sum()
    for t in range(4):
        q, p = guide.nodes[f"z_{t}"]["fn"].base_dist, model.nodes[f"z_{t}"]["fn"].base_dist
        square = (q.scale.square() + (q.loc - p.loc).square()) / p.scale.square()
        kl = p.scale.log() - q.scale.log() + square / 2 - 0.5
        expected = expected + kl.expand(3, *kl.shape[-3:]).sum()
    assert loss == pytest.approx(expected.item(), abs=1e-9)


def quadrature(pair: VeryDeepVAE, x: torch.Tensor, nodes: int) -> torch.Tensor:
    """log p(x) of images of 2 × 2 for levels "1x1,2m1" of one channel, by Gauss-Hermite over z's five numbers."""
    points, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(nodes))
    grid = torch.cartesian_prod(*[points] * 5)
    log_weight = torch.cartesian_prod(*[(weights / weights.sum()).log()] * 5).sum(-1)
    noise = [grid[:, :1].reshape(-1, 1, 1, 1), grid[:, 1:].reshape(-1, 1, 2, 2)]
    z = [torch.zeros_like(e) for e in noise]
    levels = [(1, None), (2, 1)]
    for t, (logits, prior) in enumerate(pass_down(pair.state_dict(), levels, z, channels=1)):  # noqa: B007 (read below)
        if prior is not None:
            z[t].copy_(prior.loc + prior.scale * noise[t])
    log_p = -F.binary_cross_entropy_with_logits(
        logits.expand(len(x), -1, -1, -1, -1), x[:, None].expand(-1, len(grid), -1, -1, -1), reduction="none"
    ).sum((-3, -2, -1))
    return (log_p + log_weight).logsumexp(-1)


def test_likelihood_equals_quadrature():
    """Importance sampling within 4 standard errors of log p(x) at 4 images: fails by chance once in 4,000 seeds."""
    pair = small((1, 2, 2), encoder="2x1,2d2", decoder="1x1,2m1", width=4, latent_channels=1, bottleneck=1.0).double()
    with torch.no_grad():  # weights at which ten nodes are enough
        for parameter in pair.parameters():
            parameter.mul_(0.5)
    shaken(pair, 0.25)
    with torch.no_grad():  # a guide that is wide enough for weights of finite variance
        for level in pair.top_down:
            level.posterior_net.layers[-1].weight.mul_(0.2)
            level.posterior_net.layers[-1].bias.copy_(torch.tensor([0.0, 0.3]))
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64).reshape(16, 1, 2, 2)
    exact = quadrature(pair, every, nodes=10)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert exact.std() > 0.1  # else a model that ignores z and its levels would do as well
    torch.testing.assert_close(exact, quadrature(pair, every, nodes=8), rtol=0, atol=1e-5)
    x = every[[0, 5, 10, 15]]
    score = log_likelihood(pair, x, num_samples=20_000, seed=0)
    assert (score.khat < 0.7).all()
    assert ((score.values - exact[[0, 5, 10, 15]]).abs() < 4 * score.mc_stderr).all()
    assert (score.mc_stderr < 0.02).all()


def test_particles_to_the_left():
    """With z of shape (K, N, ...) each particle has the densities that it has alone."""
    pair = shaken(small()).double()
    x = binary(3, 1, 8, 8, dtype=torch.float64)
    draws = encode(pair, x).sample((4,))
    assert draws["z_3"].shape == (4, 3, 2, 8, 8)

    def densities(z):
        trace = poutine.trace(poutine.condition(pair.model, z)).get_trace(x)
        return sum(log_prob(trace.nodes[name]) for name in (*z, "x"))

    together = densities(draws)
    assert together.shape == (4, 3)
    for k in range(4):
        alone = densities({name: value[k] for name, value in draws.items()})
        torch.testing.assert_close(together[k], alone, rtol=0, atol=1e-10)


def test_terms_by_site_and_how_they_start():
    """At the start every level's KL is finite and below a nat a latent number, pixels are near a coin's; terms add up."""
    pair = small()
    terms = elbo_terms(pair, binary(64, 1, 8, 8), num_samples=20)
    sizes = {"z_0": 2, "z_1": 32, "z_2": 32, "z_3": 128}
    assert set(terms.sites) == {*sizes, "x"}
    assert terms.elbo == pytest.approx(terms.sites["x"] - sum(terms.sites[name] for name in sizes), rel=1e-6)
    for name, size in sizes.items():
        assert math.isfinite(terms.sites[name])
        assert terms.sites[name] < size
    assert terms.reconstruction == pytest.approx(-64 * math.log(2), rel=0.1)


@pytest.mark.parametrize("size", [8, 32])
def test_twenty_levels_start_with_a_small_kl(size):
    pair = VeryDeepVAE((1, size, size), **TWENTY[size], width=16, latent_channels=4)
    numbers = sum(4 * level.resolution**2 for level in pair.top_down)
    terms = elbo_terms(pair, binary(8, 1, size, size))
    assert len(terms.sites) == 21
    assert abs(terms.kl) < 0.1 * numbers
    assert all(math.isfinite(value) for value in terms.sites.values())


def test_output_starts_at_the_mean():
    pair, mean = small(), torch.full((1, 8, 8), 0.2)
    assert pair.start_at(mean)
    assert generate(pair, 200, output="mean", seed=0).mean().item() == pytest.approx(0.2, abs=0.03)
    assert not small(likelihood=likelihoods.Categorical(5)).start_at(mean)


# --- with the rest of the library -------------------------------------------------------------------------------------


def test_captured_training_gives_what_eager_training_gives():
    x, losses = binary(64, 1, 8, 8), []
    for compile in ("eager", "graph"):
        torch.manual_seed(0)
        result = fit(small(), x, epochs=3, batch_size=16, seed=0, compile=compile, progress=False)
        losses.append([row["loss"] for row in result.history])
        assert result.how == {"eager": "eager", "graph": "captured"}[compile]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_recomputed_activations_change_no_gradient():
    """The same loss and gradients, and every block's convolutions run once more."""
    x, outcomes = binary(4, 1, 8, 8), []
    plain = shaken(small(), 0.1)
    for checkpointing in (False, True):
        pair = small(checkpointing=checkpointing)
        pair.load_state_dict(plain.state_dict())
        runs = []
        pair.top_down[1].posterior_net.layers[0].register_forward_hook(lambda *_: runs.append(0))  # noqa: B023
        pair.bottom_up.blocks[0].layers[0].register_forward_hook(lambda *_: runs.append(1))  # noqa: B023
        torch.manual_seed(1)
        loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, x)
        loss.backward()
        assert [runs.count(i) for i in (0, 1)] == [2, 2] if checkpointing else [1, 1]
        assert pair.recomputes is checkpointing
        outcomes.append([loss, *(p.grad for p in pair.parameters())])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other)


def test_saved_and_loaded(tmp_path):
    options = {"bottleneck": 0.5, "likelihood": likelihoods.DiscretizedLogisticMixture(2, levels=17)}
    pair = shaken(small(**options, checkpointing=True))
    x = generate(pair, 5, seed=0)
    save(pair, tmp_path / "run")
    again = load(tmp_path / "run")
    assert repr(again) == repr(pair)
    assert again.recomputes
    assert torch.equal(log_likelihood(again, x, 5).values, log_likelihood(pair, x, 5).values)


def test_temperature_scales_every_level():
    """At temperature 0 every draw of z is its mean, and images differ by x's noise alone."""
    pair = shaken(small(likelihood=likelihoods.Normal(scale=0.5)))
    spread = [generate(pair, 200, output="mean", temperature=t, seed=0).std(0).mean().item() for t in (1e-6, 0.5, 1.0)]
    assert spread[0] < 1e-4
    assert spread[0] < 0.8 * spread[1] < 0.8 * spread[2]


def test_upper_levels_kept_and_lower_ones_redrawn():
    """E[x | z] moves with the seed as far as the kept levels leave it free; the guide's draws are those of one seed."""
    pair = shaken(small(likelihood=likelihoods.Normal(scale=0.5)))
    x = torch.randn(20, 1, 8, 8)
    every = reconstruct(pair, x, seed=0)
    torch.testing.assert_close(reconstruct(pair, x, keep=4, seed=0), every)
    apart = [(reconstruct(pair, x, keep=keep, seed=0) - every).square().mean().item() for keep in (0, 2, 3, 4)]
    assert apart[0] > apart[1] > apart[2] > apart[3] == pytest.approx(0, abs=1e-10)


def test_from_the_command_line(tmp_path):
    arguments = ["--encoder", "8x1,8d2,4x1", "--decoder", "4x1,8m4", "--width", "8", "--latent_channels", "1"]
    named = [f"--model.{word[2:]}" if word.startswith("--") else word for word in arguments]
    told = ["train", "--model", "VeryDeepVAE", *named, "--epochs", "1", "--samples", "2", "--quiet"]
    assert main([*told, "--out", str(tmp_path / "run")]) == 0
    pair = load(tmp_path / "run")
    assert (type(pair), pair.decoder, pair.width) == (VeryDeepVAE, "4x1,8m4", 8)


@pytest.mark.parametrize(
    ("name", "event_shape", "levels", "millions"),
    [("cifar10_very_deep", (3, 32, 32), 43, 39.1), ("mnist_very_deep", (1, 28, 28), 15, 0.438)],
)
def test_shipped_configs(name, event_shape, levels, millions):
    """The YAML is what the command line takes, and describes the pair that its comment says."""
    path = Path(__file__).parent.parent / "examples" / f"{name}.yaml"
    config = yaml.safe_load(path.read_text())
    assert set(config["fit"]) <= set(inspect.signature(fit).parameters)
    with torch.device("meta"):
        pair = build({**config["model"], "init_args": {**config["model"]["init_args"], "event_shape": event_shape}})
    assert len(pair.top_down) == levels
    assert sum(p.numel() for p in pair.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
    assert main(["train", "--config", str(path), "--data", "nowhere.npz"]) == 2  # parsed; the data are what is missing


@pytest.mark.slow
@pytest.mark.parametrize(("size", "steps"), [(8, 150), (32, 100)])
def test_twenty_levels_train(size, steps):
    """No NaN, and a bound that falls from each third of the run to the next, on the binarised digits."""
    digits = data.load("digits", size=size, binarize="static")
    pair = VeryDeepVAE((1, size, size), **TWENTY[size], width=8, latent_channels=2)
    assert len(pair.top_down) == 20
    x = digits.train.batch(torch.arange(8 * steps // 3))[0]
    settings = {"epochs": 3, "batch_size": 8, "lr": 2e-3, "seed": 0, "compile": "eager", "progress": False}
    history = fit(pair, x, skip_gradient_above=1e4, **settings).history
    losses = [row["loss"] for row in history]
    assert losses[0] > losses[1] > losses[2]
    assert losses[-1] < 0.75 * size * size * math.log(2)
    assert all(row["skipped"] == 0 for row in history)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "16x1,16d2,8x1"}, "encoder=.*'16x1' is at resolution 16, but the image has 8"),
        ({"encoder": "8x1,4x1"}, "'4x1' is at resolution 4, but feature maps have come down to 8"),
        ({"encoder": "8x1,8d3"}, r"'8d3' can't pool feature maps of \(8, 8\) by 3"),
        ({"encoder": "8x1,8d1"}, "can't pool"),
        ({"encoder": "8x1;8d2"}, "encoder='8x1;8d2': '8x1;8d2' is not understood; .*'32x4'.*'32d2'"),
        ({"encoder": "8x0"}, "'8x0' is not understood"),
        ({"encoder": "8x1,"}, "'' is not understood"),
        ({"encoder": 8}, "encoder=8: 8 is not understood"),
        ({"encoder": "8m4"}, "'8m4' is not understood"),
        ({"decoder": "1x1,4m1,8d2"}, "'8d2' is not understood; .*'32m16'"),
        ({"decoder": "2x1,4m2,8m4"}, "'2x1' is at a resolution that encoder=.* never has; it has 8, 4, 1"),
        ({"decoder": "1x1,4m2,8m4"}, "'4m2' upsamples feature maps of resolution 2, but those before it are at 1"),
        ({"decoder": "4m1,8m4"}, "'4m1' upsamples feature maps of resolution 1, but there are none yet"),
        ({"decoder": "4x1,1m4,8m4"}, "'1m4' upsamples"),
        ({"decoder": "1x1,4x1,8m4"}, "'4x1' does not follow from resolution 1; write '4m1' first"),
        ({"decoder": "1x1,4m1"}, "ends at resolution 4, but the image has 8"),
        ({"decoder": "4x1,8m4"}, "starts at resolution 4, so nothing reads .* makes at 1; start with '1x1'"),
        ({"event_shape": (64,)}, r"event_shape=\(64,\) must be that of an image"),
        ({"width": 0}, "width=0 must be a whole number"),
        ({"latent_channels": 1.5}, "latent_channels=1.5 must be a whole number"),
        ({"bottleneck": -1}, "bottleneck=-1 must be a positive number"),
        ({"bottleneck": 0.1}, "bottleneck=0.1 of width=8 leaves no plane"),
        ({"checkpointing": "yes"}, "checkpointing='yes' is not known"),
        ({"likelihood": torch.nn.ReLU()}, r"likelihood=ReLU\(\) must be a pyro_vae.likelihoods.base.Likelihood"),
    ],
)
def test_refused_by_message(options, message):
    with pytest.raises(InputError, match=message):
        small(**options)


def test_data_refused_by_message():
    pair = small()
    with pytest.raises(InputError, match=r"x has shape \(2, 1, 4, 4\)"):
        fit(pair, binary(2, 1, 4, 4), epochs=1, progress=False)
    with pytest.raises(InputError, match="is grey"):
        fit(pair, torch.full((2, 1, 8, 8), 0.5), epochs=1, progress=False)
    with pytest.raises(InputError, match="float64"):
        fit(pair, binary(2, 1, 8, 8).double(), epochs=1, progress=False)
