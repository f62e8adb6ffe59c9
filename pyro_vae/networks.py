"""Networks: from data to the guide's parameters, and from latents to the likelihood's.

A network is told by `build` which shapes it connects, and sees inputs of shape (B, *in_shape) in `layers`;
any leading dimensions are folded into B and unfolded again, so plain torch layers serve.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pyro_vae.checks import InputError, one_of, positive_int, widths
from pyro_vae.component import Component

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in ("ReLU", "Tanh", "ELU", "GELU", "LeakyReLU", "SiLU", "Softplus", "Sigmoid", "Mish", "SELU", "Identity")
}


def activation_layer(name: str) -> nn.Module:
    """The activation called `name`, whatever its case."""
    known = {key.lower(): layer for key, layer in ACTIVATIONS.items()}
    return known[one_of("activation", name.lower(), known)]()


class Network(Component):
    """A function from tensors of shape (..., *in_shape) to (..., *out_shape); `setup` makes `self.layers`."""

    in_shape: torch.Size
    out_shape: torch.Size
    layers: nn.Module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        leading = inputs.shape[: inputs.dim() - len(self.in_shape)]
        outputs = self.layers(inputs.reshape(-1, *self.in_shape))
        return outputs.reshape(*leading, *self.out_shape)


class MLP(Network):
    """Layers of `hidden` units with an activation between them, and a linear layer to the output.

    Args:
        hidden: widths of the hidden layers; [] gives one linear map.
        activation: name of a torch activation, such as tanh or ReLU.
    """

    def __init__(self, hidden: Sequence[int] = (400,), activation: str = "Softplus"):
        super().__init__()
        self.hidden = widths("hidden", hidden)
        self.activation = activation
        activation_layer(activation)

    def setup(self) -> None:
        sizes = [self.in_shape.numel(), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(width_in, width_out), activation_layer(self.activation)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], self.out_shape.numel()))


def _image_shape(role: str, shape: torch.Size) -> torch.Size:
    """`shape` as (channels, height, width); (height, width) counts as one channel."""
    if len(shape) not in (2, 3):
        raise InputError(f"{role} works on images, shape (C, H, W) or (H, W), but got {tuple(shape)}; use MLP.")
    return shape if len(shape) == 3 else torch.Size([1, *shape])


def _halvings(size: int, times: int) -> list[int]:
    """`size` and what is left of it after each of `times` strides of two, rounding up."""
    sizes = [size]
    for _ in range(times):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


class ConvEncoder(Network):
    """Convolutions of stride 2, one per entry of `channels`, then a linear layer to the output.

    Args:
        channels: channels after each convolution; each halves height and width.
        kernel: side of the kernels, an odd number.
        activation: name of a torch activation.
    """

    def __init__(self, channels: Sequence[int] = (32, 64), kernel: int = 3, activation: str = "ReLU"):
        super().__init__()
        self.channels = widths("channels", channels)
        self.kernel = _odd("kernel", kernel)
        self.activation = activation
        activation_layer(activation)

    def setup(self) -> None:
        planes, height, width = _image_shape("ConvEncoder", self.in_shape)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, height))] if len(self.in_shape) == 2 else []
        for before, after in zip([planes, *self.channels], self.channels, strict=False):
            layers.append(nn.Conv2d(before, after, self.kernel, stride=2, padding=self.kernel // 2))
            layers.append(activation_layer(self.activation))
        height, width = (_halvings(side, len(self.channels))[-1] for side in (height, width))
        flat = [planes, *self.channels][-1] * height * width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, self.out_shape.numel()))


class ConvDecoder(Network):
    """A linear layer to feature maps, then transposed convolutions of stride 2 up to the image.

    Args:
        channels: channels before each transposed convolution; each doubles height and width.
        kernel: side of the kernels, an odd number.
        activation: name of a torch activation.
    """

    def __init__(self, channels: Sequence[int] = (64, 32), kernel: int = 3, activation: str = "ReLU"):
        super().__init__()
        self.channels = widths("channels", channels)
        self.kernel = _odd("kernel", kernel)
        self.activation = activation
        activation_layer(activation)

    def setup(self) -> None:
        planes, height, width = _image_shape("ConvDecoder", self.out_shape)
        depth = len(self.channels)
        heights, widths_ = _halvings(height, depth)[::-1], _halvings(width, depth)[::-1]
        first = [*self.channels, planes][0]
        layers: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(self.in_shape.numel(), first * heights[0] * widths_[0]),
            nn.Unflatten(1, (first, heights[0], widths_[0])),
        ]
        for i, (before, after) in enumerate(zip(self.channels, [*self.channels[1:], planes], strict=True)):
            # A stride of two reaches 2n − 1; the padding adds the last row or column where the side is even.
            extra = (heights[i + 1] - 2 * heights[i] + 1, widths_[i + 1] - 2 * widths_[i] + 1)
            layers.append(activation_layer(self.activation))
            layers.append(nn.ConvTranspose2d(before, after, self.kernel, 2, self.kernel // 2, output_padding=extra))
        self.layers = nn.Sequential(*layers)


def _odd(name: str, value: int) -> int:
    if positive_int(name, value) % 2 == 0:
        raise InputError(f"{name}={value} must be odd, so that strides keep to the grid.")
    return value


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


def _sizes(shape: torch.Size) -> str:
    return ", ".join(map(str, shape))


def as_network(module: nn.Module) -> Network:
    """`module` itself if it is a network of this library, otherwise the module wrapped as one."""
    if not isinstance(module, nn.Module):
        raise InputError(f"A network must be a torch.nn.Module, but got {module!r}.")
    return module if isinstance(module, Network) else Wrapped(module)
