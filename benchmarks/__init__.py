"""pyro_vae beside its peers: `python -m benchmarks --help`."""
