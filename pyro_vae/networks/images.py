"""Networks that read or write images: convolutions, residual blocks, and a decoder that goes entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.distributions.images import AutoregressiveImage, GatedStack, ImageLikelihood
from pyro_vae.errors import InputError, positive_int, widths
from pyro_vae.networks.base import Network, with_planes
from pyro_vae.networks.layers import (
    Norm,
    activation_layer,
    halvings,
    image_shape,
    norm_layers,
    norm_name,
    odd,
    residual_block,
)


class ConvEncoder(Network):
    """Convolutions of stride 2, one per entry of `channels`, then a linear layer to the output.

    Args:
        channels: channels after each convolution; each halves height and width.
        kernel: side of the kernels, an odd number.
        activation: name of a torch activation.
        norm: "batch" or "layer" normalises before each activation.
    """

    gated = False

    def __init__(
        self, channels: Sequence[int] = (32, 64), kernel: int = 3, activation: str = "ReLU", norm: Norm = "none"
    ):
        super().__init__()
        self.channels = widths("channels", channels)
        self.kernel = odd("kernel", kernel)
        self.activation = activation
        self.norm = norm_name(norm)
        activation_layer(activation)

    def with_context(self, in_shape: torch.Size, num_features: int) -> torch.Size:
        return with_planes(in_shape, num_features)

    def setup(self) -> None:
        planes, height, width = image_shape(type(self).__name__, self.in_shape)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, height))] if len(self.in_shape) == 2 else []
        for before, after in zip([planes, *self.channels], self.channels, strict=False):
            units = 2 * after if self.gated else after
            layers.append(nn.Conv2d(before, units, self.kernel, 2, self.kernel // 2, bias=self.norm != "batch"))
            layers += norm_layers(self.norm, units, image=True)
            layers.append(nn.GLU(1) if self.gated else activation_layer(self.activation))
        height, width = (halvings(side, len(self.channels))[-1] for side in (height, width))
        flat = [planes, *self.channels][-1] * height * width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, self.out_shape.numel()))


class GatedConvEncoder(ConvEncoder):
    """ConvEncoder with layers (W * x + b) ⊙ sigmoid(V * x + c), * the convolution (Tomczak & Welling 2018, section 5).

    Args:
        channels: channels after each convolution; each halves height and width.
        kernel: side of the kernels, an odd number.
        norm: "batch" or "layer" normalises before each gate.
    """

    gated = True

    def __init__(self, channels: Sequence[int] = (32, 64), kernel: int = 3, norm: Norm = "none"):
        super().__init__(channels, kernel, norm=norm)


class ConvDecoder(Network):
    """A linear layer to feature maps, then transposed convolutions of stride 2 up to the image.

    Args:
        channels: channels before each transposed convolution; each doubles height and width.
        kernel: side of the kernels, an odd number.
        activation: name of a torch activation.
        norm: "batch" or "layer" normalises before each activation.
    """

    gated = False

    def __init__(
        self, channels: Sequence[int] = (64, 32), kernel: int = 3, activation: str = "ReLU", norm: Norm = "none"
    ):
        super().__init__()
        self.channels = widths("channels", channels)
        self.kernel = odd("kernel", kernel)
        self.activation = activation
        self.norm = norm_name(norm)
        activation_layer(activation)

    def setup(self) -> None:
        planes, height, width = image_shape(type(self).__name__, self.out_shape)
        depth = len(self.channels)
        heights, widths_ = halvings(height, depth)[::-1], halvings(width, depth)[::-1]
        units = [(2 if self.gated else 1) * n for n in self.channels] + [planes]
        layers: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(self.in_shape.numel(), units[0] * heights[0] * widths_[0]),
            nn.Unflatten(1, (units[0], heights[0], widths_[0])),
        ]
        for i, before in enumerate(self.channels):
            # A stride of two reaches 2n − 1; the padding adds the last row or column where the side is even.
            extra = (heights[i + 1] - 2 * heights[i] + 1, widths_[i + 1] - 2 * widths_[i] + 1)
            bias = self.norm != "batch" or i == depth - 1
            layers += norm_layers(self.norm, units[i], image=True)
            layers.append(nn.GLU(1) if self.gated else activation_layer(self.activation))
            layers.append(nn.ConvTranspose2d(before, units[i + 1], self.kernel, 2, self.kernel // 2, extra, bias=bias))
        self.layers = nn.Sequential(*layers)


class GatedConvDecoder(ConvDecoder):
    """ConvDecoder with layers (W * x + b) ⊙ sigmoid(V * x + c), * the convolution (Tomczak & Welling 2018, section 5).

    Args:
        channels: channels before each transposed convolution; each doubles height and width.
        kernel: side of the kernels, an odd number.
        norm: "batch" or "layer" normalises before each gate.
    """

    gated = True

    def __init__(self, channels: Sequence[int] = (64, 32), kernel: int = 3, norm: Norm = "none"):
        super().__init__(channels, kernel, norm=norm)


class ResNetEncoder(Network):
    """Residual blocks, one stage per entry of `channels`, each at half the size before, and a linear layer.

    The blocks are pre-activated: x + conv(a(norm(conv(a(norm(x)))))) (He et al. 2016b, figure 4e).

    Args:
        channels: channels of each stage; its first block halves height and width.
        blocks: residual blocks in a stage.
        activation: name of a torch activation.
        norm: "layer" normalises each image by itself; "batch", as in the paper, over the batch, which ties scores to it.
    """

    def __init__(
        self, channels: Sequence[int] = (32, 64), blocks: int = 2, activation: str = "ReLU", norm: Norm = "layer"
    ):
        super().__init__()
        self.channels = widths("channels", channels)
        self.blocks = positive_int("blocks", blocks)
        self.activation = activation
        self.norm = norm_name(norm)
        activation_layer(activation)

    def with_context(self, in_shape: torch.Size, num_features: int) -> torch.Size:
        return with_planes(in_shape, num_features)

    def setup(self) -> None:
        planes, height, width = image_shape("ResNetEncoder", self.in_shape)
        first = [*self.channels, planes][0]
        layers: list[nn.Module] = [nn.Unflatten(1, (1, height))] if len(self.in_shape) == 2 else []
        layers.append(nn.Conv2d(planes, first, 3, padding=1, bias=self.norm != "batch"))
        for before, after in zip([first, *self.channels], self.channels, strict=False):
            layers.append(residual_block(before, after, 2, self.activation, self.norm))
            layers += [residual_block(after, after, 1, self.activation, self.norm) for _ in range(self.blocks - 1)]
        last = [first, *self.channels][-1]
        layers += [*norm_layers(self.norm, last, image=True), activation_layer(self.activation), nn.Flatten()]
        height, width = (halvings(side, len(self.channels))[-1] for side in (height, width))
        self.layers = nn.Sequential(*layers, nn.Linear(last * height * width, self.out_shape.numel()))


class ResNetDecoder(Network):
    """A linear layer, then stages of nearest-neighbour up-sampling and ResNetEncoder's residual blocks, a convolution.

    Args:
        channels: channels of each stage; up-sampling in front of it doubles height and width.
        blocks: residual blocks in a stage.
        activation: name of a torch activation.
        norm: "layer" normalises each image by itself, "batch" over the batch.
    """

    def __init__(
        self, channels: Sequence[int] = (64, 32), blocks: int = 2, activation: str = "ReLU", norm: Norm = "layer"
    ):
        super().__init__()
        self.channels = widths("channels", channels)
        self.blocks = positive_int("blocks", blocks)
        self.activation = activation
        self.norm = norm_name(norm)
        activation_layer(activation)

    def setup(self) -> None:
        planes, height, width = image_shape("ResNetDecoder", self.out_shape)
        depth = len(self.channels)
        sizes = list(zip(halvings(height, depth)[::-1], halvings(width, depth)[::-1], strict=True))
        first = [*self.channels, planes][0]
        layers: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(self.in_shape.numel(), first * sizes[0][0] * sizes[0][1]),
            nn.Unflatten(1, (first, *sizes[0])),
        ]
        for before, after, size in zip([first, *self.channels], self.channels, sizes[1:], strict=False):
            layers += [nn.Upsample(size), residual_block(before, after, 1, self.activation, self.norm)]
            layers += [residual_block(after, after, 1, self.activation, self.norm) for _ in range(self.blocks - 1)]
        last = [first, *self.channels][-1]
        layers += [*norm_layers(self.norm, last, image=True), activation_layer(self.activation)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(last, planes, 3, padding=1))


class PixelCNN(Network):
    """A decoder that draws an image entry by entry, p(x | z) = Π_i p(x_i | x_<i, z), in reading order.

    Gated masked convolutions over x (van den Oord et al. 2016b) look at the entries before, given feature maps that a
    ConvDecoder makes of z (PixelVAE, Gulrajani et al. 2017, section 3). The fewer layers, the more is left to z.

    Args:
        planes: feature maps for each channel of the image.
        depth: number of gated layers, each of which sees kernel // 2 pixels further.
        kernel: side of the masked convolutions, odd and at least 3.
        decoder_channels: `channels` of the ConvDecoder from z.
    """

    def __init__(self, planes: int = 32, depth: int = 4, kernel: int = 5, decoder_channels: Sequence[int] = (64, 32)):
        super().__init__()
        self.planes = positive_int("planes", planes)
        self.depth = positive_int("depth", depth)
        self.kernel = odd("kernel", kernel)
        if kernel == 1:
            raise InputError("kernel=1 must be at least 3, so that a pixel sees its neighbours.")
        self.decoder_channels = widths("decoder_channels", decoder_channels)

    def setup(self) -> None:
        self.event_shape = self.event_shape or self.out_shape
        self.input_shape = self.input_shape or self.event_shape
        channels, height, width = image_shape("PixelCNN", self.event_shape)
        planes = channels * self.planes
        reads, returns = (shape.numel() // (height * width) for shape in (self.input_shape, self.out_shape))
        maps = torch.Size([planes, height, width])
        self.features = ConvDecoder(self.decoder_channels).build(in_shape=self.in_shape, out_shape=maps)
        self.layers = GatedStack(reads, returns, planes, channels, self.depth, self.kernel)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Refuses: what this decoder says of a pixel depends on the pixels before it, not on z alone."""
        raise InputError(
            "PixelCNN has no parameters of x given z alone, since each pixel depends on those before it; "
            "use decoder.distribution(z, likelihood)."
        )

    def distribution(self, z: torch.Tensor, likelihood: ImageLikelihood) -> TorchDistribution:
        """p(x | z), batch shape (...) for z of shape (..., *in_shape).

        Raises:
            InputError: if the likelihood draws an image's entries together, or has other sizes than the network.
        """
        for mine, name in (("event_shape",) * 2, ("input_shape",) * 2, ("out_shape", "params_shape")):
            if getattr(self, mine) != getattr(likelihood, name):
                raise InputError(
                    f"likelihood={likelihood!r} has {name}={tuple(getattr(likelihood, name))}, but the PixelCNN was built "
                    f"with {mine}={tuple(getattr(self, mine))}; pass build() its event_shape and input_shape."
                )
        return AutoregressiveImage(self.layers, self.features(z), likelihood)
