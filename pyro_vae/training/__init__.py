"""Training: `fit`, its loop and settings, and why a run stopped."""

from pyro_vae.training.fitting import FitResult, fit
from pyro_vae.training.loop import Trainer

__all__ = ["FitResult", "Trainer", "fit"]
