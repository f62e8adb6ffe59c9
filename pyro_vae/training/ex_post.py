"""A new prior for a trained model, fitted afterwards to where its guide puts the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from pyro_vae.data import Binarization
from pyro_vae.errors import InputError
from pyro_vae.inference import log_likelihood
from pyro_vae.models.vae import VAE
from pyro_vae.pair import Pair
from pyro_vae.priors import Prior
from pyro_vae.training import fit


@dataclass(frozen=True)
class PriorFit:
    """What `fit_prior` found.

    Attributes:
        vae: a VAE with the new prior, which shares all else with the old one.
        history: of the prior's training; "loss" is −E_q[log p(z)], nats per datum.
        before, after: mean test log-likelihood under the old prior and the new, nats per datum.
        gain: after − before, and `stderr`, the standard error of this paired difference over the test data.
    """

    vae: VAE
    history: list[dict[str, float]]
    before: float
    after: float
    gain: float
    stderr: float

    def __str__(self) -> str:
        return f"log p(x) {self.before:.3f} → {self.after:.3f}: a gain of {self.gain:.3f} ± {self.stderr:.3f} nats per datum"


def fit_prior(
    vae: VAE,
    x: Any,
    prior: Prior,
    *,
    test: Any = None,
    num_samples: int = 500,
    binarize: Binarization | None = None,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-2,
    seed: int = 0,
    progress: bool = False,
) -> PriorFit:
    """max over p of E_x E_q(z|x)[log p(z)]: a prior fitted by maximum likelihood to the aggregate posterior of a trained VAE
    (Ghosh et al. 2020, section 4, ex-post density estimation; Dai & Wipf 2019, two stages; Tomczak & Welling 2018, eq. 5).

    Guide, decoder and the old VAE stay as they are; the new prior's parameters alone are trained, on fresh draws of z.

    Args:
        vae: a trained VAE.
        x: training data in any form that `fit` takes.
        prior: the new prior, not yet built.
        test: data to score before and after; `x` by default.
        num_samples: importance samples per test datum.
        binarize, epochs, batch_size, lr, seed, progress: as in `fit`.

    Raises:
        InputError: if the prior does not live where the guide does.
    """
    if not isinstance(vae, VAE):
        raise InputError(f"vae={vae!r} must be a pyro_vae.VAE.")
    new = vae.replace(prior=prior)
    if not any(parameter.requires_grad for parameter in new.prior.parameters()):
        raise InputError(f"prior={prior!r} has nothing to learn; take priors.Mixture() or priors.Flow().")

    others = [p for p in new.parameters() if p.requires_grad and all(p is not own for own in new.prior.parameters())]
    with _frozen(others):
        result = fit(
            _prior_pair(new),
            x,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            binarize=binarize,
            device=next(vae.parameters()).device,
            progress=progress,
        )
    scores = [
        log_likelihood(pair, x if test is None else test, num_samples, binarize=binarize, seed=seed).values.double()
        for pair in (vae, new)
    ]
    change = scores[1] - scores[0]
    stderr = (change.std() / len(change) ** 0.5).item()
    return PriorFit(new, result.history, scores[0].mean().item(), scores[1].mean().item(), change.mean().item(), stderr)


def _prior_pair(vae: VAE) -> Pair:
    """p(z) observing fresh draws of the guide; nothing is left to infer."""

    def model(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        pyro.module(f"{vae.name}_prior", vae.prior)
        with torch.no_grad():
            z = vae.encode_input(vae.encoder_input(x, y)).sample()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.p_z(y), obs=z)

    def guide(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        pass

    return Pair(model, guide)


@contextlib.contextmanager
def _frozen(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Parameters without gradients; they have them again afterwards."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
