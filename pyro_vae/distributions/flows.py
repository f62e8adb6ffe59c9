"""A base distribution pushed through invertible maps, with the density of its own draws at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import nn
from torch.distributions import Transform
from typing_extensions import Self

from pyro_vae.errors import InputError

Kind = Literal["coupling", "autoregressive", "spline"]


class Pushed(TorchDistribution):
    """z = t_L(...t_1(z_0)) with z_0 from `base`: log q(z) = log q_0(z_0) − Σ log |det ∂t| (Rezende & Mohamed 2015, eq. 7).

    The density of a draw is noted as it is made, so that maps which are costly to invert, or which no one can invert,
    cost nothing. Other values are sent back through the inverses.

    Args:
        base: distribution of event rank 1.
        maps: transforms from base to z, in order; each maps vectors and takes any leading dimensions.
        support: where z lies; all of R^D by default.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        base: TorchDistribution,
        maps: Sequence[Transform],
        support: Any = constraints.real_vector,
    ):
        self.base, self.maps = base, list(maps)
        self._support = support
        self._drawn: tuple[torch.Tensor, torch.Tensor] | None = None
        event_shape = base.event_shape
        for one in self.maps:
            event_shape = one.forward_shape(event_shape)[-1:]  # without the batch of a map's own parameters
        super().__init__(base.batch_shape, event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Where draws lie."""
        return self._support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """As the base has."""
        return self.base.has_rsample

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        return type(self)(self.base.expand(torch.Size(batch_shape)), self.maps, self._support)

    def rsample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws, differentiable in base and maps; their densities are kept for `log_prob`."""
        return self._push(self.base.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            value = self._push(self.base.sample(torch.Size(sample_shape)))
        if torch.is_grad_enabled():  # the density at a fixed value has a gradient in the parameters, by the inverses
            self._drawn = None
        return value

    def _push(self, start: torch.Tensor) -> torch.Tensor:
        value, log_density = start, self.base.log_prob(start)
        for one in self.maps:
            value, log_det = _with_log_det(one, value)
            log_density = log_density - log_det
        self._drawn = (value, log_density)
        return value

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log q(value) in nats.

        Raises:
            NotImplementedError: for values that it has not drawn, if a map has no inverse.
        """
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        log_dets = []
        for one in reversed(self.maps):
            try:
                before = one.inv(value)
            except KeyError as error:  # Pyro's way of saying so
                raise NotImplementedError(f"{type(one).__name__} has no inverse.") from error
            log_dets.append(one.log_abs_det_jacobian(before, value))
            value = before
        return self.base.log_prob(value) - sum(log_dets)


def _with_log_det(one: Transform, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if hasattr(one, "call_and_ladj"):  # zuko's, which finds both in one pass
        return one.call_and_ladj(value)
    after = one(value)
    return after, one.log_abs_det_jacobian(value, after)


def autoregressive_maps(
    kind: Kind, size: int, context: int, transforms: int, hidden: Sequence[int], bins: int = 8
) -> nn.ModuleList:
    """zuko's transforms for vectors of `size` numbers, each of whose reversed order the next one takes.

    Each is a module that, given the context, returns a Transform which is one pass forwards; its inverse takes
    `size` passes (two for "coupling").

    Args:
        kind: "coupling" (Dinh et al. 2017), "autoregressive" (Kingma et al. 2016; Papamakarios et al. 2017), both
            affine, or "spline", autoregressive with rational quadratic splines (Durkan et al. 2019).
        size: D.
        context: how many numbers they are conditioned on; 0 for none.
        transforms: how many.
        hidden: widths of each one's network.
        bins: of each spline.

    Raises:
        InputError: for a coupling of a single number, which has nothing to couple.
    """
    flows = zuko()
    if kind == "coupling" and size < 2:
        raise InputError(
            'kind="coupling" needs a latent of at least two dimensions; take "autoregressive" or "spline".'
        )
    extra: dict[str, Any] = {}
    if kind == "spline":
        extra = {
            "univariate": flows.transforms.MonotonicRQSTransform,
            "shapes": [(bins,), (bins,), (bins - 1,)],
        }
    orders = [torch.arange(size), torch.arange(size - 1, -1, -1)]
    return nn.ModuleList(
        flows.flows.MaskedAutoregressiveTransform(
            features=size,
            context=context,
            passes=2 if kind == "coupling" else None,
            order=orders[i % 2],
            hidden_features=tuple(hidden),
            activation=nn.ELU,
            **extra,
        )
        for i in range(transforms)
    )


def zuko() -> Any:
    """The library zuko, whose import switches off the validation of distributions everywhere: that is put back."""
    validate = torch.distributions.Distribution._validate_args
    try:
        import zuko
    finally:
        torch.distributions.Distribution.set_default_validate_args(validate)
    return zuko
