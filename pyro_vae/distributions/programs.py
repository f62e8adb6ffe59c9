"""A Pyro program as the distribution of a vector: its sites' values, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from typing_extensions import Self

from pyro_vae.errors import InputError


class Generative(TorchDistribution):
    """p(z) of z = (site_1, site_2, ...) as a program samples them, each flattened.

    Args:
        program: samples the sites; called with `given`.
        given: arguments, whose leading dimensions are `zero`'s batch.
        zero: zeros of shape (*batch, D).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(self, program: Callable[..., Any], given: tuple[Any, ...], zero: torch.Tensor):
        self.program, self.given, self.zero = program, given, zero
        super().__init__(zero.shape[:-1], zero.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same with another batch shape."""
        batch, rank = torch.Size(batch_shape), len(self.batch_shape)
        given = tuple(y.expand(*batch, *y.shape[rank:]) for y in self.given)
        return type(self)(self.program, given, self.zero.expand(*batch, *self.event_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        """Draws, by running the program."""
        with torch.no_grad():
            sites = self._run(self._extended_shape(torch.Size(sample_shape))[:-1], None)
            return torch.cat([self._flat(site) for site in sites], dim=-1)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p in nats, by running the program with its sites held at their parts of the value."""
        shape = torch.broadcast_shapes(value.shape, self.zero.shape)
        sites = self._run(shape[:-1], value.expand(shape))
        return sum(site["fn"].log_prob(site["value"]) for site in sites)

    def _run(self, batch: torch.Size, value: torch.Tensor | None) -> list[dict[str, Any]]:
        """The sites in order; without the user's own handlers around it, as it is one site to them."""
        parts = _Parts(value, batch, self.event_shape[0])
        given = tuple(y.expand(*batch, *y.shape[len(self.batch_shape) :]) for y in self.given)
        hidden = poutine.block(hide_fn=lambda msg: msg["type"] == "sample")
        # Numbers become tensors on the default device: dist.Normal(0.0, 1.0) must not draw on the CPU for a GPU.
        with hidden, poutine.trace() as trace, parts, self.zero.device:
            self.program(*given)
        parts.check()
        sites = [s for s in trace.trace.nodes.values() if s["type"] == "sample"]
        return [{**site, "batch": batch} for site in sites]

    @staticmethod
    def _flat(site: dict[str, Any]) -> torch.Tensor:
        event = site["value"].shape[site["value"].dim() - site["fn"].event_dim :]
        return site["value"].expand(*site["batch"], *event).reshape(*site["batch"], -1)


class _Parts(poutine.messenger.Messenger):
    """Gives each site the batch and its part of the vector, and counts how much of it is used."""

    def __init__(self, value: torch.Tensor | None, batch: torch.Size, size: int):
        super().__init__()
        self.value, self.batch, self.size, self.used = value, batch, size, 0

    def _pyro_sample(self, msg: Any) -> None:
        if poutine.util.site_is_subsample(msg):
            raise InputError(
                f"program has the plate {msg['name']!r}; make its sites one by .to_event(1), without a plate."
            )
        msg["fn"] = msg["fn"].expand(self.batch)  # plates can't say it: the model's own are around it
        event = msg["fn"].event_shape
        start, self.used = self.used, self.used + event.numel()
        if self.value is not None and self.used <= self.size:
            part = self.value[..., start : self.used]
            msg["value"] = part.reshape(*part.shape[:-1], *event)
            msg["done"] = True

    def check(self) -> None:
        """Refuses a program whose sites do not fill the latent."""
        if self.used != self.size:
            raise InputError(
                f"program samples {self.used} numbers in all, but latent_dim={self.size}; make the two agree."
            )
