"""The very deep hierarchical VAE: dozens of levels of latent feature maps, from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch

from pyro_vae.errors import InputError, one_of, positive, positive_int
from pyro_vae.likelihoods import Bernoulli, Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.models.blocks import BottomUp, Output, Shape, blocks_down, blocks_up, top_down
from pyro_vae.objectives import MeanFieldELBO, Objective


class VeryDeepVAE(ComposedPair):
    """p(x, z) = p(z_0) Π_t p(z_t | z_<t) p(x | z), q(z | x) = q(z_0 | x) Π_t q(z_t | z_<t, x) (Child 2020, section 2).

    Latents are feature maps, normal given those above, of shape (latent_channels, h, w) at sites z_0, z_1, ...; model
    and guide share one pass down, on which each level adds what it drew. The strings list residual blocks by
    resolution, the height of feature maps. In the encoder's, "32x11" is eleven blocks at resolution 32, and "32d2" one
    that is followed by average pooling by 2. In the decoder's, "4x2" is two levels at resolution 4, and "8m4" one that
    first upsamples feature maps from 4 to 8; each level has a latent, so there are as many as blocks in this string.

    The pair is trained by `fit`. With many levels its gradient now and then explodes, which the paper meets by skipping
    such steps: fit(..., skip_gradient_above=...).

    Args:
        event_shape: shape of one image, (C, H, W).
        encoder: blocks of the pass up; the first is at resolution H.
        decoder: levels of the pass down, at resolutions that the encoder has; the last is at H.
        width: planes of feature maps.
        latent_channels: planes of each latent.
        bottleneck: planes within a residual block, as a fraction of `width`.
        likelihood: p(x | params); Bernoulli() by default. The paper's is DiscretizedLogisticMixture(), for bytes.
        checkpointing: keep no activations within blocks, but compute them again for the gradient, which takes a further
            forward pass and about half the memory; such a pair runs eagerly.

    Raises:
        InputError: if sizes are not positive, or a string asks for what is not there.

    Example:
        >>> import torch
        >>> from pyro_vae import VeryDeepVAE, elbo_terms, generate
        >>> strings = {"encoder": "8x1,8d2,4x1,4d4,1x1", "decoder": "1x1,4m1,4x1,8m4"}
        >>> pair = VeryDeepVAE(event_shape=(1, 8, 8), **strings, width=8, latent_channels=2)
        >>> list(elbo_terms(pair, torch.ones(3, 1, 8, 8)).sites)
        ['x', 'z_0', 'z_1', 'z_2', 'z_3']
        >>> generate(pair, 2).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        encoder: str = "32x2,32d2,16x2,16d2,8x2,8d2,4x2,4d4,1x1",
        decoder: str = "1x1,4m1,4x1,8m4,8x2,16m8,16x3,32m16,32x4",
        width: int = 64,
        latent_channels: int = 16,
        bottleneck: float = 0.25,
        likelihood: Likelihood | None = None,
        checkpointing: bool = False,
    ):
        super().__init__(event_shape)
        if len(self.event_shape) != 3:
            raise InputError(f"event_shape={tuple(self.event_shape)} must be that of an image, (C, H, W).")
        self.encoder, self.decoder = encoder, decoder
        self.width = positive_int("width", width)
        self.latent_channels = positive_int("latent_channels", latent_channels)
        self.bottleneck = positive("bottleneck", bottleneck)
        self.checkpointing = self.recomputes = one_of("checkpointing", checkpointing, [False, True])
        if (hidden := int(width * bottleneck)) < 1:
            raise InputError(f"bottleneck={bottleneck!r} of width={width} leaves no plane within a block.")
        likelihood = self.place(likelihood or Bernoulli(), Likelihood, "likelihood")
        self.likelihood = likelihood.build(event_shape=self.event_shape)
        if any(len(s) != 3 or s[1:] != self.event_shape[1:] for s in (likelihood.input_shape, likelihood.params_shape)):
            raise InputError(f"likelihood={likelihood!r} must take its numbers as planes of an image.")
        up = blocks_up(encoder, self.event_shape[1:])
        steps = blocks_down(decoder, up, encoder)
        shape = Shape(width, hidden, latent_channels, checkpointing)
        self.bottom_up = BottomUp(likelihood.input_shape[0], up, shape)
        self.top_down = top_down(steps, up.sizes, shape)
        self.output = Output(width, likelihood.params_shape[0])

    def model(self, x: torch.Tensor) -> None:
        """p(x, z), x of shape (N, C, H, W)."""
        pyro.module(self.name, self)
        h = None
        with pyro.plate("data", len(x), dim=-1):
            for t, level in enumerate(self.top_down):
                h = level.enter(h)
                p, h = level.prior(h)
                z = pyro.sample(f"z_{t}", p)
                h = level.leave(h, z)
            pyro.sample("x", self.likelihood(self.output(h)), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        """q(z | x), each level given those above, which have gone the model's way down."""
        pyro.module(self.name, self)
        h, seen = None, self.bottom_up(self.likelihood.as_input(x))
        with pyro.plate("data", len(x), dim=-1):
            for t, level in enumerate(self.top_down):
                h = level.enter(h)
                z = pyro.sample(f"z_{t}", level.posterior(h, seen[level.resolution]))
                _, h = level.prior(h)
                h = level.leave(h, z)

    def default_objective(self) -> Objective:
        """The ELBO with each level's KL(q(z_t | z_<t, x) ‖ p(z_t | z_<t)) in closed form at the levels drawn above it.

        As guide and prior start alike, the noise of a drawn KL would hide for long that z has something to tell of x.
        """
        return MeanFieldELBO()

    def start_at(self, mean: torch.Tensor) -> bool:
        """Sets the output's biases so that the likelihood starts near the data's mean, if it can say how.

        Args:
            mean: of the data, shape `event_shape`.
        """
        params = self.likelihood.start(mean)
        if params is not None:
            self.output.start(params)
        return params is not None
