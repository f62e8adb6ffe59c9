"""Figures of a run: training curves, samples, reconstructions, latent space."""

from pyro_vae.report.page import NUM_CODES, NUM_DRAWS, NUM_SAMPLES, figures, posterior_means

__all__ = ["NUM_CODES", "NUM_DRAWS", "NUM_SAMPLES", "figures", "posterior_means"]
