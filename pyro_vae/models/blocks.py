"""What very deep pairs are made of: the strings that list their blocks, bottlenecks, the passes up and down.

A resolution is the height of feature maps. Feature maps have shape (..., planes, height, width); any leading
dimensions are folded into one around convolutions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pyro_vae.errors import InputError

# A learned map larger than this would hold most of a model's parameters (Child 2020, appendix, on 256 × 256 images).
BIASED_UP_TO = 64

# What q(z | x) starts at says a little of x, so that its gradient has a direction, and costs few nats. At 0.3 training
# begins by unlearning it: four levels on 16 × 16 ended 5 nats lower, most of their KL gone.
START = 0.03


# --- strings that list blocks ---------------------------------------------------------------------------------------


class BlocksUp(NamedTuple):
    """What an encoder's string says.

    Attributes:
        steps: of each block its resolution, and by how much it pools what it made; 1 for not at all.
        sizes: height and width of feature maps, by resolution.
    """

    steps: list[tuple[int, int]]
    sizes: dict[int, torch.Size]


def blocks_up(encoder: str, size: torch.Size) -> BlocksUp:
    """The blocks of an encoder's string, such as "32x11,32d2,16x6".

    Args:
        encoder: "32x11" for eleven blocks at resolution 32, "32d2" for one that is followed by pooling by 2.
        size: height and width of the image.

    Raises:
        InputError: if the string is not of that form, or its resolutions do not follow from each other.
    """
    steps, sizes, here = [], {size[0]: size}, size
    for entry, resolution, kind, number in _entries("encoder", encoder, "xd"):
        if resolution != here[0]:
            where = "the image has" if not steps else "feature maps have come down to"
            raise InputError(f"encoder={encoder!r}: {entry!r} is at resolution {resolution}, but {where} {here[0]}.")
        if kind == "x":
            steps += [(resolution, 1)] * number
            continue
        if number < 2 or any(side % number for side in here):
            raise InputError(f"encoder={encoder!r}: {entry!r} can't pool feature maps of {tuple(here)} by {number}.")
        steps.append((resolution, number))
        here = torch.Size(side // number for side in here)
        sizes[here[0]] = here
    return BlocksUp(steps, sizes)


def blocks_down(decoder: str, up: BlocksUp, encoder: str) -> list[tuple[int, int]]:
    """The blocks of a decoder's string, such as "1x1,4m1,4x2": of each its resolution, and by how much it upsamples.

    Args:
        decoder: "4x2" for two blocks at resolution 4, "4m1" for one that first upsamples from resolution 1 to 4.
        up: what the encoder's string says.
        encoder: that string, for messages.

    Raises:
        InputError: if the string is not of that form, or a block reads feature maps that are not there.
    """
    steps, here = [], None
    for entry, resolution, kind, number in _entries("decoder", decoder, "xm"):
        if resolution not in up.sizes:
            raise InputError(
                f"decoder={decoder!r}: {entry!r} is at a resolution that encoder={encoder!r} never has; it has "
                f"{', '.join(map(str, up.sizes))}."
            )
        if kind == "m" and (number != here or resolution <= number):
            there = "there are none yet" if here is None else f"those before it are at {here}"
            raise InputError(
                f"decoder={decoder!r}: {entry!r} upsamples feature maps of resolution {number}, but {there}."
            )
        if kind == "x" and here not in (None, resolution):
            raise InputError(
                f"decoder={decoder!r}: {entry!r} does not follow from resolution {here}; write '{resolution}m{here}' first."
            )
        steps += [(resolution, resolution // number)] if kind == "m" else [(resolution, 1)] * number
        here = resolution
    if here != max(up.sizes):
        raise InputError(f"decoder={decoder!r} ends at resolution {here}, but the image has {max(up.sizes)}.")
    if steps[0][0] != min(up.sizes):
        raise InputError(
            f"decoder={decoder!r} starts at resolution {steps[0][0]}, so nothing reads what encoder={encoder!r} makes at "
            f"{min(up.sizes)}; start with '{min(up.sizes)}x1'."
        )
    return steps


def _entries(name: str, text: str, kinds: str) -> list[tuple[str, int, str, int]]:
    """Each entry of a string with its two numbers and the letter in between."""
    entries = []
    for entry in text.split(",") if isinstance(text, str) else [text]:
        found = re.fullmatch(rf"\s*([1-9]\d*)([{kinds}])([1-9]\d*)\s*", str(entry))
        if found is None:
            wanted = {"x": "'32x4' (four blocks at 32)", "d": "'32d2' (pool by 2)", "m": "'32m16' (up from 16 to 32)"}
            raise InputError(
                f"{name}={text!r}: {entry!r} is not understood; wanted are entries such as "
                f"{' or '.join(wanted[kind] for kind in kinds)}, with commas in between."
            )
        entries.append((entry, int(found[1]), found[2], int(found[3])))
    return entries


# --- blocks -----------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What all blocks of a pair agree on: planes of feature maps, of a bottleneck and of z, and how they are run."""

    width: int
    hidden: int
    latent_channels: int
    checkpointing: bool


