"""Tests of the engine: captured steps give Pyro's numbers, or run eagerly with one warning."""
