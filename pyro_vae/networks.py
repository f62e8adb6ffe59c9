"""Networks: from data to the guide's parameters, and from latents to the likelihood's.

A network is told by `build` which shapes it connects, and sees inputs of shape (B, *in_shape) in `layers`;
any leading dimensions are folded into B and unfolded again, so plain torch layers serve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.checks import InputError, one_of, positive_int, widths
from pyro_vae.component import Component
from pyro_vae.distributions.images import AutoregressiveImage, GatedStack, ImageLikelihood
from pyro_vae.layers import (
    Norm,
    Sum,
    activation_layer,
    halvings,
    image_shape,
    norm_layers,
    norm_name,
    odd,
    residual_block,
    share,
)


class Network(Component):
    """A function from tensors of shape (..., *in_shape) to (..., *out_shape); `setup` makes `self.layers`.

    Sizes that `build` sets:
        in_shape: shape of one input.
        out_shape: shape of one output.
        event_shape, input_shape: for a decoder that looks at x, shape of x and of what networks read of it.
    """

    in_shape: torch.Size
    out_shape: torch.Size
    event_shape: torch.Size | None = None
    input_shape: torch.Size | None = None
    layers: nn.Module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        leading = inputs.shape[: inputs.dim() - len(self.in_shape)]
        outputs = self.layers(inputs.reshape(-1, *self.in_shape))
        return outputs.reshape(*leading, *self.out_shape)

    def distribution(
        self, z: torch.Tensor, likelihood: Callable[[torch.Tensor], TorchDistribution]
    ) -> TorchDistribution:
        """p(x | z) = likelihood(x | self(z)) of this network as a decoder, batch shape (...) for z (..., *in_shape)."""
        return likelihood(self(z))

    def start_output(self, bias: torch.Tensor) -> bool:
        """Sets the last layer's bias, so that outputs start around `bias`; says whether there was one to set.

        Args:
            bias: shape `out_shape`; a convolution, with one bias a plane, takes each plane's mean.
        """
        if bias.shape != self.out_shape:
            raise InputError(f"bias has shape {tuple(bias.shape)}, but must have out_shape={tuple(self.out_shape)}.")
        kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
        last = [layer for layer in self.layers.modules() if isinstance(layer, kinds)][-1:]
        if not last or last[0].bias is None:
            return False
        with torch.no_grad():
            last[0].bias.copy_(bias.reshape(len(last[0].bias), -1).mean(-1))
        return True


class MLP(Network):
    """Layers of `hidden` units, a(W h + b) with activation a, and a linear layer to the output.

    Args:
        hidden: widths of the hidden layers; [] gives one linear map.
        activation: name of a torch activation, such as tanh or ReLU.
        residual: add each hidden layer's input to what it returns, h + a(W h + b), by a linear map of its own where
            widths differ (He et al. 2016a, eq. 1 and 2).
        norm: "batch" or "layer" normalises W h + b; under "batch" a datum's score in training depends on its batch.
        dropout: which share of hidden units training leaves out, from 0 to below 1.
    """

    gated = False  # whether a hidden layer is half content, half gate

    def __init__(
        self,
        hidden: Sequence[int] = (400,),
        activation: str = "Softplus",
        residual: bool = False,
        norm: Norm = "none",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.hidden = widths("hidden", hidden)
        self.activation = activation
        self.residual = one_of("residual", residual, [False, True])
        self.norm = norm_name(norm)
        self.dropout = share("dropout", dropout)
        activation_layer(activation)

    def setup(self) -> None:
        sizes = [self.in_shape.numel(), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in zip(sizes, sizes[1:], strict=False):
            units = 2 * width_out if self.gated else width_out
            layer: list[nn.Module] = [nn.Linear(width_in, units, bias=self.norm != "batch")]
            layer += norm_layers(self.norm, units, image=False)
            layer.append(nn.GLU() if self.gated else activation_layer(self.activation))
            layer += [nn.Dropout(self.dropout)] if self.dropout else []
            skip = nn.Identity() if width_in == width_out else nn.Linear(width_in, width_out, bias=False)
            layers += [Sum(skip, nn.Sequential(*layer))] if self.residual else layer
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], self.out_shape.numel()))


class GatedMLP(MLP):
    """Layers h = (W x + b) ⊙ sigmoid(V x + c), and a linear layer to the output (Tomczak & Welling 2018, section 5).

    Args:
        hidden: widths of the hidden layers.
        residual: add each layer's input, as for MLP.
        norm: "batch" or "layer" normalises W x + b and V x + c.
        dropout: which share of hidden units training leaves out.
    """

    gated = True

    def __init__(
        self, hidden: Sequence[int] = (300, 300), residual: bool = False, norm: Norm = "none", dropout: float = 0.0
    ):
        super().__init__(hidden, residual=residual, norm=norm, dropout=dropout)


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


class DeepSets(Network):
    """ρ(pool_i φ(x_i)) for a set of elements in any order (Zaheer et al. 2017, theorem 2).

    Inputs have shape (set size, features). An element with a NaN among its features counts as absent, so that sets of
    several sizes share one tensor; the empty set pools to 0.

    Args:
        hidden: widths of φ's layers, the last of which is pooled.
        readout: widths of ρ's hidden layers.
        pool: "sum", "mean" or "max" over the elements that are present.
        activation: name of a torch activation.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (128, 128),
        readout: Sequence[int] = (128,),
        pool: Literal["sum", "mean", "max"] = "sum",
        activation: str = "ReLU",
    ):
        super().__init__()
        self.hidden = widths("hidden", hidden)
        if not self.hidden:
            raise InputError("hidden=[] must hold at least one width, that of what is pooled.")
        self.readout = widths("readout", readout)
        self.pool = one_of("pool", pool, ["sum", "mean", "max"])
        self.activation = activation
        activation_layer(activation)

    def setup(self) -> None:
        if len(self.in_shape) != 2:
            raise InputError(f"DeepSets reads sets, shape (set size, features), not {tuple(self.in_shape)}; use MLP.")
        sizes = [self.in_shape[1], *self.hidden]
        pairs = zip(sizes, sizes[1:], strict=False)
        parts = [part for a, b in pairs for part in (nn.Linear(a, b), activation_layer(self.activation))]
        self.elements = nn.Sequential(*parts)
        pooled = torch.Size(sizes[-1:])
        self.layers = MLP(self.readout, self.activation).build(in_shape=pooled, out_shape=self.out_shape)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        present = ~inputs.isnan().any(-1, keepdim=True)
        codes = self.elements(inputs.where(present, 0.0))  # NaN is taken out first: its gradient would stay NaN
        if self.pool == "max":
            pooled = codes.masked_fill(~present, -torch.inf).amax(-2).where(present.any(-2), 0.0)
        else:
            pooled = (codes * present).sum(-2)
        if self.pool == "mean":
            pooled = pooled / present.sum(-2).clamp(min=1)
        return self.layers(pooled)


