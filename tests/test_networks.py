"""Networks against a few lines of plain torch, and decoders that go pixel by pixel against all images there are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from pyro_vae import Pair, generate, likelihoods, log_likelihood, networks, reconstruct
from pyro_vae.errors import InputError
from pyro_vae.networks.layers import residual_block
from pyro_vae.pair import evaluating
from tests.component_table import NETWORKS, fresh, variants

IMAGES = [(1, 8, 8), (3, 12, 10), (2, 7, 5), (9, 6)]
# Which shapes each network connects, where not any to any.
SHAPES: dict[type, tuple[tuple[int, ...], tuple[int, ...]]] = {
    networks.ConvEncoder: ((2, 7, 5), (4,)),
    networks.GatedConvEncoder: ((2, 7, 5), (4,)),
    networks.ResNetEncoder: ((2, 7, 5), (4,)),
    networks.ConvDecoder: ((4,), (2, 7, 5)),
    networks.GatedConvDecoder: ((4,), (2, 7, 5)),
    networks.ResNetDecoder: ((4,), (2, 7, 5)),
    networks.PixelCNN: ((4,), (2, 4, 3)),
    networks.DeepSets: ((5, 3), (4,)),
    networks.Embedding: ((), (4,)),
}
PLAIN = [network for network in variants(NETWORKS) if not isinstance(network, (networks.PixelCNN, networks.Condition))]


def built(network: networks.Network, in_shape=None, out_shape=None) -> networks.Network:
    """A fresh copy at the sizes given, or at some that suit it."""
    suited = SHAPES.get(type(network), ((3, 2), (2, 2)))
    shapes = (in_shape if in_shape is not None else suited[0], out_shape if out_shape is not None else suited[1])
    return fresh(network).build(in_shape=torch.Size(shapes[0]), out_shape=torch.Size(shapes[1]))


def inputs_for(network: networks.Network, *leading: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    shape = (*leading, *network.in_shape)
    return torch.randint(10, shape) if isinstance(network, networks.Embedding) else torch.randn(shape, dtype=dtype)


# --- what every network does --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", PLAIN, ids=repr)
def test_any_leading_dimensions_in_float64(network):
    net = built(network).double().eval()
    x = inputs_for(net, 3, 4, dtype=torch.float64)
    out = net(x)
    assert out.shape == (3, 4, *net.out_shape)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out[1, 2], net(x[1, 2]))
    torch.testing.assert_close(out[1], net(x[1]))


@pytest.mark.parametrize("network", PLAIN, ids=repr)
def test_every_parameter_receives_a_gradient(network):
    """Above rounding, so that a bias before a batch norm, whose gradient is 1e-9 and not 0, would be found."""
    net = built(network)
    net(inputs_for(net, 50)).pow(3).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize("network", PLAIN, ids=repr)
def test_networks_are_captured(network):
    net = built(network)
    x, other = inputs_for(net, 2, 3), inputs_for(net, 2, 3)
    graph = make_fx(net)(x)
    torch.manual_seed(1)
    expected = net(other)
    torch.manual_seed(1)
    torch.testing.assert_close(graph(other), expected)


@pytest.mark.parametrize("network", PLAIN, ids=repr)
def test_outputs_start_where_they_are_told(network):
    """The output moves by exactly what the bias was moved by; a convolution has one bias a plane."""
    net = built(network).double().eval()
    bias = torch.randn(net.out_shape, dtype=torch.float64)
    x = inputs_for(net, 3, dtype=torch.float64)
    if isinstance(net, networks.Embedding):
        assert not net.start_output(bias)
        return
    assert net.start_output(torch.zeros_like(bias))
    at_zero = net(x)
    assert net.start_output(bias)
    by_plane = type(net) in SHAPES and len(net.out_shape) == 3
    expected = bias.mean((1, 2), keepdim=True).expand_as(bias) if by_plane else bias
    torch.testing.assert_close(net(x) - at_zero, expected.expand(3, *net.out_shape))


def test_a_bias_of_another_shape_and_a_module_of_the_users_are_left_alone():
    net = built(networks.MLP([3]))
    with pytest.raises(InputError, match=r"bias has shape \(4,\).*out_shape=\(2, 2\)"):
        net.start_output(torch.zeros(4))
    linear = nn.Linear(2, 3)
    before = linear.bias.clone()
    assert not built(networks.Wrapped(linear), (2,), (3,)).start_output(torch.ones(3))
    assert torch.equal(linear.bias, before)


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("name", ["Conv", "GatedConv", "ResNet"])
def test_images_of_any_size(name, shape):
    for channels in ([], [3], [4, 3, 2], [2] * 5):
        encoder = built(getattr(networks, f"{name}Encoder")(channels), shape, (4,))
        decoder = built(getattr(networks, f"{name}Decoder")(channels), (4,), shape)
        assert decoder(encoder(torch.randn(2, 3, *shape))).shape == (2, 3, *shape)


def test_glorot_weights_keep_a_signals_size():
    """Ten linear layers of 300: the variance stays within a factor of two, under torch's own it falls by 3 each layer."""
    x = torch.randn(500, 300)
    size = {}
    for init in ("torch", "glorot"):
        net = built(networks.MLP([300] * 9, "Identity", init=init), (300,), (300,))
        size[init] = net(x).var().item()
    assert 0.5 < size["glorot"] < 2
    assert size["torch"] < 0.01


