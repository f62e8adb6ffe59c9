"""Distributions that neither Pyro nor torch has, or has with a fault; each file is one subject."""
