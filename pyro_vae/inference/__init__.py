"""Inference on any pair: importance weights and the estimates that derive from them, and draws of data and latents."""

from pyro_vae.inference.checked import check_data
from pyro_vae.inference.estimates import LogLikelihood
from pyro_vae.inference.likelihood import log_likelihood
from pyro_vae.inference.terms import COLLAPSED, ElboTerms, elbo_terms

__all__ = ["COLLAPSED", "ElboTerms", "LogLikelihood", "check_data", "elbo_terms", "log_likelihood"]
