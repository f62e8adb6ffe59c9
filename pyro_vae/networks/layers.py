"""What networks are made of: activations and normalisations by name, residual blocks, vectors joined, images' sizes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from pyro_vae.errors import InputError, one_of, positive_int

Norm = Literal["none", "batch", "layer"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in ("ReLU", "Tanh", "ELU", "GELU", "LeakyReLU", "SiLU", "Softplus", "Sigmoid", "Mish", "SELU", "Identity")
}


def activation_layer(name: str) -> nn.Module:
    """The activation called `name`, whatever its case."""
    known = {key.lower(): layer for key, layer in ACTIVATIONS.items()}
    return known[one_of("activation", name.lower(), known)]()


def side_by_side(*parts: torch.Tensor) -> torch.Tensor:
    """Vectors of any leading dimensions, broadcast, as one: (..., F_1 + F_2 + ...)."""
    leading = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*leading, part.shape[-1]) for part in parts], dim=-1)


def _by_averages(norm: nn.BatchNorm1d | nn.BatchNorm2d, inputs: torch.Tensor) -> torch.Tensor:
    """Batch normalisation by the running averages, for a last batch that holds one value a channel."""
    return F.batch_norm(inputs, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class BatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation of units, (B, units)."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) if inputs.numel() > inputs.shape[1] else _by_averages(self, inputs)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of planes, (B, planes, H, W)."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) if inputs.numel() > inputs.shape[1] else _by_averages(self, inputs)


def norm_layers(norm: str, width: int, image: bool) -> list[nn.Module]:
    """The normalisation called `norm` of so many units or planes, as a list that is empty for none."""
    if norm == "batch":
        return [BatchNorm2d(width) if image else BatchNorm1d(width)]
    if norm == "layer":
        return [nn.GroupNorm(1, width) if image else nn.LayerNorm(width)]
    return []


class Sum(nn.Module):
    """The sum of what two modules make of one input."""

    def __init__(self, skip: nn.Module, branch: nn.Module):
        super().__init__()
        self.skip, self.branch = skip, branch

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.skip(inputs) + self.branch(inputs)


def residual_block(before: int, after: int, stride: int, activation: str, norm: str) -> nn.Module:
    """x + conv(a(norm(conv(a(norm(x)))))), by a 1×1 convolution of x where sizes differ (He et al. 2016b, figure 4e)."""
    same = before == after and stride == 1
    return Sum(
        nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False),
        nn.Sequential(
            *norm_layers(norm, before, image=True),
            activation_layer(activation),
            nn.Conv2d(before, after, 3, stride, 1, bias=norm != "batch"),
            *norm_layers(norm, after, image=True),
            activation_layer(activation),
            nn.Conv2d(after, after, 3, padding=1, bias=norm != "batch"),
        ),
    )


def image_shape(role: str, shape: torch.Size) -> torch.Size:
    """`shape` as (channels, height, width); (height, width) counts as one channel."""
    if len(shape) not in (2, 3):
        raise InputError(f"{role} works on images, shape (C, H, W) or (H, W), but got {tuple(shape)}; use MLP.")
    return shape if len(shape) == 3 else torch.Size([1, *shape])


def halvings(size: int, times: int) -> list[int]:
    """`size` and what is left of it after each of `times` strides of two, rounding up."""
    sizes = [size]
    for _ in range(times):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def odd(name: str, value: int) -> int:
    """`value` as an odd whole number of at least 1."""
    if positive_int(name, value) % 2 == 0:
        raise InputError(f"{name}={value} must be odd, so that strides keep to the grid.")
    return value


def norm_name(value: str) -> Norm:
    """`value` if it names a normalisation."""
    return one_of("norm", value, ["none", "batch", "layer"])


def share(name: str, value: float) -> float:
    """`value` as a float from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(f"{name}={value!r} must be a number from 0 to below 1.")
    return float(value)
