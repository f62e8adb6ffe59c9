"""pyroVED's plain VAE with layers of the tutorial's widths; imported only if pyroVED is there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyroved.models import iVAE
from pyroved.trainers import SVItrainer
from pyroved.utils import init_dataloader


def epoch(images: torch.Tensor) -> Callable[[], float]:
    """An epoch of its SVItrainer, which is Pyro's SVI with Adam at 1e-3. It clears Pyro's store when it is made."""
    vae = iVAE(
        (784,), latent_dim=50, hidden_dim_e=[400], hidden_dim_d=[400], activation="softplus", sampler_d="bernoulli"
    )
    trainer = SVItrainer(vae)
    loader = init_dataloader(images, batch_size=128)
    return lambda: trainer.train(loader)
