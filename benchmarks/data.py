"""The same images for all contenders: torchvision's MNIST where it is at hand, otherwise made-up ones."""

from __future__ import annotations

import torch

from benchmarks.harness import Options

BATCHES = 50  # of a training run's batches, gone through again and again


def grey_images(options: Options, count: int) -> torch.Tensor:
    """(count, 784) values from 0 to 1: MNIST's, or noisy copies of ten made-up prototypes, which are 0 and 1 alone."""
    if options.data_root is not None:
        from torchvision.datasets import MNIST

        return MNIST(options.data_root, train=True).data[:count].flatten(1) / 255
    generator = torch.Generator().manual_seed(0)
    prototypes = (torch.rand(10, 784, generator=generator) < 0.3).float()
    chosen = prototypes[torch.randint(10, (count,), generator=generator)]
    flipped = torch.rand(count, 784, generator=generator) < 0.05
    return (chosen - flipped.float()).abs()


def binary_images(options: Options, count: int) -> torch.Tensor:
    """(count, 784) zeros and ones."""
    return torch.bernoulli(grey_images(options, count), generator=torch.Generator().manual_seed(1))


def batches(options: Options, size: int, event_shape: tuple[int, ...] = (784,)) -> list[torch.Tensor]:
    """The sequence of batches that every contender trains on."""
    return list(binary_images(options, BATCHES * size).view(BATCHES, size, *event_shape))
