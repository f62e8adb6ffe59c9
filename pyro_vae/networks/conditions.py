"""What the networks of p(x | z, y) and q(z | x, y) read of y: labels as one-hot codes, or features of anything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from pyro_vae.errors import InputError, positive_int, shape
from pyro_vae.networks.base import Network, as_network
from pyro_vae.networks.dense import MLP


class Condition(Network, ABC):
    """c = f(y), `num_features` numbers that are joined to what the other networks read (Sohn et al. 2015, section 3)."""

    @property
    @abstractmethod
    def y_shape(self) -> torch.Size:
        """Shape of one y."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """How many numbers one y becomes."""

    def check(self, y: torch.Tensor) -> None:
        """Refuses values of y that have no meaning here.

        Args:
            y: shape (N, *y_shape).

        Raises:
            InputError: on another shape or such a value, naming the first.
        """
        if y.shape[1:] != self.y_shape:
            wanted = ", ".join(["N", *map(str, self.y_shape)]) + ("" if self.y_shape else ",")
            raise InputError(f"y has shape {tuple(y.shape)}, but condition={self!r} wants ({wanted}).")


class Labels(Condition):
    """Labels 0, ..., num_labels − 1 as one-hot codes.

    They are whole numbers, (N,), which may be stored as floats.

    Args:
        num_labels: how many labels there are.
    """

    known: torch.Tensor

    def __init__(self, num_labels: int = 10):
        super().__init__()
        self.num_labels = positive_int("num_labels", num_labels)

    @property
    def y_shape(self) -> torch.Size:
        return torch.Size([])

    @property
    def num_features(self) -> int:
        return self.num_labels

    def setup(self) -> None:
        self.register_buffer("known", torch.arange(self.num_labels), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.eq(inputs.unsqueeze(-1), self.known).to(self.zero.dtype)

    def check(self, y: torch.Tensor) -> None:
        super().check(y)
        strange = (~torch.isin(y, self.known.to(y.dtype))).nonzero()
        if len(strange):
            at = int(strange[0])
            raise InputError(f"y[{at}] = {y[at].item():g} is no label; wanted are 0 to {self.num_labels - 1}.")


class Features(Condition):
    """Features of a y of any shape, by a network of its own; without one, the numbers of y themselves.

    Args:
        y_shape: shape of one y, such as (3, 14, 14); () for one number.
        num_features: how many numbers the network makes of it.
        network: reads y; MLP() by default if num_features is given. Any torch.nn.Module will do in Python.
    """

    def __init__(self, y_shape: Sequence[int], num_features: int | None = None, network: Network | None = None):
        super().__init__()
        self._y_shape = shape("y_shape", y_shape) if len(y_shape) else torch.Size([])
        if num_features is None and network is not None:
            raise InputError(f"network={network!r} needs num_features, how many numbers it makes of y.")
        self._num_features = None if num_features is None else positive_int("num_features", num_features)
        self.network = network

    @property
    def y_shape(self) -> torch.Size:
        return self._y_shape

    @property
    def num_features(self) -> int:
        return self._y_shape.numel() if self._num_features is None else self._num_features

    def arguments(self) -> dict[str, object]:
        return {"y_shape": list(self._y_shape), "num_features": self._num_features, "network": self.network}

    def setup(self) -> None:
        self.layers = None  # type: ignore[assignment]
        if self._num_features is not None:
            network = as_network(self.network or MLP())
            self.layers = network.build(in_shape=self.in_shape, out_shape=self.out_shape)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.layers is None:
            return inputs.reshape(*inputs.shape[: inputs.dim() - len(self.in_shape)], *self.out_shape)
        return self.layers(inputs)
