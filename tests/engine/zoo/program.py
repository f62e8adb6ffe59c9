"""What a program of the zoo is, how it is registered, and the parts that most programs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn

STEPS = 30
VALUES = {1: 1.5, 10: 0.6, 25: 2.5}  # what a changing number becomes, by step; it begins as 1.0

_changes = True  # False in control runs


def changes() -> bool:
    """Whether programs made now shall change; asked by factories whose programs change by themselves."""
    return _changes


def set_changes(value: bool) -> None:
    """Sets what `changes` returns."""
    global _changes
    _changes = value


def batches() -> list[torch.Tensor]:
    """Three batches of shape (8, 3)."""
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(3, 8, 3, generator=generator))


def rotating() -> Callable[[int], tuple[torch.Tensor, ...]]:
    """The arguments of most programs: the three batches in turn."""
    data = batches()
    return lambda step: (data[step % 3],)


@dataclass
class Program:
    """One use of SVI, from a fresh state.

    Attributes:
        model, guide, optim, loss: the arguments of SVI.
        args, kwargs: of the step's index, to the arguments of that step.
        between: called with the step's index before each step, in runs with changes.
        kept: returns what the program recorded, and what of the user's state must be equal at the end.
        take: of the program and the step's index, to the loss; `svi.step` on the arguments unless given.
        close: puts back what the program changed outside of itself.
        subclass: of the class `SVI`, to a subclass that is used in its place.
        svi: the SVI that runs the program, set by the runner.
        make: makes a further SVI of the same kind, set by the runner before `start` is called.
        start: called once, after `svi` is made.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    optim: Any = field(default_factory=lambda: pyro.optim.Adam({"lr": 0.02}))
    loss: Any = field(default_factory=Trace_ELBO)
    args: Callable[[int], tuple[Any, ...]] = field(default_factory=rotating)
    kwargs: Callable[[int], dict[str, Any]] = lambda step: {}
    between: Callable[[int], None] = lambda step: None
    kept: Callable[[], Any] = lambda: None
    take: Callable[[Program, int], Any] | None = None
    close: Callable[[], None] = lambda: None
    subclass: Callable[[type], type] = lambda base: base
    start: Callable[[], None] = lambda: None
    svi: Any = None
    make: Callable[..., Any] | None = None

    def step(self, step: int) -> Any:
        """Takes one step and returns its loss."""
        if self.take is not None:
            return self.take(self, step)
        return self.svi.step(*self.args(step), **self.kwargs(step))


@dataclass(frozen=True)
class Entry:
    """A registered program.

    Attributes:
        name: of the factory.
        subject: the file it stands in.
        factory: makes a fresh `Program`.
        eager: parts of a warning, one of which must occur; empty if numbers have to be equal, captured or not.
        captured: whether the program must run as a captured graph in mode "graph".
        visible: whether the losses differ from those of a run without changes.
        exact: whether parameters are compared, too; False where their gradients are zero up to rounding.
        warnings: how many warnings are allowed.
    """

    name: str
    subject: str
    factory: Callable[[], Program]
    eager: tuple[str, ...] = ()
    captured: bool = False
    visible: bool = True
    exact: bool = True
    warnings: int = 1

    @property
    def description(self) -> str:
        """What changes, in words."""
        return " ".join((self.factory.__doc__ or "").split())


ENTRIES: dict[str, Entry] = {}


def program(*eager: str, **options: Any) -> Callable[[Callable[[], Program]], Callable[[], Program]]:
    """Registers a factory. Positional arguments are parts of a warning, one of which has to occur."""

    def register(factory: Callable[[], Program]) -> Callable[[], Program]:
        name, subject = factory.__name__, factory.__module__.rsplit(".", 1)[-1]
        if name in ENTRIES:
            raise ValueError(f"two programs are named {name!r}")
        ENTRIES[name] = Entry(name, subject, factory, eager, **options)
        return factory

    return register


# --- parts of programs ----------------------------------------------------------------------------------------------------


def decoder_net() -> nn.Linear:
    """Two latent dimensions to three outputs."""
    torch.manual_seed(11)
    return nn.Linear(2, 3)


def encoder_net() -> nn.Linear:
    """Three inputs to two locations and two log-scales."""
    torch.manual_seed(12)
    return nn.Linear(3, 4)


def observe(x: torch.Tensor, decoder: Callable[[torch.Tensor], torch.Tensor], scale: Any = 1.0) -> torch.Tensor:
    """The usual model: z from its prior, x around the decoder's output. Returns z."""
    if isinstance(decoder, nn.Module):
        pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)
    return z


def infer(x: torch.Tensor, encoder: nn.Module, scale: Any = 1.0) -> torch.Tensor:
    """The usual guide. Returns z."""
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, raw = encoder(x).chunk(2, -1)
        return pyro.sample("z", dist.Normal(loc, scale * raw.mul(0.5).exp()).to_event(1))


def usual_model() -> Callable[[torch.Tensor], torch.Tensor]:
    """A model with a decoder of its own."""
    decoder = decoder_net()

    def model(x, *args, **kwargs):
        return observe(x, decoder)

    return model


def usual_guide() -> Callable[[torch.Tensor], torch.Tensor]:
    """A guide with an encoder of its own."""
    encoder = encoder_net()

    def guide(x, *args, **kwargs):
        return infer(x, encoder)

    return guide


def at_steps(write: Callable[[float], Any], values: dict[int, float] | None = None) -> Callable[[int], None]:
    """A hook that writes a number before some steps."""
    values = VALUES if values is None else values

    def between(step: int) -> None:
        if step in values:
            write(values[step])

    return between


def changing(
    model: Callable[..., Any],
    write: Callable[[float], Any],
    guide: Callable[..., Any] | None = None,
    values: dict[int, float] | None = None,
    **options: Any,
) -> Program:
    """A program whose number is written from outside at steps 1, 10 and 25."""
    return Program(model, guide or usual_guide(), between=at_steps(write, values), **options)


def alone(model: Callable[..., Any], guide: Callable[..., Any] | None = None, **options: Any) -> Program:
    """A program that nothing is written to from outside."""
    return Program(model, guide or usual_guide(), **options)
