"""Networks: from data to the guide's parameters, from latents to the likelihood's, from y to what both read of it."""

from pyro_vae.networks.base import Network, Wrapped, as_network
from pyro_vae.networks.conditions import Condition, Features, Labels
from pyro_vae.networks.dense import MLP, DeepSets, Embedding, GatedMLP
from pyro_vae.networks.images import (
    ConvDecoder,
    ConvEncoder,
    GatedConvDecoder,
    GatedConvEncoder,
    PixelCNN,
    ResNetDecoder,
    ResNetEncoder,
)

__all__ = [
    "MLP",
    "Condition",
    "ConvDecoder",
    "ConvEncoder",
    "DeepSets",
    "Embedding",
    "Features",
    "GatedConvDecoder",
    "GatedConvEncoder",
    "GatedMLP",
    "Labels",
    "Network",
    "PixelCNN",
    "ResNetDecoder",
    "ResNetEncoder",
    "Wrapped",
    "as_network",
]
