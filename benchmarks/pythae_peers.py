"""Pythae's VAE with the networks of `pairs.Tutorial`; imported only if Pythae is there."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig

from benchmarks.pairs import Tutorial
from benchmarks.torch_peers import LR

# Its loggers are set one by one, and would announce every trainer.
logging.getLogger(BaseTrainer.__module__).setLevel(logging.WARNING)


class Encoder(BaseEncoder):
    """A pair's encoder, as Pythae wants it: the variance's logarithm instead of the scale's."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> ModelOutput:
        loc, log_scale = self.network(x)
        return ModelOutput(embedding=loc, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    """A pair's decoder, as Pythae wants it: probabilities instead of logits."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.network(z).sigmoid())


def pythae_vae(vae: Tutorial) -> VAE:
    """Pythae's VAE around the very same networks, weights included."""
    config = VAEConfig(input_dim=(784,), latent_dim=vae.latent, reconstruction_loss="bce")
    return VAE(config, Encoder(vae.encoder), Decoder(vae.decoder))


def epoch(vae: Tutorial, images: torch.Tensor, folder: Path) -> Callable[[], float]:
    """An epoch of its BaseTrainer, without validation and without the files and copies that end a training there.

    Its KL is exact, not drawn: with less noise in the gradient it learns faster early on.
    """
    config = BaseTrainerConfig(
        output_dir=str(folder), num_epochs=1, learning_rate=LR, per_device_train_batch_size=128, no_cuda=True
    )
    trainer = BaseTrainer(pythae_vae(vae), BaseDataset(images, torch.zeros(len(images))), training_config=config)
    trainer.prepare_training()
    number = 0

    def run() -> float:
        nonlocal number
        number += 1
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            trainer.callback_handler.on_epoch_begin(
                training_config=config, epoch=number, train_loader=trainer.train_loader, eval_loader=None
            )
            return float(trainer.train_step(number))

    return run


def log_likelihood(vae: Tutorial, num_samples: int) -> Callable[[torch.Tensor], Any]:
    """Mean of log p(x) over the images, by its get_nll (which returns +log p); all samples of an image at once."""
    model = pythae_vae(vae).eval()

    def run(x: torch.Tensor) -> Any:
        with torch.no_grad():
            return model.get_nll(x, n_samples=num_samples, batch_size=num_samples)

    return run
