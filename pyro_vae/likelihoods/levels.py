"""Likelihoods of 0/1 data, classes and the evenly spaced values of 8-bit images."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch.nn import functional as F

from pyro_vae.distributions.discretized import DiscretizedLogistic as _Logistic
from pyro_vae.distributions.discretized import DiscretizedLogisticMixture as _LogisticMixture
from pyro_vae.distributions.discretized import level_moments, scaled
from pyro_vae.errors import InputError, positive, positive_int
from pyro_vae.likelihoods.base import START_MARGIN, Likelihood, Spread, SpreadArgument, margin_logit, where_mean_is


class Bernoulli(Likelihood):
    """p(x | z) = Π_d Bernoulli(x_d | sigmoid(params_d)) for 0/1 data (Kingma & Welling 2014, appendix C.1).

    Args:
        relaxed: admit greys between 0 and 1 as the VAE tutorial does. Σ x log p + (1 − x) log(1 − p) is no
            density of grey data, so scores are then labelled as no likelihoods.
    """

    def __init__(self, relaxed: bool = False):
        super().__init__()
        self.relaxed = relaxed

    @property
    def support(self) -> constraints.Constraint:
        return constraints.unit_interval if self.relaxed else constraints.boolean

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(free)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return margin_logit(mean.to(self.zero))

    def refuse(self, x: torch.Tensor, index: tuple[int, ...]) -> None:
        value = x[index].item()
        if not 0 < value < 1:
            super().refuse(x, index)
        raise InputError(
            f"x[{', '.join(map(str, index))}] = {value:g} is grey, but likelihood=Bernoulli() takes 0/1 data: "
            'binarise it (binarize="dynamic", "static" or "threshold"), use likelihoods.ContinuousBernoulli(), or '
            "likelihoods.Bernoulli(relaxed=True) for the tutorial's practice, whose scores are no likelihoods."
        )

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        validate = False if self.relaxed else None
        return dist.Bernoulli(logits=params, validate_args=validate).to_event(self.event_rank)


class Categorical(Likelihood):
    """p(x | z) = Π_d Categorical(x_d | softmax(params_d)) for entries in {0, ..., categories − 1}.

    The encoder reads one-hot codes, stacked along the first event dimension.

    Args:
        categories: number of values that an entry can take.
    """

    def __init__(self, categories: int = 256):
        super().__init__()
        self.categories = positive_int("categories", categories)

    @property
    def params_per_value(self) -> int:
        return self.categories

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.categories - 1)

    @property
    def input_shape(self) -> torch.Size:
        return self.params_shape

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        levels = torch.arange(self.categories, device=x.device)  # F.one_hot would read x's values, which no graph can
        codes = (x.unsqueeze(-1) == levels).to(self.zero.dtype)  # (..., C, *rest, categories)
        return codes.movedim(-1, -self.event_rank - 1).flatten(-self.event_rank - 1, -self.event_rank)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        codes = free.unflatten(-self.event_rank, (self.categories, -1)).softmax(-self.event_rank - 1)
        return codes.flatten(-self.event_rank - 1, -self.event_rank)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        logits = params.unflatten(-self.event_rank, (self.categories, -1)).movedim(-self.event_rank - 1, -1)
        return dist.Categorical(logits=logits).to_event(self.event_rank)


class LevelArgument:
    """Mixed into likelihoods of `levels` evenly spaced values 0, ..., L − 1: the encoder reads them from −1 to 1."""

    def keep_levels(self, levels: int) -> None:
        """Checks and stores the argument."""
        if positive_int("levels", levels) < 2:
            raise InputError(f"levels={levels!r} must be at least 2.")
        self.levels = levels

    @property
    def support(self) -> constraints.Constraint:
        """Whole numbers from 0 to L − 1."""
        return constraints.integer_interval(0, self.levels - 1)

    def as_input(self, x: torch.Tensor) -> torch.Tensor:
        """x from −1 to 1, shape (..., *event_shape)."""
        return scaled(x.to(self.zero.dtype), self.levels)

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        """Numbers between −1 and 1."""
        return torch.tanh(free)

    def starting_loc(self, mean: torch.Tensor, offsets: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """loc at which Σ_k DiscretizedLogistic(loc + offset_k, scale) / K has this mean, shape of `mean`.

        Args:
            mean: in levels, shape `event_shape`.
            offsets: in scaled units, shape (K,).
            scale: in scaled units, shape `event_shape`.
        """
        scale = scale.double()[..., None]
        mean_of = lambda loc: level_moments(loc[..., None] + offsets, scale, self.levels)[0].mean(-1)  # noqa: E731
        inside = (self.levels - 1) * START_MARGIN
        mean = mean.to(self.zero).clamp(inside, self.levels - 1 - inside)
        return where_mean_is(mean, mean_of, 2 + 10 * scale.max().item())


class DiscretizedLogistic(LevelArgument, SpreadArgument, Likelihood):
    """p(x | z) = Π_d σ((s_d + h − loc_d) / scale) − σ((s_d − h − loc_d) / scale), for 8-bit images.

    That is one component of Salimans et al. 2017, eq. 2.
    s = 2 x / (L − 1) − 1 are the values 0, ..., L − 1 from −1 to 1, h = 1 / (L − 1) is half a bin; the end bins are open.

    Args:
        scale: scale of the logistic in those units: a number, or learned as Normal's is.
        min_scale: floor of a learned scale, in those units.
        levels: number of values L that an entry can take, 256 for bytes.
    """

    def __init__(self, scale: Spread = "shared", min_scale: float = 1e-3, levels: int = 256):
        super().__init__()
        self.keep_spread(scale, min_scale)
        self.keep_levels(levels)

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        return self.filled(self.starting_loc(mean, self.zero.double()[None], self.starting_spread()))

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        loc, scale = self.with_spread(params)
        return _Logistic(loc, scale, self.levels).to_event(self.event_rank)


class DiscretizedLogisticMixture(LevelArgument, Likelihood):
    """p(x | z) = Π_pixels Σ_k π_k Π_c DiscretizedLogistic(x_c | μ_kc, scale_kc), for 8-bit images.

    This is the likelihood of PixelCNN++ (Salimans et al. 2017, section 2.2).
    In images of shape (3, H, W) the channels of a pixel share the component, and each channel's μ moves linearly with
    the channels before it; entries of data of any other shape are independent mixtures. The 3-channel mixture has no
    mean in closed form: pictures show the mode of each pixel's heaviest component.

    Args:
        components: number of logistic distributions K per pixel.
        levels: number of values L that an entry can take, 256 for bytes.
        min_scale: floor of the scales, in units in which the values go from −1 to 1.
    """

    def __init__(self, components: int = 10, levels: int = 256, min_scale: float = 1e-3):
        super().__init__()
        self.components = positive_int("components", components)
        self.keep_levels(levels)
        self.min_scale = positive("min_scale", min_scale)

    @property
    def joint_channels(self) -> int:
        """How many channels share a component: 3 of a colour image, otherwise 1."""
        return 3 if self.event_rank == 3 and self.event_shape[0] == 3 else 1

    @property
    def params_per_value(self) -> int:
        """Numbers per pixel and component: weight, and location and scale per channel, and coefficients between them."""
        channels = self.joint_channels
        return (1 + 2 * channels + channels * (channels - 1) // 2) * self.components

    @property
    def params_shape(self) -> torch.Size:
        return torch.Size([self.params_per_value * self.event_shape[0] // self.joint_channels, *self.event_shape[1:]])

    def _offsets(self) -> torch.Tensor:
        # Components that start alike would be told apart only by the decoder's random weights.
        zero = self.zero
        return torch.linspace(-0.5, 0.5, self.components + 2, dtype=zero.dtype, device=zero.device)[1:-1]

    def start(self, mean: torch.Tensor) -> torch.Tensor:
        scale = F.softplus(self.zero).expand(self.event_shape) + self.min_scale
        loc = self.starting_loc(mean, self._offsets().double(), scale)
        channels = self.joint_channels
        params = loc.new_zeros(*self.params_shape).unflatten(
            0, (self.params_per_value // self.components, self.components, -1)
        )
        where = loc.unflatten(0, (channels, 1, -1)) + self._offsets().reshape(-1, 1, *[1] * (loc.dim() - 1))
        return torch.cat([params[:1], where, params[1 + channels :]]).flatten(0, 2)

    def forward(self, params: torch.Tensor) -> TorchDistribution:
        channels, rank = self.joint_channels, self.event_rank
        table = params.unflatten(-rank, (self.params_per_value // self.components, self.components, -1))
        # (..., numbers, K, pixels first, *rest) to (..., pixels first, *rest, numbers, K)
        table = table.movedim((-rank - 2, -rank - 1), (-2, -1))
        if channels > 1:
            table = table.squeeze(-rank - 2)  # the one place that the channels' shared pixels left
        sizes = [1, channels, channels, channels * (channels - 1) // 2]
        logits, loc, raw_scale, raw_coefficients = table.split(sizes, dim=-2)
        scale = F.softplus(raw_scale) + self.min_scale
        coefficients = torch.tanh(raw_coefficients)
        return _LogisticMixture(logits.squeeze(-2), loc, scale, coefficients, self.event_shape, self.levels)
