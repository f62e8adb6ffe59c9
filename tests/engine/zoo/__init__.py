"""The purity zoo: programs that change what they depend on, each with the outcome that is promised."""

from importlib import import_module

from tests.engine.zoo.program import ENTRIES, Entry, Program

SUBJECTS = (
    "plain",
    "containers",
    "dicts",
    "tensors",
    "attributes",
    "namespaces",
    "dataclass_objects",
    "modules",
    "objects",
    "functions",
    "names",
    "arguments",
    "consumed_arguments",
    "tensor_arguments",
    "control_flow",
    "sizes",
    "structure",
    "randomness",
    "default_generator",
    "side_effects",
    "counters",
    "records",
    "output",
    "outside_world",
    "interpreter",
    "parameters",
    "networks",
    "hooks",
    "optimizers",
    "optimizer_changes",
    "losses",
    "own_losses",
    "svi_uses",
    "around_steps",
    "threads",
    "loaded_libraries",
    "patches",
)
for _subject in SUBJECTS:
    import_module(f"{__name__}.{_subject}")

__all__ = ["ENTRIES", "SUBJECTS", "Entry", "Program"]
