"""What a pair is: a model and a guide, two Pyro programs that take the same batch; and what a pair may offer (`hooks`)."""

from pyro_vae.pair.blank import blank_batch, remember
from pyro_vae.pair.programs import (
    Batch,
    DataPlate,
    ModelAndGuide,
    Pair,
    PairLike,
    Program,
    Site,
    Sites,
    as_batch,
    as_pair,
    data_plate,
    device_of,
    evaluating,
    explained_support_errors,
    kept_random_state,
    log_prob,
    modules,
    outside,
    parameters,
    plates_of,
    registered,
    sample_sites,
    trace_pair,
    unregistered,
    unsupported,
)

__all__ = [
    "Batch", "DataPlate", "ModelAndGuide", "Pair", "PairLike", "Program",
    "Site", "Sites", "as_batch", "as_pair", "blank_batch", "data_plate", "device_of",
    "evaluating", "explained_support_errors", "kept_random_state", "log_prob", "modules", "outside", "parameters",
    "plates_of", "registered", "remember", "sample_sites", "trace_pair", "unregistered", "unsupported",
]  # fmt: skip
