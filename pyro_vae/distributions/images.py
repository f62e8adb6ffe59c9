"""Images drawn pixel by pixel: masked convolutions, and the distribution p(x | z) = Π_i p(x_i | x_<i, z) they make.

The order is that of reading: rows from the top, a row's pixels from the left, a pixel's channels one after the other.
Planes that belong to image channel c are those whose index is c modulo the number of channels, which is how
likelihoods stack the numbers that one entry needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import nn
from torch.nn import functional as F

from pyro_vae.errors import InputError

Pick = Callable[[TorchDistribution], torch.Tensor]


class RowConvolution(nn.Conv2d):
    """A convolution along the row that sees no later pixel, nor a later channel of its own pixel.

    Mask A leaves out the channel itself too, mask B keeps it (van den Oord et al. 2016a, section 3.4).

    Args:
        planes_in: planes that it reads.
        planes_out: planes that it returns.
        channels: number of image channels.
        reach: how many pixels to the left are seen.
        own: whether channel c sees itself (mask B).
    """

    def __init__(self, planes_in: int, planes_out: int, channels: int, reach: int = 0, own: bool = True):
        super().__init__(planes_in, planes_out, (1, reach + 1))
        reads, writes = (torch.arange(planes) % channels for planes in (planes_in, planes_out))
        seen = torch.ones_like(self.weight)
        seen[..., 0, -1] = (reads <= writes[:, None] if own else reads < writes[:, None]).to(seen.dtype)
        self.reach = reach
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(inputs, (self.reach, 0)), self.weight * self.seen, self.bias)


class AboveConvolution(nn.Conv2d):
    """A convolution over the rows down to a pixel's own, or down to the one above it, and both sides of its column.

    Args:
        planes_in: planes that it reads.
        planes_out: planes that it returns.
        reach: how many rows further up, and how many columns to each side, are seen.
        own: whether the pixel's own row is seen.
    """

    def __init__(self, planes_in: int, planes_out: int, reach: int, own: bool):
        super().__init__(planes_in, planes_out, (reach + 1, 2 * reach + 1))
        self.reach, self.own = reach, own

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.own:
            inputs = F.pad(inputs, (0, 0, 1, 0))[..., :-1, :]
        return super().forward(F.pad(inputs, (self.reach, self.reach, self.reach, 0)))


def _gate(planes: torch.Tensor) -> torch.Tensor:
    """tanh(a) ⊙ sigmoid(b) for planes (a, b)."""
    content, gate = planes.chunk(2, dim=1)
    return content.tanh() * gate.sigmoid()


class GatedLayer(nn.Module):
    """One layer of the gated PixelCNN (van den Oord et al. 2016b, figure 2 and eq. 4).

    Two stacks of planes: `above` knows the rows over a pixel, without blind spot, and feeds `row`, which knows the
    pixels to the left. What is known of z enters `above`, and by it both.

    Args:
        planes_in: planes of the image or of the layer before.
        planes: planes of each stack, a multiple of `channels`.
        planes_z: planes that condition on z.
        channels: number of image channels.
        reach: how many pixels further each stack sees.
        first: whether it reads the image, where a pixel must not see itself.
    """

    def __init__(self, planes_in: int, planes: int, planes_z: int, channels: int, reach: int, first: bool):
        super().__init__()
        self.first = first
        self.above = AboveConvolution(planes_in, 2 * planes, reach, own=not first)
        self.condition = nn.Conv2d(planes_z, 2 * planes, 1, bias=False)
        self.link = nn.Conv2d(2 * planes, 2 * planes, 1, bias=False)
        self.row = RowConvolution(planes_in, 2 * planes, channels, reach, own=not first)
        self.step = RowConvolution(planes, planes, channels)

    def down(self, above: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stack of what is above one layer on, and what it tells the row."""
        above = self.above(above) + self.condition(features)
        return _gate(above), self.link(above)

    def along(self, row: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """The stack of the row one layer on."""
        step = self.step(_gate(self.row(row) + told))
        return step if self.first else row + step


class GatedStack(nn.Module):
    """Parameters of every p(x_i | x_<i, z) in one pass (van den Oord et al. 2016b; Gulrajani et al. 2017, section 3).

    Args:
        planes_in: planes of the image as networks read it.
        planes_out: planes of parameters.
        planes: planes in between, a multiple of `channels`.
        channels: number of image channels.
        depth: number of gated layers.
        kernel: side of the convolutions, odd and at least 3.
    """

    def __init__(self, planes_in: int, planes_out: int, planes: int, channels: int, depth: int, kernel: int):
        super().__init__()
        reach = kernel // 2
        self.gated = nn.ModuleList(
            GatedLayer(planes if i else planes_in, planes, planes, channels, reach, first=not i) for i in range(depth)
        )
        self.mix = RowConvolution(planes, planes, channels)
        self.out = RowConvolution(planes, planes_out, channels)
        self.rows_above = 1 + depth * reach

    def forward(self, inputs: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(B, planes_in, H, W) and features of z (B, planes, H, W) to (B, planes_out, H, W)."""
        return self.along(inputs, self.down(inputs, features))

    def down(self, inputs: torch.Tensor, features: torch.Tensor) -> list[torch.Tensor]:
        """What each layer knows of the rows above every pixel."""
        above, told = inputs, []
        for layer in self.gated:
            above, link = layer.down(above, features)
            told.append(link)
        return told

    def along(self, inputs: torch.Tensor, told: list[torch.Tensor]) -> torch.Tensor:
        """Parameters from the pixels to the left, and what `down` told."""
        row = inputs
        for layer, link in zip(self.gated, told, strict=True):
            row = layer.along(row, link)
        return self.out(self.mix(row.relu()).relu())


class ImageLikelihood(Protocol):
    """What is used of a likelihood: shapes of a datum (C, H, W) or (H, W), and how one is read and scored."""

    event_shape: torch.Size
    params_shape: torch.Size
    input_shape: torch.Size

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        """x as networks read it."""

    def parameters(self) -> Any:
        """Learned tensors."""

    def buffers(self) -> Any:
        """Constant tensors."""

    def __call__(self, params: torch.Tensor) -> TorchDistribution:
        """p(x | params)."""


class AutoregressiveImage(TorchDistribution):
    """p(x | z) = Π_i p(x_i | x_<i, z), i over rows, columns and channels (van den Oord et al. 2016a, eq. 1 and 2).

    `log_prob` takes one pass over the network, in nats; `sample` goes along a row once for each of its entries. The
    likelihood's `as_input` must work entry by entry: an entry read together with later ones would be no condition.

    Args:
        conditionals: all parameters from the image as read, (B, planes_in, H, W), and features, (B, planes, H, W).
        features: what is known of z, shape (..., planes, H, W); its leading dimensions are the batch shape.
        likelihood: p(x_i | params_i) of the entries, independent of each other given params.

    Raises:
        InputError: if the likelihood draws entries together, such as a multinomial.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, conditionals: GatedStack, features: torch.Tensor, likelihood: ImageLikelihood):
        self.conditionals, self.features, self.likelihood = conditionals, features, likelihood
        self._entries = likelihood(features.new_zeros(likelihood.params_shape))
        if not isinstance(self._entries, torch.distributions.Independent) or self._entries.base_dist.event_shape:
            raise InputError(
                f"likelihood={likelihood!r} draws an image's entries together, but a network that goes pixel by pixel "
                "wants entries that are independent given params, as in Bernoulli, Categorical or Normal."
            )
        super().__init__(features.shape[:-3], likelihood.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self._entries.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> AutoregressiveImage:
        features = self.features.expand(*batch_shape, *self.features.shape[-3:])
        return type(self)(self.conditionals, features, self.likelihood)

    def params(self, x: torch.Tensor) -> torch.Tensor:
        """Parameters of each p(x_i | x_<i, z), shape (..., *params_shape), for x of shape (..., *event_shape)."""
        leading = torch.broadcast_shapes(x.shape[: x.dim() - self.event_dim], self.batch_shape)
        inputs = self.likelihood.as_input(x).to(self.features.dtype)
        inputs = inputs.expand(*leading, *self.likelihood.input_shape)
        planes, height, width = self.features.shape[-3:]
        outputs = self.conditionals(
            inputs.reshape(-1, self.likelihood.input_shape.numel() // (height * width), height, width),
            self.features.expand(*leading, planes, height, width).reshape(-1, planes, height, width),
        )
        return outputs.reshape(*leading, *self.likelihood.params_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.likelihood(self.params(value)).log_prob(value)

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        return self._drawn(torch.Size(sample_shape), lambda entries: entries.sample())

    @property
    def mean(self) -> torch.Tensor:
        """E[x_i | x_<i, z] along one draw of x, so a random image: averaged over draws it is E[x | z].

        Raises:
            NotImplementedError: if the entries have no mean, as under a categorical.
        """
        if not self._entries.mean.isfinite().all():
            raise NotImplementedError(f"{self.likelihood!r} has no mean.")
        return self.likelihood(self.params(self.sample())).mean

    @property
    def mode(self) -> torch.Tensor:
        """Each entry's mode given the modes before it: one image, likely, but not always the likeliest."""
        # Torch gives NaN for the mode of a fair coin, where 0 is as likely as 1.
        return self._drawn(torch.Size(), lambda entries: entries.mode.nan_to_num(0.0))

    def _drawn(self, sample_shape: torch.Size, pick: Pick) -> torch.Tensor:
        """An image for each member of sample_shape + batch_shape, each entry picked given those before it."""
        shape = sample_shape + self.batch_shape
        planes, height, width = self.features.shape[-3:]
        with torch.no_grad():
            features = self.features.expand(*shape, planes, height, width).reshape(-1, planes, height, width)
            # Entries to come start from anything in the support; the masks keep them from being seen.
            x = pick(self._entries).reshape(-1, height, width).repeat(len(features), 1, 1, 1)
            alike = self._entries_are_alike()
            for i in range(height):
                top = max(0, i - self.conditionals.rows_above)
                told = self.conditionals.down(self._read(x, top, i + 1, alike), features[:, :, top : i + 1])
                told = [link[:, :, -1:] for link in told]  # rows above don't change while this one is drawn
                for j in range(width):
                    for c in range(x.shape[1]):
                        params = self.conditionals.along(self._read(x, i, i + 1, alike), told)
                        x[:, c, i, j] = self._picked(params, i, j, pick, alike)[:, c]
        return x.reshape(*shape, *self.event_shape)

    def _read(self, x: torch.Tensor, top: int, end: int, alike: bool) -> torch.Tensor:
        """Rows `top` to `end` of x (B, C, H, W) as the network reads them, (B, planes_in, end − top, W)."""
        rows = x[:, :, top:end] if alike else x
        inputs = self.likelihood.as_input(self._as_event(rows)).to(self.features.dtype)
        inputs = inputs.reshape(len(x), -1, *rows.shape[-2:])
        return inputs if alike else inputs[:, :, top:end]

    def _picked(self, params: torch.Tensor, i: int, j: int, pick: Pick, alike: bool) -> torch.Tensor:
        """The channels of pixel (i, j), shape (B, C), picked by the parameters of row i, (B, P, 1, W)."""
        if alike:
            return pick(self.likelihood(self._as_event(params[..., j : j + 1]))).reshape(len(params), -1)
        height, width = self.event_shape[-2:]
        image = params.new_zeros(*params.shape[:2], height, width)  # entries are independent: the rest may be anything
        image[:, :, i] = params[:, :, 0]
        return pick(self.likelihood(self._as_event(image))).reshape(len(params), -1, height, width)[..., i, j]

    def _as_event(self, planes: torch.Tensor) -> torch.Tensor:
        """(B, P, h, w) as likelihoods have it: (B, P · h, w) where an image is (H, W)."""
        return planes if self.event_dim == 3 else planes.flatten(1, 2)

    def _entries_are_alike(self) -> bool:
        """Whether the likelihood has one law for all entries, so that it serves a single pixel as well."""
        if any(held.numel() > 1 for held in (*self.likelihood.parameters(), *self.likelihood.buffers())):
            return False
        height, width = self.event_shape[-2:]
        planes = self.likelihood.params_shape.numel() // (height * width)
        pixel = self.likelihood(self._as_event(self.features.new_zeros(1, planes, 1, 1)))
        return pixel.event_shape.numel() * height * width == self.event_shape.numel()