class Embedding(Network):
    """One learned output for each label 0, ..., num_labels − 1.

    Labels are whole numbers of shape (...) where in_shape is (), or (..., 1) where it is (1,); they may be stored as
    floats, as in a batch. Torch's IndexError meets one that is out of range.

    Args:
        num_labels: how many labels there are.
    """

    def __init__(self, num_labels: int = 10):
        super().__init__()
        self.num_labels = positive_int("num_labels", num_labels)

    def setup(self) -> None:
        if self.in_shape.numel() != 1:
            raise InputError(f"Embedding reads one label, shape () or (1,), but got {tuple(self.in_shape)}; use MLP.")
        self.layers = nn.Embedding(self.num_labels, self.out_shape.numel())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        labels = inputs.reshape(inputs.shape[: inputs.dim() - len(self.in_shape)])
        return self.layers(labels.long()).unflatten(-1, self.out_shape)


class Wrapped(Network):
    """Any torch module as a network: it is called with one batch dimension, (B, *in_shape).

    Args:
        module: the user's module; it must return (B, ...) with the numbers of `out_shape` in its last dimensions.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def setup(self) -> None:
        """Tries the module on two made-up inputs, so that a mismatch is met here and not in training."""
        probe = torch.zeros(2, *self.in_shape)
        training = self.module.training
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                outputs = self.module.eval()(probe)
        except Exception as error:
            raise InputError(
                f"{self.module.__class__.__name__} fails on an input of shape (N, {_sizes(self.in_shape)}): {error}"
            ) from error
        finally:
            self.module.train(training)
        if (
            not isinstance(outputs, torch.Tensor)
            or outputs.shape[:1] != probe.shape[:1]
            or (outputs[0].numel() != self.out_shape.numel())
        ):
            came = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise InputError(
                f"{self.module.__class__.__name__} returns {came} for an input of shape {tuple(probe.shape)}; "
                f"wanted is one tensor of shape (2, {_sizes(self.out_shape)})."
            )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        leading = inputs.shape[: inputs.dim() - len(self.in_shape)]
        return self.module(inputs.reshape(-1, *self.in_shape)).reshape(*leading, *self.out_shape)

    def start_output(self, bias: torch.Tensor) -> bool:
        """Leaves a module of the user's as it is."""
        return False


def _sizes(shape: torch.Size) -> str:
    return ", ".join(map(str, shape))


def as_network(module: nn.Module) -> Network:
    """`module` itself if it is a network of this library, otherwise the module wrapped as one."""
    if not isinstance(module, nn.Module):
        raise InputError(f"A network must be a torch.nn.Module, but got {module!r}.")
    return module if isinstance(module, Network) else Wrapped(module)