def folded(function: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """`function` of feature maps (B, planes, h, w) at feature maps (..., planes, h, w)."""
    # Planes innermost in memory: convolutions of few planes take down to a third of the time.
    outputs = function(maps.reshape(-1, *maps.shape[-3:]).contiguous(memory_format=torch.channels_last))
    return outputs.reshape(*maps.shape[:-3], *outputs.shape[-3:])


def stacked(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The planes of one on those of the other, their leading dimensions broadcast."""
    leading = torch.broadcast_shapes(one.shape[:-3], other.shape[:-3])
    return torch.cat([maps.expand(*leading, *maps.shape[-3:]) for maps in (one, other)], dim=-3)


def convolution(planes_in: int, planes_out: int, kernel: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the size, its biases 0.

    Its initial weights have variance gain² / fan_in: at gain 1 it keeps the scale of what it reads, where torch's own
    would shrink it to 0.58 of that at each layer, and a bottleneck, GELUs and all, would leave a thirtieth.
    """
    layer = nn.Conv2d(planes_in, planes_out, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


class Bottleneck(nn.Module):
    """f(h) = C₁(C₃(C₃(C₁(h)))), C_k a GELU and then a k × k convolution (Child 2020, figure 3).

    On feature maps of less than 3 × 3 all kernels are 1 × 1.

    Args:
        planes_in: planes that it reads.
        hidden: planes in between.
        planes_out: planes that it returns.
        size: height and width.
        gain: factor on the initial weights of the last convolution.
    """

    def __init__(self, planes_in: int, hidden: int, planes_out: int, size: torch.Size, gain: float = 1.0):
        super().__init__()
        kernel = 3 if min(size) > 2 else 1
        planes, kernels = [planes_in, hidden, hidden, hidden, planes_out], [1, kernel, kernel, 1]
        # A GELU halves the second moment, as a ReLU does (He et al. 2015).
        gains = [math.sqrt(2) * factor for factor in (1, 1, 1, gain)]
        layers = [convolution(*shape) for shape in zip(planes[:-1], planes[1:], kernels, gains, strict=True)]
        self.layers = nn.Sequential(*[part for layer in layers for part in (nn.GELU(), layer)])

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return folded(self.layers, maps)


class _Recomputing(nn.Module):
    """A module whose activations can be thrown away and computed again for the gradient (Chen et al. 2016)."""

    recomputes: bool = False

    def run(self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """`function(*inputs)`, of which only inputs and outputs are kept if this module recomputes."""
        if not (self.recomputes and torch.is_grad_enabled()):
            return function(*inputs)
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class BottomUp(_Recomputing):
    """The pass up: residual blocks h + f(h) and average pooling, which leave behind feature maps of each resolution.

    Args:
        planes_in: planes of the image as networks read it.
        up: what the encoder's string says.
        shape: what all blocks agree on.
    """

    def __init__(self, planes_in: int, up: BlocksUp, shape: Shape):
        super().__init__()
        self.recomputes, self.rates = shape.checkpointing, [rate for _, rate in up.steps]
        gain = math.sqrt(1 / len(up.steps))
        self.first = convolution(planes_in, shape.width, 3)
        self.blocks = nn.ModuleList(
            Bottleneck(shape.width, shape.hidden, shape.width, up.sizes[at], gain) for at, _ in up.steps
        )

    def forward(self, inputs: torch.Tensor) -> dict[int, torch.Tensor]:
        """(..., planes_in, H, W) to the last feature maps (..., width, h, w) of each resolution h."""
        h = folded(self.first, inputs)
        seen = {h.shape[-2]: h}
        for block, rate in zip(self.blocks, self.rates, strict=True):
            h = self.run(block, h) + h  # in this order, which keeps the convolution's layout
            if rate > 1:
                h = folded(lambda maps, rate=rate: F.avg_pool2d(maps, rate), h)
            seen[h.shape[-2]] = h
        return seen


class TopDown(_Recomputing):
    """One level of the pass down, from feature maps h of the levels above to those below (Child 2020, figure 3).

        p(z | h) = N(μ_p(h), σ_p(h)²),  q(z | h, x) = N(μ_q(h, e), σ_q(h, e)²) with e the encoder's feature maps of x
        h ← h + r_p(h) + W z,  h ← h + f(h)

    μ_p, log σ_p and r_p are one bottleneck's outputs, which start at 0; μ_q and log σ_q start near it.

    Args:
        resolution: height of its feature maps.
        rate: by how much h is upsampled first; 1 for not at all.
        size: height and width.
        biased: whether a learned map is added first.
        shape: what all blocks agree on.
        gain: factor on the initial weights of what is added to h.
    """

    def __init__(self, resolution: int, rate: int, size: torch.Size, biased: bool, shape: Shape, gain: float):
        super().__init__()
        self.resolution, self.rate, self.recomputes = resolution, rate, shape.checkpointing
        width, hidden, channels = shape.width, shape.hidden, shape.latent_channels
        self.splits = [channels, channels, width]
        self.bias = nn.Parameter(torch.zeros(width, *size)) if biased else None
        self.prior_net = Bottleneck(width, hidden, 2 * channels + width, size, gain=0.0)
        self.posterior_net = Bottleneck(2 * width, hidden, 2 * channels, size, gain=START)
        self.project = convolution(channels, width, gain=gain)
        self.residual = Bottleneck(width, hidden, width, size, gain)

    def enter(self, h: torch.Tensor | None) -> torch.Tensor:
        """h brought to this resolution; None for the first level, which starts from its learned map."""
        if h is None:
            return self.bias
        if self.rate > 1:
            h = folded(lambda maps: F.interpolate(maps, scale_factor=float(self.rate)), h)
        return h if self.bias is None else h + self.bias

    def prior(self, h: torch.Tensor) -> tuple[TorchDistribution, torch.Tensor]:
        """p(z | h), and h + r_p(h)."""
        loc, log_scale, residual = self.run(self.prior_net, h).split(self.splits, dim=-3)
        return _normal(loc, log_scale), residual + h

    def posterior(self, h: torch.Tensor, seen: torch.Tensor) -> TorchDistribution:
        """q(z | h, x), `seen` being the encoder's feature maps."""
        params = self.run(lambda h, seen: self.posterior_net(stacked(h, seen)), h, seen)
        return _normal(*params.chunk(2, dim=-3))

    def leave(self, h: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """h with z in it, for the levels below; z of shape (..., latent_channels, h, w)."""
        h = folded(self.project, z) + h
        return self.run(self.residual, h) + h


def _normal(loc: torch.Tensor, log_scale: torch.Tensor) -> TorchDistribution:
    return dist.Normal(loc, log_scale.exp()).to_event(3)


def top_down(steps: list[tuple[int, int]], sizes: dict[int, torch.Size], shape: Shape) -> nn.ModuleList:
    """The levels that a decoder's string lists; the first of each resolution has a learned map."""
    levels, met = nn.ModuleList(), set()
    for resolution, rate in steps:
        biased = resolution not in met and (not met or resolution <= BIASED_UP_TO)
        gain = math.sqrt(1 / len(steps))
        levels.append(TopDown(resolution, rate, sizes[resolution], biased, shape, gain))
        met.add(resolution)
    return levels


class Output(nn.Module):
    """params = C₁(g ⊙ h + b), with a gain and a bias for each plane.

    Args:
        width: planes of h.
        planes_out: planes of the likelihood's params.
    """

    def __init__(self, width: int, planes_out: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(width, 1, 1))
        self.last = convolution(width, planes_out, gain=0.1)  # so that `start` says what the likelihood starts at

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return folded(self.last, h * self.gain + self.bias)

    def start(self, params: torch.Tensor) -> None:
        """Sets the last biases to the mean of each plane of `params`, shape (planes_out, H, W)."""
        with torch.no_grad():
            self.last.bias.copy_(params.mean((-2, -1)))
