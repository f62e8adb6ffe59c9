"""The purity zoo: programs that change what they depend on, each with the outcome that is promised."""

from importlib import import_module

from tests.engine.zoo.program import ENTRIES, Entry, Program

SUBJECTS = (
    "plain",
    "containers",
    "tensors",
    "attributes",
    "modules",
    "functions",
    "arguments",
    "tensor_arguments",
    "control_flow",
    "structure",
    "randomness",
    "side_effects",
    "records",
    "outside_world",
    "parameters",
    "hooks",
    "optimizers",
    "losses",
    "svi_uses",
    "loaded_libraries",
)
for _subject in SUBJECTS:
    import_module(f"{__name__}.{_subject}")

__all__ = ["ENTRIES", "SUBJECTS", "Entry", "Program"]
