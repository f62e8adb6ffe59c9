"""What priors, likelihoods, guides and networks share: arguments now, sizes later."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self

from pyro_vae.errors import InputError


class Declared:
    """An object that keeps each constructor argument under the argument's name, and so prints as it was made.

    Attributes:
        kept_as: the attributes of arguments that are kept under another name.
    """

    kept_as: ClassVar[dict[str, str]] = {}

    def argument(self, name: str) -> Any:
        """The constructor's argument of that name."""
        return getattr(self, self.kept_as.get(name, name))

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, as they were given."""
        return {name: self.argument(name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        defaults = {n: p.default for n, p in inspect.signature(type(self)).parameters.items()}
        given = {n: v for n, v in self.arguments().items() if v is not defaults[n] and v != defaults[n]}
        return f"{type(self).__name__}({', '.join(f'{n}={_shown(v)}' for n, v in given.items())})"


def _shown(value: Any) -> str:
    if inspect.isfunction(value):
        return value.__qualname__
    return repr(tuple(value) if isinstance(value, torch.Size) else value)


class Component(Declared, nn.Module):
    """A part of a VAE that carries its own hyper-parameters until `build` tells it the sizes.

    A subclass stores each constructor argument under the argument's name, so that it prints as, saves as
    and rebuilds from its spec. What depends on sizes (parameters, layers) is made in `setup`.

    Attributes:
        sizes: names that `build` takes; each becomes an attribute.
        built: whether the sizes are known.
    """

    sizes: ClassVar[tuple[str, ...]] = ()
    built: bool = False
    zero: torch.Tensor

    def __init__(self) -> None:
        super().__init__()  # without this, a subclass that takes no argument would seem to take nn.Module's

    def build(self, **sizes: Any) -> Self:
        """Makes the parameters, now that the sizes are known; each size becomes an attribute.

        Raises:
            InputError: if this instance is already part of a model, or a size is not one of `sizes`.
        """
        refuse_built(self)
        for name, value in sizes.items():
            if name not in self.sizes:
                raise InputError(f"{self!r}.build() takes {', '.join(self.sizes)}, but got {name}={value!r}.")
            setattr(self, name, value)
        # The zero that distributions expand from: it moves with the module, so no device is named anywhere.
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.setup()
        self.built = True
        return self

    def setup(self) -> None:
        """Makes parameters and layers; sizes are attributes by now. Nothing to do for most components."""


def refuse_built(component: Component, argument: str = "") -> None:
    """Raises an InputError if a component is already part of a model.

    Args:
        component: to look at.
        argument: the name under which it was given.
    """
    if component.built:
        said = f"{argument}={component!r}" if argument else repr(component)
        raise InputError(
            f"{said} is already built into a model; give each model, and each place in it, its own instance."
        )
