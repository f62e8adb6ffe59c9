"""The pairs: models and guides built from the components."""

from pyro_vae.models.base import ComposedPair
from pyro_vae.models.vae import VAE

__all__ = ["VAE", "ComposedPair"]
