"""What a network is: a function from tensors to tensors, told by `build` which shapes it connects.

It sees inputs of shape (B, *in_shape) in `layers`; any leading dimensions are folded into B and unfolded again, so
plain torch layers serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.component import Component
from pyro_vae.errors import InputError


class Network(Component):
    """A function from tensors of shape (..., *in_shape) to (..., *out_shape); `setup` makes `self.layers`.

    Sizes that `build` sets:
        in_shape: shape of one input.
        out_shape: shape of one output.
        event_shape, input_shape: for a decoder that looks at x, shape of x and of what networks read of it.
    """

    sizes: ClassVar[tuple[str, ...]] = ("in_shape", "out_shape", "event_shape", "input_shape")
    in_shape: torch.Size
    out_shape: torch.Size
    event_shape: torch.Size | None = None
    input_shape: torch.Size | None = None
    layers: nn.Module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        leading = inputs.shape[: inputs.dim() - len(self.in_shape)]
        outputs = self.layers(inputs.reshape(-1, *self.in_shape))
        return outputs.reshape(*leading, *self.out_shape)

    def with_context(self, in_shape: torch.Size, num_features: int) -> torch.Size:
        """The `in_shape` to build this network to where `join` gives it a condition's features beside its inputs."""
        return torch.Size([in_shape.numel() + num_features])

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


def with_planes(in_shape: torch.Size, num_features: int) -> torch.Size:
    """`in_shape` of an image with a further plane for each feature; other shapes become vectors, as for any network."""
    if len(in_shape) not in (2, 3):
        return torch.Size([in_shape.numel() + num_features])
    planes = in_shape[0] if len(in_shape) == 3 else 1
    return torch.Size([planes + num_features, *in_shape[-2:]])


def join(inputs: torch.Tensor, features: torch.Tensor, in_shape: torch.Size, joined: torch.Size) -> torch.Tensor:
    """Inputs and a condition's features as one input: a longer vector, more columns of a set, or more planes of an image.

    Args:
        inputs: shape (..., *in_shape).
        features: shape (..., num_features); leading dimensions are broadcast.
        in_shape: of one input alone.
        joined: what `with_context` made of it.

    Returns:
        shape (..., *joined).
    """
    leading = torch.broadcast_shapes(inputs.shape[: inputs.dim() - len(in_shape)], features.shape[:-1])
    inputs = inputs.expand(*leading, *in_shape)
    features = features.expand(*leading, -1)
    if len(joined) == 1:
        return torch.cat([inputs.reshape(*leading, -1), features], dim=-1)
    if len(joined) == 2:
        return torch.cat([inputs, features.unsqueeze(-2).expand(*leading, joined[0], -1)], dim=-1)
    planes = features[..., None, None].expand(*leading, -1, *joined[1:])
    return torch.cat([inputs.reshape(*leading, -1, *joined[1:]), planes], dim=-3)


class Wrapped(Network):
    """Any torch module as a network: it is called with one batch dimension, (B, *in_shape).

    Args:
        module: the user's module; it must return (B, ...) with the numbers of `out_shape` in its last dimensions.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def with_context(self, in_shape: torch.Size, num_features: int) -> torch.Size:
        return with_planes(in_shape, num_features)

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