def test_parameter_names_stay():
    """Weights saved by earlier releases go by these names."""
    assert list(built(networks.MLP([5, 4])).state_dict()) == [
        f"layers.{i}.{kind}" for i in (1, 3, 5) for kind in ("weight", "bias")
    ]
    assert list(built(networks.ConvEncoder([3, 4])).state_dict()) == [
        f"layers.{i}.{kind}" for i in (0, 2, 5) for kind in ("weight", "bias")
    ]
    assert list(built(networks.ConvDecoder([4, 3])).state_dict()) == [
        f"layers.{i}.{kind}" for i in (1, 4, 6) for kind in ("weight", "bias")
    ]


# --- each against plain torch ---------------------------------------------------------------------------------------


def test_residual_layers_add_their_input():
    net = built(networks.MLP([4, 4], "Tanh", residual=True), (3,), (2,)).double()
    x = torch.randn(6, 3).double()
    weights = dict(net.named_parameters())
    h = x @ weights["layers.1.skip.weight"].T
    h = h + torch.tanh(x @ weights["layers.1.branch.0.weight"].T + weights["layers.1.branch.0.bias"])
    h = h + torch.tanh(h @ weights["layers.2.branch.0.weight"].T + weights["layers.2.branch.0.bias"])
    torch.testing.assert_close(net(x), h @ weights["layers.3.weight"].T + weights["layers.3.bias"])
    assert len(weights) == 7


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_normalised_layers(norm):
    net = built(networks.MLP([4], "Tanh", norm=norm), (3,), (2,)).double()
    x = torch.randn(6, 3).double()
    linear, last = net.layers[1], net.layers[4]
    h = x @ linear.weight.T + (0 if linear.bias is None else linear.bias)
    over = 0 if norm == "batch" else 1
    h = (h - h.mean(over, keepdim=True)) / (h.var(over, keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(net(x), torch.tanh(h) @ last.weight.T + last.bias)


def test_dropout_in_training_only():
    """30 % of 2000 units are left out, within 4 standard errors (false alarm 6e-5), and none in evaluation."""
    net = built(networks.MLP([2000], "Identity", dropout=0.3), (1,), (1,))
    x = torch.ones(1, 1)
    share = (net.layers[:-1](x) == 0).double().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    assert net(x) != net(x)
    net.eval()
    torch.testing.assert_close(net(x), net.layers[4](net.layers[1](x)))


def test_gated_layers():
    net = built(networks.GatedMLP([4]), (3,), (2,)).double()
    x = torch.randn(6, 3).double()
    both, last = net.layers[1], net.layers[3]
    (w, v), (b, c) = both.weight.chunk(2), both.bias.chunk(2)
    h = (x @ w.T + b) * torch.sigmoid(x @ v.T + c)
    torch.testing.assert_close(net(x), h @ last.weight.T + last.bias)


def test_gated_convolutions():
    net = built(networks.GatedConvEncoder([4]), (2, 6, 6), (2,)).double()
    x = torch.randn(3, 2, 6, 6).double()
    both, last = net.layers[0], net.layers[3]
    (w, v), (b, c) = both.weight.chunk(2), both.bias.chunk(2)
    h = F.conv2d(x, w, b, 2, 1) * torch.sigmoid(F.conv2d(x, v, c, 2, 1))
    torch.testing.assert_close(net(x), h.flatten(1) @ last.weight.T + last.bias)


@pytest.mark.parametrize(("before", "after", "stride"), [(3, 3, 1), (3, 4, 2), (4, 4, 2)])
def test_residual_blocks_are_pre_activated(before, after, stride):
    block = residual_block(before, after, stride, "ReLU", "layer").double()
    x = torch.randn(2, before, 7, 5).double()
    shortcut, (_, _, first, _, _, second) = block.skip, block.branch

    def normalised(h: torch.Tensor) -> torch.Tensor:
        flat = h.flatten(1)
        return (
            (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        ).view_as(h)

    h = F.conv2d(normalised(x).relu(), first.weight, first.bias, stride, 1)
    h = F.conv2d(normalised(h).relu(), second.weight, second.bias, 1, 1)
    same = before == after and stride == 1
    expected = h + (x if same else F.conv2d(x, shortcut.weight, None, stride))
    torch.testing.assert_close(block(x), expected)


def test_batch_norm_learns_its_averages_in_a_captured_graph():
    net = built(networks.ConvEncoder([3], norm="batch"), (1, 6, 6), (2,))
    x = torch.randn(40, 1, 6, 6) + 3
    graph = make_fx(net)(x)
    before = net.layers[1].running_mean.clone()
    graph(x)
    expected = 0.9 * before + 0.1 * net.layers[0](x).mean((0, 2, 3))
    torch.testing.assert_close(net.layers[1].running_mean, expected)


def test_batch_norm_takes_a_last_batch_of_one_by_its_running_averages():
    for net in (built(networks.MLP([4], norm="batch")), built(networks.ConvEncoder([3], norm="batch"), (2, 2, 2))):
        net(inputs_for(net, 20))
        x = inputs_for(net, 1)
        before = {name: buffer.clone() for name, buffer in net.named_buffers()}
        in_training = net(x)
        assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
        torch.testing.assert_close(in_training, net.eval()(x))


# --- sets and labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
def test_sets_have_no_order_and_absent_elements_no_say(pool):
    net = built(networks.DeepSets([6, 4], [5], pool), (5, 3), (2,)).double()
    x = torch.randn(4, 5, 3).double()
    torch.testing.assert_close(net(x), net(x[:, torch.randperm(5)]))
    assert not torch.allclose(net(x), net(x.roll(1, 0)))
    shorter = x.clone()
    shorter[:, 3] = torch.nan
    shorter[:, 1, 2] = torch.nan  # one NaN makes the element absent
    codes = net.elements(x[:, [0, 2, 4]])
    pooled = {"sum": codes.sum(1), "mean": codes.mean(1), "max": codes.amax(1)}[pool]
    torch.testing.assert_close(net(shorter), net.layers(pooled))
    empty = net(torch.full((5, 3), torch.nan).double())
    torch.testing.assert_close(empty, net.layers(torch.zeros(4).double()))
    shorter[:, [0, 4]] = torch.nan
    torch.testing.assert_close(net(shorter), net.layers(net.elements(x[:, 2])))


@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
def test_absent_elements_leave_gradients_finite(pool):
    net = built(networks.DeepSets([4], [], pool), (3, 2), (2,))
    x = torch.randn(5, 3, 2)
    x[0], x[1, 1] = torch.nan, torch.nan
    net(x).square().sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in net.parameters())


def test_labels_are_looked_up():
    net = built(networks.Embedding(4), (), (2, 3))
    one = built(networks.Embedding(4), (1,), (2, 3))
    one.load_state_dict(net.state_dict())
    labels = torch.randint(4, (5, 6))
    expected = (F.one_hot(labels, 4).float() @ net.layers.weight).reshape(5, 6, 2, 3)
    torch.testing.assert_close(net(labels), expected)
    torch.testing.assert_close(net(labels.float()), expected)
    torch.testing.assert_close(one(labels[..., None].float()), expected)
    with pytest.raises(IndexError):
        net(torch.tensor([4]))


# --- images drawn pixel by pixel --------------------------------------------------------------------------------------


def pixel_by_pixel(likelihood: Any, event_shape: tuple[int, ...], **arguments: Any) -> tuple[Any, Any]:
    """A PixelCNN from two latents and its likelihood, both built, in float64; weights wide enough to matter."""
    likelihood = fresh(likelihood).build(event_shape=torch.Size(event_shape)).double()
    net = networks.PixelCNN(**{"planes": 8, "depth": 2, "kernel": 3, "decoder_channels": [4], **arguments}).build(
        in_shape=torch.Size([2]),
        out_shape=likelihood.params_shape,
        event_shape=likelihood.event_shape,
        input_shape=likelihood.input_shape,
    )
    with torch.no_grad():
        for parameter in net.layers.parameters():
            parameter.mul_(2.0)
    return net.double(), likelihood


def all_images(values: int, event_shape: tuple[int, ...]) -> torch.Tensor:
    size = math.prod(event_shape)
    return torch.tensor(list(itertools.product(range(values), repeat=size))).double().reshape(-1, *event_shape)


@pytest.mark.parametrize(("depth", "kernel"), [(1, 3), (2, 3), (1, 5)])
def test_a_pixel_depends_on_all_before_it_within_reach_and_on_none_else(depth, kernel):
    """The Jacobian's pattern of zeros is exactly that of the order: no later entry, no blind spot.

    Its sum over several images, since rectifiers may cut a path at one of them.
    """
    shape = (2, 5, 6)
    net, likelihood = pixel_by_pixel(likelihoods.Normal(1.0), shape, planes=12, depth=depth, kernel=kernel)
    p = net.distribution(torch.randn(2).double(), likelihood)
    slopes = sum(
        torch.autograd.functional.jacobian(p.params, torch.randn(shape).double(), vectorize=True).abs()
        for _ in range(4)
    )
    reach = depth * (kernel // 2)
    c, i, j = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    up = i[..., None, None, None] - i
    left = j[..., None, None, None] - j
    same_row = (up == 0) & (left >= 0) & (left <= reach) & ((left > 0) | (c < c[..., None, None, None]))
    above = (up >= 1) & (up <= 1 + reach) & (left.abs() <= reach)
    assert torch.equal(slopes != 0, same_row | above)


@pytest.mark.parametrize(
    ("likelihood", "values", "shape"),
    [
        (likelihoods.Bernoulli(), 2, (1, 2, 2)),
        (likelihoods.Bernoulli(), 2, (2, 3)),
        (likelihoods.Bernoulli(), 2, (2, 2, 2)),
        (likelihoods.Categorical(3), 3, (2, 1, 2)),
        (likelihoods.Categorical(3), 3, (2, 2)),
        (likelihoods.Binomial(2), 3, (1, 2, 2)),
        (likelihoods.DiscretizedLogistic("per datum", levels=4), 4, (3, 1, 1)),
        (likelihoods.DiscretizedLogistic(levels=3), 3, (2, 2)),
    ],
    ids=repr,
)
def test_all_images_together_have_probability_one(likelihood, values, shape):
    net, likelihood = pixel_by_pixel(likelihood, shape)
    p = net.distribution(torch.randn(3, 2).double(), likelihood)
    images = all_images(values, shape)
    log_p = p.log_prob(images[:, None])
    assert log_p.shape == (len(images), 3)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(3).double())
    assert (log_p.std(0) > 0.05).all()
    independent = likelihood(p.params(images[:1])).log_prob(images[:, None])
    assert not torch.allclose(log_p, independent)  # the order matters, or the sum would say little


@pytest.mark.parametrize(
    ("likelihood", "shape"),
    [
        (likelihoods.Bernoulli(), (1, 6, 4)),
        (likelihoods.Normal("per datum"), (2, 5, 3)),
        (likelihoods.Normal("shared"), (6, 4)),
        (likelihoods.Categorical(3), (2, 3, 3)),
        (likelihoods.Categorical(3), (6, 2)),
        (likelihoods.Binomial(4), (3, 6, 2)),
        (likelihoods.DiscretizedLogistic("per datum", levels=8), (2, 5, 3)),
        (likelihoods.Normal("per value"), (2, 5, 3)),
        (likelihoods.VonMises("shared"), (2, 5, 3)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("alike", [True, False])
def test_log_prob_is_the_product_of_the_conditionals_met_in_sampling(likelihood, shape, alike, monkeypatch):
    """One layer sees two rows up, so that the taller images are drawn from a window that moves."""
    net, likelihood = pixel_by_pixel(likelihood, shape, depth=1)
    p = net.distribution(torch.randn(3, 2).double(), likelihood)
    alike = alike and likelihood.arguments().get("scale") != "per value"
    assert p._entries_are_alike() == (likelihood.arguments().get("scale") != "per value")
    monkeypatch.setattr(p, "_entries_are_alike", lambda: alike)
    met: list[tuple[Any, torch.Tensor]] = []

    def pick(entries: Any) -> torch.Tensor:
        values = entries.sample()
        met.append((entries, values))
        return values

    x = p._drawn(torch.Size([2]), pick)
    assert x.shape == (2, 3, *shape)
    assert x.dtype == likelihood(torch.zeros(likelihood.params_shape).double()).sample().dtype
    likelihood.check(x.reshape(-1, *shape))
    channels, height, width = (1, *shape)[-3:]
    total: Any = 0.0
    places = itertools.product(range(height), range(width), range(channels))
    for (i, j, c), (entries, values) in zip(places, met[1:], strict=True):
        log_p = entries.base_dist.log_prob(values)
        log_p = log_p.reshape(6, channels, *((1, 1) if alike else (height, width)))
        total = total + (log_p[:, c, 0, 0] if alike else log_p[:, c, i, j])
    torch.testing.assert_close(total.reshape(2, 3), p.log_prob(x))


def test_draws_follow_their_own_density():
    """Pearson's χ² of 4000 draws over all 64 images, the rare ones taken together (false alarm 1e-4)."""
    net, likelihood = pixel_by_pixel(likelihoods.Bernoulli(), (1, 2, 3))
    p = net.distribution(torch.randn(2).double(), likelihood)
    with torch.no_grad():
        expected = 4000 * p.log_prob(all_images(2, (1, 2, 3))).exp()
    drawn = p.sample((4000,)).reshape(4000, 6) @ 2.0 ** torch.arange(5, -1, -1).double()
    counts = torch.bincount(drawn.long(), minlength=64).double()
    often = expected >= 10
    expected, counts = (torch.cat([n[often], n[~often].sum()[None] + 1e-9]) for n in (expected, counts))
    chi2 = ((counts - expected).square() / expected).sum()
    assert chi2 < scipy.stats.chi2.isf(1e-4, int(often.sum()))


def test_mean_and_mode_are_what_they_say():
    """The means of 3000 draws average to E[x | z] within 4 standard errors for each of 4 pixels (false alarm 3e-4)."""
    net, likelihood = pixel_by_pixel(likelihoods.Bernoulli(), (1, 2, 2))
    z = torch.randn(2).double()
    with torch.no_grad():
        images = all_images(2, (1, 2, 2))
        weights = net.distribution(z, likelihood).log_prob(images).exp()
        exact = (weights[:, None, None, None] * images).sum(0)
        means = net.distribution(z.expand(3000, 2), likelihood).mean
        error = (means.mean(0) - exact).abs()
        assert (error <= 4 * means.std(0) / 3000**0.5 + 1e-12).all()
        assert (means.std(0).flatten()[1:] > 0).all()
    state = torch.get_rng_state()
    p = net.distribution(z, likelihood)
    mode = p.mode
    assert torch.equal(state, torch.get_rng_state())
    for i, j in itertools.product(range(2), range(2)):  # no entry of the mode has a likelier value given those before
        assert mode[0, i, j] == (p.params(mode)[0, i, j] > 0)


def test_a_fair_coin_and_a_categorical_have_modes_too():
    net, likelihood = pixel_by_pixel(likelihoods.Bernoulli(), (1, 2, 2))
    with torch.no_grad():
        net.layers.out.weight.zero_()
        net.layers.out.bias.zero_()
    assert torch.equal(net.distribution(torch.zeros(2).double(), likelihood).mode, torch.zeros(1, 2, 2).double())
    net, likelihood = pixel_by_pixel(likelihoods.Categorical(3), (2, 2))
    p = net.distribution(torch.randn(4, 2).double(), likelihood)
    likelihood.check(p.mode)
    with pytest.raises(NotImplementedError, match="no mean"):
        _ = p.mean


@pytest.mark.parametrize("likelihood", [likelihoods.Bernoulli(), likelihoods.Categorical(3)], ids=repr)
def test_any_batch_shape_and_expand(likelihood):
    net, likelihood = pixel_by_pixel(likelihood, (2, 3, 2))
    z = torch.randn(4, 3, 2).double()
    p = net.distribution(z, likelihood)
    assert (p.batch_shape, p.event_shape) == ((4, 3), (2, 3, 2))
    x = p.sample()
    log_p = p.log_prob(x)
    torch.testing.assert_close(log_p[1, 2], net.distribution(z[1, 2], likelihood).log_prob(x[1, 2]))
    wider = net.distribution(z[1], likelihood).expand([4, 3])
    assert wider.batch_shape == (4, 3)
    torch.testing.assert_close(wider.log_prob(x)[1], log_p[1])
    assert wider.sample((2,)).shape == (2, 4, 3, 2, 3, 2)
    assert p.support.check(x).all()
    assert not p.has_rsample


def test_every_parameter_of_a_pixelcnn_receives_a_gradient_and_so_does_z():
    for likelihood in (likelihoods.Bernoulli(), likelihoods.Normal("per datum"), likelihoods.Categorical(3)):
        net, likelihood = pixel_by_pixel(likelihood, (2, 4, 3))
        z = torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
        p = net.distribution(z, likelihood)
        x = p.sample()
        assert not x.requires_grad
        p.log_prob(x).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad.abs().max() > 1e-6, name
        assert (z.grad != 0).all()


def test_a_pixelcnn_starts_at_the_bias_it_is_told():
    net, _ = pixel_by_pixel(likelihoods.Categorical(3), (2, 4, 3))
    bias = torch.randn(6, 4, 3).double()
    assert net.start_output(bias)
    torch.testing.assert_close(net.layers.out.bias, bias.mean((1, 2)))
    net, _ = pixel_by_pixel(likelihoods.Categorical(3), (4, 3))
    bias = torch.randn(12, 3).double()
    assert net.start_output(bias)
    torch.testing.assert_close(net.layers.out.bias, bias.reshape(3, 12).mean(1))


def test_other_networks_say_what_the_likelihood_says():
    likelihood = likelihoods.Bernoulli().build(event_shape=torch.Size([3]))
    net = built(networks.MLP([4]), (2,), (3,))
    z, x = torch.randn(5, 2), torch.rand(5, 3).round()
    torch.testing.assert_close(net.distribution(z, likelihood).log_prob(x), likelihood(net(z)).log_prob(x))


class Written:
    """A pair by hand whose decoder goes pixel by pixel."""

    def __init__(self, net: Any, likelihood: Any):
        self.net, self.likelihood = net, likelihood

    def model(self, x: torch.Tensor) -> None:
        pyro.module("decoder", self.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.net.distribution(z, self.likelihood), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


def test_a_pair_with_such_a_decoder_is_scored_and_drawn():
    """log p(x) by importance sampling equals that by the trapezoid rule within 4 standard errors (false alarm 3e-4)."""
    net, likelihood = pixel_by_pixel(likelihoods.Bernoulli(), (1, 3, 2))
    written = Written(net, likelihood)
    pair = Pair(written.model, written.guide)
    x = torch.rand(4, 1, 3, 2).double().round()
    axis = torch.linspace(-6, 6, 61).double()
    grid = torch.cartesian_prod(axis, axis)
    with evaluating(pair):
        log_joint = net.distribution(grid[:, None], likelihood).log_prob(x)
        exact = (dist.Normal(0.0, 1.0).log_prob(grid).sum(-1, keepdim=True) + log_joint).logsumexp(0) + 2 * math.log(
            0.2
        )
        spread = log_joint.exp()
    scores = log_likelihood(pair, x, 2000)
    by_draws = torch.as_tensor(scores.values).double()
    weights = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1, keepdim=True).exp() * 0.04
    relative = ((weights * spread**2).sum(0) / exact.exp() ** 2 - 1).clamp(min=0).sqrt() / 2000**0.5
    assert ((by_draws - exact).abs() < 4 * relative + 1e-3).all()
    assert generate(pair, 3, like=x).shape == (3, 1, 3, 2)
    assert reconstruct(pair, x).isfinite().all()


def test_a_pixelcnn_is_captured():
    net, likelihood = pixel_by_pixel(likelihoods.Binomial(4), (2, 4, 3))

    def score(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return net.distribution(z, likelihood).log_prob(x)

    with pyro.validation_enabled(False):
        z, x = torch.randn(3, 2).double(), torch.randint(5, (3, 2, 4, 3)).double()
        graph = make_fx(score)(z, x)
        other = torch.randn(3, 2).double(), torch.randint(5, (3, 2, 4, 3)).double()
        torch.testing.assert_close(graph(*other), score(*other))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: networks.MLP(norm="bach"), "norm='bach' is not known. Did you mean 'batch'"),
        (lambda: networks.MLP(residual="yes"), "residual=.yes. is not known"),
        (lambda: networks.MLP(dropout=1.0), "dropout=1.0 must be a number from 0 to below 1"),
        (lambda: networks.MLP(dropout=-0.1), "dropout=-0.1"),
        (lambda: networks.GatedMLP([0]), r"hidden=\[0\]"),
        (lambda: networks.ResNetEncoder(blocks=0), "blocks=0 must be a whole number"),
        (lambda: networks.ResNetDecoder([1.5]), r"channels=\[1.5\]"),
        (lambda: networks.ConvDecoder(norm="x"), "norm='x'"),
        (lambda: networks.PixelCNN(kernel=1), "kernel=1 must be at least 3"),
        (lambda: networks.PixelCNN(kernel=4), "kernel=4 must be odd"),
        (lambda: networks.PixelCNN(planes=0), "planes=0"),
        (lambda: networks.DeepSets([]), r"hidden=\[\] must hold at least one width"),
        (lambda: networks.DeepSets(pool="average"), "pool='average' is not known"),
        (lambda: networks.Embedding(0), "num_labels=0"),
        (lambda: built(networks.DeepSets(), (4,)), r"DeepSets reads sets.*not \(4,\)"),
        (lambda: built(networks.Embedding(), (4,)), r"Embedding reads one label.*got \(4,\)"),
        (lambda: built(networks.ResNetEncoder(), (4,)), "ResNetEncoder works on images"),
        (lambda: built(networks.GatedConvDecoder(), (4,), (4,)), "GatedConvDecoder works on images"),
        (lambda: built(networks.PixelCNN(), (4,), (4,)), "PixelCNN works on images"),
        (lambda: built(networks.PixelCNN(2))(torch.zeros(4)), r"use decoder.distribution\(z, likelihood\)"),
        (
            lambda: built(networks.PixelCNN(2), (2,), (1, 2, 2)).distribution(
                torch.zeros(2), likelihoods.Multinomial(3).build(event_shape=torch.Size([1, 2, 2]))
            ),
            r"likelihood=Multinomial\(total_count=3\) draws an image's entries together",
        ),
        (
            lambda: built(networks.PixelCNN(2), (2,), (1, 2, 2)).distribution(
                torch.zeros(2), likelihoods.Bernoulli().build(event_shape=torch.Size([1, 2, 3]))
            ),
            r"has event_shape=\(1, 2, 3\), but the PixelCNN was built with event_shape=\(1, 2, 2\)",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
