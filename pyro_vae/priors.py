"""Priors: what z looks like before x is seen.

A prior is a module whose `forward()` returns p(z), a distribution with batch shape () and event shape
`latent_shape`; `VAE` expands it over the data. Given y of shape (N, *condition_shape) it returns p(z | y), batch
shape (N,). A new one is a class like those below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn
from torch.nn import functional as F

from pyro_vae.checks import InputError, one_of, positive, positive_int, widths
from pyro_vae.component import Component
from pyro_vae.distributions.codes import OneHotGroups, RelaxedGroups
from pyro_vae.distributions.flows import Pushed, autoregressive_maps
from pyro_vae.distributions.programs import Generative
from pyro_vae.distributions.sequences import Sequential
from pyro_vae.distributions.sphere import PowerSpherical, SphereUniform


class Prior(Component):
    """p(z), the distribution of a latent of shape `latent_shape`.

    Sizes that `build` sets:
        latent_shape: shape of one latent, such as (20,).
        input_shape: shape of what the encoder reads, for priors that look at made-up data.
        pseudo_input: maps free real numbers of shape (..., *input_shape) to what the encoder could read.
        posterior: gives q(z | input) for inputs of shape (K, *input_shape).
        relaxation: gives the temperature at which the guide relaxes discrete latents just now, or None.
        condition_shape: shape of y for p(z | y); None for p(z).
    """

    latent_shape: torch.Size
    input_shape: torch.Size
    pseudo_input: Callable[[torch.Tensor], torch.Tensor]
    posterior: Callable[[torch.Tensor], TorchDistribution]
    relaxation: Callable[[], torch.Tensor | None]
    condition_shape: torch.Size | None = None

    @property
    def space(self) -> str:
        """Where z lies, in a word or two: the guide must draw from there too."""
        return "real"

    @property
    def latent_rank(self) -> int:
        """How many dimensions one latent has."""
        return len(self.latent_shape)

    def learn(self, name: str, start: torch.Tensor, *, given: bool = True) -> None:
        """Makes an array to be learned; for p(z | y) one that is linear in y, and starts as `start` for every y."""
        if self.condition_shape is None or not given:
            self.register_parameter(name, nn.Parameter(start))
            return
        layer = nn.Linear(self.condition_shape.numel(), start.numel())
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(start.flatten())
        self.add_module(name, nn.Sequential(layer, nn.Unflatten(-1, start.shape)) if start.dim() else layer)

    def value(self, name: str, condition: torch.Tensor | None) -> torch.Tensor:
        """The array, shape (*batch, *start.shape): one for each y if there are some."""
        held, y = getattr(self, name), self.context(condition)
        return held if isinstance(held, nn.Parameter) else held(y)

    def context(self, condition: torch.Tensor | None) -> torch.Tensor | None:
        """y as vectors, (*batch, C); None for p(z).

        Raises:
            InputError: if y is missing, or there is one and none is wanted.
        """
        if (condition is None) != (self.condition_shape is None):
            wanted = "none" if self.condition_shape is None else f"(N, {', '.join(map(str, self.condition_shape))})"
            raise InputError(
                f"condition={'None' if condition is None else tuple(condition.shape)}; wanted is {wanted}."
            )
        return None if condition is None else condition.flatten(condition.dim() - len(self.condition_shape))

    def centred(self, condition: torch.Tensor | None) -> torch.Tensor:
        """Zero, or where y moves the centre to (see `setup` of those that use it), (*batch, *latent_shape)."""
        if self.context(condition) is None:
            return self.zero.expand(self.latent_shape)
        return self.value("centre", condition)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        """p(z), batch shape (), event shape `latent_shape`; or p(z | y), batch shape that of y."""
        raise NotImplementedError(f"{type(self).__name__} must define forward().")


class Centred(Prior, ABC):
    """A prior of fixed form around zero; given y, around a point that is linear in y."""

    def setup(self) -> None:
        if self.condition_shape is not None:
            self.learn("centre", torch.zeros(self.latent_shape))

    @abstractmethod
    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        """p(z) or p(z | y)."""


class StandardNormal(Centred):
    """p(z) = N(z | 0, I), the prior of Kingma & Welling 2014 (section 3); p(z | y) = N(z | W y, I)."""

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        return dist.Normal(self.centred(condition), self.zero + 1).to_event(self.latent_rank)


class Normal(Prior):
    """p(z) = N(z | loc, diag scale²), both learned (Kingma & Welling 2019); given y, linear in y."""

    def setup(self) -> None:
        self.learn("loc", torch.zeros(self.latent_shape))
        self.learn("log_scale", torch.zeros(self.latent_shape))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        scale = self.value("log_scale", condition).exp()
        return dist.Normal(self.value("loc", condition), scale).to_event(self.latent_rank)


class Laplace(Centred):
    """p(z) = Π_d Laplace(z_d | 0, scale), for sparser codes than the normal's (Park et al. 2019).

    Args:
        scale: width of each dimension, in latent units.
    """

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = positive("scale", scale)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        return dist.Laplace(self.centred(condition), self.zero + self.scale).to_event(self.latent_rank)


class StudentT(Centred):
    """p(z) = Π_d StudentT(z_d | df, 0, scale): heavy tails, which pull outliers in less (Chen et al. 2020, t-VAE).

    Args:
        df: degrees of freedom; the variance is finite above 2.
        scale: width of each dimension, in latent units.
    """

    def __init__(self, df: float = 5.0, scale: float = 1.0):
        super().__init__()
        self.df = positive("df", df)
        self.scale = positive("scale", scale)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        zero = self.zero
        return dist.StudentT(zero + self.df, self.centred(condition), zero + self.scale).to_event(self.latent_rank)


class Mixture(Prior):
    """p(z) = Σ_k π_k N(z | μ_k, diag σ_k²) with π, μ and σ learned (Dilokthanakul et al. 2016, section 3).

    Args:
        components: number of Gaussians K.
        spread: standard deviation of the starting means around 0, in latent units.
    """

    def __init__(self, components: int = 10, spread: float = 1.0):
        super().__init__()
        self.components = positive_int("components", components)
        self.spread = positive("spread", spread)

    def setup(self) -> None:
        self.learn("logits", torch.zeros(self.components))
        self.learn("loc", self.spread * torch.randn(self.components, *self.latent_shape))
        self.learn("log_scale", torch.zeros(self.components, *self.latent_shape))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        loc, log_scale = self.value("loc", condition), self.value("log_scale", condition)
        parts = dist.Normal(loc, log_scale.exp()).to_event(self.latent_rank)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.value("logits", condition)), parts)


class Vamp(Prior):
    """p(z) = 1/K Σ_k q(z | u_k): the guide at K learned pseudo-inputs (Tomczak & Welling 2018, eq. 9).

    Given y, the weights of the pseudo-inputs depend on y: p(z | y) = Σ_k π_k(y) q(z | u_k).

    Args:
        pseudo_inputs: number of pseudo-inputs K.
        spread: standard deviation of the free numbers that the pseudo-inputs start from.
    """

    def __init__(self, pseudo_inputs: int = 50, spread: float = 1.0):
        super().__init__()
        self.pseudo_inputs = positive_int("pseudo_inputs", pseudo_inputs)
        self.spread = positive("spread", spread)

    @property
    def space(self) -> str:
        return "the guide's"

    def setup(self) -> None:
        self.free_inputs = nn.Parameter(self.spread * torch.randn(self.pseudo_inputs, *self.input_shape))
        if self.condition_shape is None:
            self.register_buffer("logits", torch.zeros(self.pseudo_inputs), persistent=False)
        else:
            self.learn("logits", torch.zeros(self.pseudo_inputs))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        logits = self.logits if self.context(condition) is None else self.value("logits", condition)
        parts = self.posterior(self.pseudo_input(self.free_inputs))
        if logits.dim() > 1:
            parts = parts.expand(logits.shape)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


class Flow(Prior):
    """p(z) = N(f(z) | 0, I) |det ∂f/∂z| with f an invertible network (Dinh et al. 2017; Chen et al. 2017, section 3.2).

    Densities take one pass; draws, which training does not need, invert f one dimension at a time ("coupling": at once).

    Args:
        kind: "coupling" (Dinh et al. 2017), "autoregressive" (Papamakarios et al. 2017), both affine, or "spline",
            autoregressive with rational quadratic splines (Durkan et al. 2019).
        transforms: number of maps that f is made of.
        hidden: widths of the hidden layers in each map's network.
    """

    def __init__(
        self,
        kind: Literal["coupling", "autoregressive", "spline"] = "autoregressive",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
    ):
        super().__init__()
        self.kind = one_of("kind", kind, ["coupling", "autoregressive", "spline"])
        self.transforms = positive_int("transforms", transforms)
        self.hidden = widths("hidden", hidden)

    def setup(self) -> None:
        context = 0 if self.condition_shape is None else self.condition_shape.numel()
        size = self.latent_shape.numel()
        self.maps = autoregressive_maps(self.kind, size, context, self.transforms, self.hidden)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        y = self.context(condition)
        base = self.zero.expand(*(() if y is None else y.shape[:-1]), *self.latent_shape)
        # f runs from z to the base, so that the density of any z is what takes one pass.
        maps = [one(y).inv for one in reversed(self.maps)]
        return Pushed(dist.Normal(base, self.zero + 1).to_event(1), maps)


class Autoregressive(Prior):
    """p(z) = Π_t p(z_t | z_<t), each a mixture of Gaussians said by one masked network (Germain et al. 2015, section 4;
    Gregor et al. 2014 for its use as a prior).

    Args:
        components: Gaussians in each dimension's mixture.
        hidden: widths of the hidden layers.
    """

    def __init__(self, components: int = 4, hidden: Sequence[int] = (64, 64)):
        super().__init__()
        self.components = positive_int("components", components)
        self.hidden = widths("hidden", hidden)

    def setup(self) -> None:
        context = 0 if self.condition_shape is None else self.condition_shape.numel()
        self.network = Sequential.network(self.latent_shape[0], context, self.components, self.hidden)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        y = self.context(condition)
        base = self.zero.expand(*(() if y is None else y.shape[:-1]), *self.latent_shape)
        return Sequential(self.network, base, self.components, y)


class Categorical(Prior):
    """p(z) = Π_g Categorical(z_g | π_g): groups of one-hot codes, laid end to end (Jang et al. 2017; Maddison et al. 2017).

    While the guide relaxes the codes at a temperature, so does the prior, and the bound is that of the relaxed model;
    in evaluation both are hard.

    Args:
        categories: entries of each code; latent_dim is a multiple of it.
        learned: whether π is learned, or uniform.
    """

    def __init__(self, categories: int = 10, learned: bool = True):
        super().__init__()
        self.categories = positive_int("categories", categories)
        self.learned = learned

    @property
    def space(self) -> str:
        return f"one-hot codes of {self.categories}"

    def setup(self) -> None:
        logits = torch.zeros(groups_of(self.categories, self.latent_shape[0]), self.categories)
        if self.learned or self.condition_shape is not None:
            self.learn("logits", logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        logits = self.logits if isinstance(self.logits, torch.Tensor) else self.value("logits", condition)
        temperature = self.relaxation()
        return OneHotGroups(logits) if temperature is None else RelaxedGroups(temperature, logits)


class LogisticNormal(Centred):
    """z = softmax-like map of N(0, scale² I) to the simplex, Σ_d z_d = 1 (Atchison & Shen 1980), as the topic
    proportions of Srivastava & Sutton 2017 (section 3.2); zero is mapped to the centre of the simplex.

    Args:
        scale: standard deviation before the map; large values prefer few topics per datum.
    """

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = positive("scale", scale)

    @property
    def space(self) -> str:
        return "simplex"

    def setup(self) -> None:
        if self.latent_shape[0] < 2:
            raise InputError("latent_dim=1 leaves a LogisticNormal nothing to vary; take at least 2.")
        if self.condition_shape is not None:
            self.learn("centre", torch.zeros(self.latent_shape[0] - 1))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        free = self.latent_shape[0] - 1
        centre = self.zero.expand(free) if self.context(condition) is None else self.value("centre", condition)
        return simplex(dist.Normal(centre, self.zero + self.scale).to_event(1))


class Spherical(Prior):
    """p(z) uniform on the hypersphere |z| = 1 (Davidson et al. 2018, section 3.2); given y, power spherical."""

    @property
    def space(self) -> str:
        return "sphere"

    def setup(self) -> None:
        if self.latent_shape[0] < 2:
            raise InputError("latent_dim=1 has no sphere to speak of; take at least 2.")
        if self.condition_shape is not None:
            self.learn("direction", torch.eye(1, self.latent_shape[0])[0])
            self.learn("raw_scale", torch.zeros(1))

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        if self.context(condition) is None:
            return SphereUniform(self.zero.expand(self.latent_shape))
        scale = F.softplus(self.value("raw_scale", condition)[..., 0])
        return PowerSpherical(F.normalize(self.value("direction", condition), dim=-1), scale)


class Program(Prior):
    """p(z) given by a Pyro program that samples the latent, so that a structured or causal prior is written as Pyro code.

    The values of the program's sites, in the order in which it samples them, make up z; their sizes sum up to
    `latent_dim`. The program is written for one latent, without plates, and run for many: its arithmetic should leave
    leading dimensions alone. Given y it is called with y. Parameters are those of a module.

        def chain():
            cause = pyro.sample("cause", dist.Normal(0.0, 1.0))
            pyro.sample("effect", dist.Normal(2 * cause, 0.5))

    Args:
        program: function or module; its sites are continuous, on the whole line.
    """

    def __init__(self, program: Callable[..., Any]):
        super().__init__()
        if not callable(program):
            raise InputError(f"program={program!r} must be a function that calls pyro.sample.")
        self.program = program

    def forward(self, condition: torch.Tensor | None = None) -> TorchDistribution:
        given = () if self.context(condition) is None else (condition,)
        batch = () if condition is None else condition.shape[: condition.dim() - len(self.condition_shape)]
        return Generative(self.program, given, self.zero.expand(*batch, *self.latent_shape))


def groups_of(categories: int, latent_dim: int) -> int:
    """How many codes of `categories` entries make up a latent.

    Raises:
        InputError: if they don't fill it.
    """
    if latent_dim % categories:
        raise InputError(
            f"latent_dim={latent_dim} must be a multiple of categories={categories}, one code after another."
        )
    return latent_dim // categories


def simplex(base: TorchDistribution) -> Pushed:
    """A distribution on R^(D−1) mapped to the simplex in R^D by breaking a stick."""
    return Pushed(base, [torch.distributions.StickBreakingTransform()], dist.constraints.simplex)
