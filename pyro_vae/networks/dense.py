"""Networks of vectors, sets and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from pyro_vae.errors import InputError, one_of, positive_int, widths
from pyro_vae.networks.base import Network
from pyro_vae.networks.layers import Norm, Sum, activation_layer, norm_layers, norm_name, share


class MLP(Network):
    """Layers of `hidden` units, a(W h + b) with activation a, and a linear layer to the output.

    Args:
        hidden: widths of the hidden layers; [] gives one linear map.
        activation: name of a torch activation, such as tanh or ReLU.
        residual: add each hidden layer's input to what it returns, h + a(W h + b), by a linear map of its own where
            widths differ (He et al. 2016a, eq. 1 and 2).
        norm: "batch" or "layer" normalises W h + b; under "batch" a datum's score in training depends on its batch.
        dropout: which share of hidden units training leaves out, from 0 to below 1.
        init: "torch" starts weights as torch.nn.Linear does, under which a signal shrinks by about √3 with each layer;
            "glorot" keeps its size, which deep or stacked networks learn faster from (Glorot & Bengio 2010, eq. 16), and
            starts biases at 0.
    """

    gated = False  # whether a hidden layer is half content, half gate

    def __init__(
        self,
        hidden: Sequence[int] = (400,),
        activation: str = "Softplus",
        residual: bool = False,
        norm: Norm = "none",
        dropout: float = 0.0,
        init: Literal["torch", "glorot"] = "torch",
    ):
        super().__init__()
        self.hidden = widths("hidden", hidden)
        self.init = one_of("init", init, ["torch", "glorot"])
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
        if self.init == "glorot":
            for part in self.layers.modules():
                if isinstance(part, nn.Linear):
                    nn.init.xavier_uniform_(part.weight)
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)


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

    def with_context(self, in_shape: torch.Size, num_features: int) -> torch.Size:
        return torch.Size([in_shape[0], in_shape[1] + num_features])

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
