"""Guide families that look at the model: Hamiltonian steps, and parameters refined for each datum."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.distributions.hamiltonian import Leapt
from pyro_vae.distributions.spaces import Space
from pyro_vae.errors import InputError, positive, positive_int
from pyro_vae.guides.base import Guide, LogJoint, normal
from pyro_vae.guides.constrained import RelaxedCategorical
from pyro_vae.guides.gaussian import MeanField
from pyro_vae.guides.refinement import better_of, refined


class Hamiltonian(Guide):
    """q_0 = N(loc(x), scale(x)²) carried along the posterior by leapfrog steps on log p(x, z), with a momentum as
    auxiliary variable (Caterini et al. 2018, algorithm 1). Its density is known at its own draws, with the momentum in
    it, so that weights are unbiased and bounds hold.

    Args:
        steps: leapfrog steps, each of which takes one gradient of log p(x, z).
        step_size: where the learned step sizes of the dimensions start, in latent units.
        temperature: inverse start β_0 of the quadratic tempering; 1 for none. It is learned.
    """

    evaluable = False

    def __init__(self, steps: int = 3, step_size: float = 0.05, temperature: float = 0.5):
        super().__init__()
        self.steps = positive_int("steps", steps)
        self.step_size = positive("step_size", step_size)
        self.temperature = positive("temperature", temperature)
        if self.temperature > 1:
            raise InputError(f"temperature={temperature!r} must be at most 1, which is no tempering.")

    def setup(self) -> None:
        self.log_step = nn.Parameter(torch.full((self.size,), math.log(self.step_size)))
        self.raw_start = nn.Parameter(torch.tensor(self.temperature).clamp(max=0.99).logit())

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([2 * self.size])

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return normal(params).to_event(1)

    def refine(self, params: torch.Tensor, log_joint: LogJoint) -> TorchDistribution:
        return Leapt(self(params), log_joint, self.log_step.exp(), self.raw_start.sigmoid(), self.steps)


class Refining(Guide, ABC):
    """A family whose params are refined for each datum by gradient steps on that datum's own bound."""

    optimises = True

    def __init__(self, guide: Guide | None, steps: int, lr: float):
        super().__init__()
        self.guide = MeanField() if guide is None else guide
        if not isinstance(self.guide, Guide) or isinstance(self.guide, (Hamiltonian, Refining)):
            raise InputError(
                f"guide={guide!r} must be a family that the encoder alone sets, such as guides.MeanField()."
            )
        if isinstance(self.guide, RelaxedCategorical):
            raise InputError(
                f"guide={guide!r} draws codes, through which there is no gradient step; take a continuous one."
            )
        self.steps = positive_int("steps", steps)
        self.lr = positive("lr", lr)

    def setup(self) -> None:
        self.guide.build(latent_shape=self.latent_shape)

    @property
    def space(self) -> Space:
        return self.guide.space

    @property
    def evaluable(self) -> bool:  # type: ignore[override]
        return self.guide.evaluable

    def relaxation(self) -> torch.Tensor | None:
        return self.guide.relaxation()

    @property
    def params_shape(self) -> torch.Size:
        return self.guide.params_shape

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return self.guide(params)

    @abstractmethod
    def find(self, params: torch.Tensor, log_joint: LogJoint) -> torch.Tensor:
        """The params that the steps lead to, from those that the encoder says."""

    def refine(self, params: torch.Tensor, log_joint: LogJoint) -> TorchDistribution:
        """q(z | x) at the params that were found."""
        return self.guide(self.find(params, log_joint))


class SemiAmortized(Refining):
    """Any family, its params taken from the encoder and bettered by a few gradient steps on log p(x, z) − log q(z | x),
    through which the encoder is trained (Kim et al. 2018, algorithm 1).

    Args:
        guide: the family; MeanField() by default.
        steps: gradient steps per datum, each of which takes one draw.
        lr: their length.
    """

    def __init__(self, guide: Guide | None = None, steps: int = 4, lr: float = 0.1):
        super().__init__(guide, steps, lr)

    def find(self, params: torch.Tensor, log_joint: LogJoint) -> torch.Tensor:
        return refined(self.guide, params, log_joint, self.steps, self.lr, through=torch.is_grad_enabled())


class PerDatum(Refining):
    """Params of their own for each datum, sought by Adam on its own bound: variational inference without amortization
    (Hoffman et al. 2013, local parameters), to compare encoders with. Data that training has not seen are treated as
    those that it has.

    The search starts from one common, learned place, or at what an encoder says, if the VAE is given one or keeps one
    (`vae.replace(guide=guides.PerDatum())`). In evaluation a datum whose bound fell keeps its start, and the params of a
    batch are kept until another one, or other parameters, come.

    Args:
        guide: the family; MeanField() by default.
        steps: of Adam per datum; more bring q nearer to the family's best.
        lr: Adam's learning rate at the start, which falls to a hundredth.
        num_samples: draws at each step.
    """

    amortized = False

    def __init__(self, guide: Guide | None = None, steps: int = 100, lr: float = 0.1, num_samples: int = 4):
        super().__init__(guide, steps, lr)
        self.num_samples = positive_int("num_samples", num_samples)

    def setup(self) -> None:
        super().setup()
        self.start = nn.Parameter(torch.zeros(self.guide.params_shape))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        return self.guide(params + self.start)

    def find(self, params: torch.Tensor, log_joint: LogJoint) -> torch.Tensor:
        start = params + self.start
        fixed = start.detach()
        found = refined(self.guide, fixed, log_joint, self.steps, self.lr, adam=True, num_samples=self.num_samples)
        if not self.training:
            found = better_of(self.guide, fixed, found, log_joint)
        # At the best params the bound's slope in them is zero; the start learns to be near.
        return found + (start - fixed)
