"""Run folders: config.yaml, model.safetensors, metrics.csv, the checkpoint and figures."""

from pyro_vae.runs.lock import InUse, locked
from pyro_vae.runs.log import CHECKPOINT, METRICS, RunLog, claim
from pyro_vae.runs.saving import CONFIG, WEIGHTS, load, package_version, read_config, run_entries, save
from pyro_vae.runs.specs import GIVEN, build, named_class, pair_spec, spec
from pyro_vae.runs.weights import load_state, state, write_weights

__all__ = [
    "CHECKPOINT", "CONFIG", "GIVEN", "METRICS", "WEIGHTS", "InUse", "RunLog", "build", "claim", "load", "load_state",
    "locked", "named_class", "package_version", "pair_spec", "read_config", "run_entries", "save", "spec", "state",
    "write_weights",
]  # fmt: skip
