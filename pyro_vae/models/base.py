"""What every pair made of components has: a name for Pyro, a spec, a check of its data."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from pyro_vae.component import Component, Declared, refuse_built
from pyro_vae.errors import InputError, one_of, shape
from pyro_vae.guides import Guide
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import Condition, Labels, Network
from pyro_vae.networks.base import join

_numbers = itertools.count()


def _former_keys(pair: nn.Module, tensors: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Renames, in a state to be loaded, the keys that version 0.1 gave to the guide family."""
    former = re.compile(rf"({re.escape(prefix)}(?:levels\.\d+\.)?)posterior\.")
    for key in [key for key in tensors if former.match(key)]:
        tensors[former.sub(r"\1guide_family.", key, count=1)] = tensors.pop(key)


class ComposedPair(Declared, nn.Module):
    """A model and a guide built from components, for data of shape `event_shape`.

    Args:
        event_shape: shape of one datum, such as (784,) or (1, 28, 28).
    """

    likelihood: Likelihood
    guide_family: Guide
    kept_as: ClassVar[dict[str, str]] = {"guide": "guide_family"}  # `guide` itself is the Pyro program

    def __init__(self, event_shape: Sequence[int]):
        super().__init__()
        self.event_shape = shape("event_shape", event_shape)
        self.condition: Condition | None = None
        self.register_load_state_dict_pre_hook(_former_keys)
        self._rename()

    def _rename(self) -> None:
        # Pyro keeps parameters by name in one store, so each instance needs a name that no other has.
        self.name = f"{type(self).__name__}_{next(_numbers)}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # reached by copy.deepcopy: the copy must not share the original's parameters
        self._rename()

    def place(self, component: Any, kind: type[Component], argument: str) -> Any:
        """`component` after a look that it is of the right kind and not yet part of a model."""
        if not isinstance(component, kind):
            raise InputError(f"{argument}={component!r} must be a {kind.__module__}.{kind.__name__}.")
        refuse_built(component, argument)
        return component

    @property
    def posterior(self) -> Guide:
        """The former name of `guide_family`."""
        return self.guide_family

    @property
    def table_columns(self) -> Sequence[Mapping[str, Any]]:
        """The columns of the table that x is, as plain values; none where x is no table."""
        return getattr(self.likelihood, "schema", ())

    # --- y, for pairs of p(x | y) -----------------------------------------------------------------------------------

    @property
    def num_conditions(self) -> int:
        """How many tensors a batch must hold beside x."""
        return 0 if self.condition is None else 1

    @property
    def takes_labels(self) -> bool:
        """Whether a batch is (x, y) with y the label of each datum."""
        return isinstance(self.condition, Labels)

    @property
    def prior_condition_shape(self) -> torch.Size | None:
        """Shape of what the prior reads of y; None for p(z)."""
        if self.condition is None or not self.conditional_prior:
            return None
        return torch.Size([self.condition.num_features])

    def condition_on(self, condition: Condition | None, conditional_prior: bool) -> None:
        """Keeps the network of y, built, and whether priors read y too; None for a pair of x alone."""
        self.conditional_prior = one_of("conditional_prior", conditional_prior, [False, True])
        if condition is None:
            if conditional_prior:
                raise InputError("conditional_prior=True needs a condition=, such as networks.Labels(10).")
            return
        self.condition = self.place(condition, Condition, "condition")
        self.condition.build(in_shape=condition.y_shape, out_shape=torch.Size([condition.num_features]))

    def context(self, y: torch.Tensor | None) -> torch.Tensor | None:
        """What networks read of y, (N, num_features); None where there is no y.

        Raises:
            InputError: if y is missing, or there is one and none is wanted.
        """
        if (y is None) != (self.condition is None):
            raise InputError(
                f"{type(self).__name__} has condition={self.condition!r}, but the batch holds "
                f"{'x alone; pass (x, y), or condition=y where x is drawn' if y is None else 'a y beside x'}."
            )
        return None if y is None or self.condition is None else self.condition(y)

    def joined_shape(self, network: Network, in_shape: torch.Size) -> torch.Size:
        """The `in_shape` to which a network is built that reads `in_shape` and y."""
        return in_shape if self.condition is None else network.with_context(in_shape, self.condition.num_features)

    def joined(
        self, network: Network, inputs: torch.Tensor, in_shape: torch.Size, c: torch.Tensor | None
    ) -> torch.Tensor:
        """What such a network is given: inputs of shape (..., *in_shape), with the features c of y if there are some."""
        return inputs if c is None else join(inputs, c, in_shape, network.in_shape)

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, components as they are; those that are None are left out."""
        return {name: value for name, value in super().arguments().items() if value is not None}

    def start_at(self, mean: torch.Tensor) -> bool:
        """Sets the decoder's output biases so that the likelihood starts at the data's mean, if both can say how.

        Args:
            mean: of the data, shape `event_shape`.
        """
        bias, decoder = self.likelihood.start(mean), self.decoder
        return bias is not None and isinstance(decoder, Network) and decoder.start_output(bias)

    def check(self, x: torch.Tensor, *further: torch.Tensor) -> None:
        """Refuses data that the model can't have made, naming the first offending entry.

        Args:
            x: shape (N, *event_shape).
            further: y, where the model is conditioned on it.
        """
        name, wanted = type(self).__name__, self.num_conditions
        if len(further) != wanted:
            kind = "(x, y)" if wanted else "one tensor x"
            raise InputError(f"{name} takes {kind}, but the batch holds {1 + len(further)} tensors.")
        if x.is_floating_point() and x.dtype != (own := next(self.parameters()).dtype):
            raise InputError(
                f"x is {x.dtype}, but the {name}'s parameters are {own}; convert one: x.to({own}) or .to({x.dtype}) of the "
                "model."
            )
        self.likelihood.check(x)
        self.check_condition(*further)

    def check_condition(self, *further: torch.Tensor) -> None:
        """Refuses values of y that have no meaning here.

        Args:
            further: y, shape (N, *y_shape), where the model is conditioned on it.
        """
        if self.condition is not None:
            for y in further:
                self.condition.check(y)
