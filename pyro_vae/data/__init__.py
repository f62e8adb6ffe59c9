"""Data: named sets, files, folders and tensors, batched and binarised on the device.

Example:
    >>> import torch
    >>> from pyro_vae import data
    >>> data.as_examples(torch.tensor([[0.0, 0.8]]), binarize="threshold").batch(slice(0, 1))
    (tensor([[0., 1.]]),)
"""

from pyro_vae.data.named import NAMES, Splits, as_examples, load
from pyro_vae.data.readers import READERS
from pyro_vae.data.resident import BINARIZATIONS, Binarization, Examples
from pyro_vae.data.streams import Stream
from pyro_vae.data.tables import Table

__all__ = [
    "BINARIZATIONS",
    "NAMES",
    "READERS",
    "Binarization",
    "Examples",
    "Splits",
    "Stream",
    "Table",
    "as_examples",
    "load",
]
