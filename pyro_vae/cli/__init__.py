"""The command line: `pyro-vae train`, `grid`, `evaluate`, `sample` and `impute`, one file a command.

Options of models and of `fit` are read off their signatures and docstrings by jsonargparse; torch is imported only
once a command is chosen.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from pyro_vae.cli.parsing import CommandError

__all__ = ["COMMANDS", "USAGE", "CommandError", "main"]

#: Each is a function of the remaining arguments, in the module of its name.
COMMANDS = ("train", "grid", "evaluate", "sample", "impute")

#: What takes less memory.
LESS = {
    "train": "a smaller --fit.batch_size or narrower networks",
    "grid": "a smaller fit.batch_size or narrower networks",
    "evaluate": "fewer --samples",
    "sample": "a smaller -n",
}

USAGE = """usage: pyro-vae COMMAND [options]

Variational autoencoders as Pyro model/guide pairs.

commands:
  train         train a VAE, score the test set, write a run folder
                (with no option: on 1,797 scanned digits that need no download)
  grid FILE     train and score all combinations of a YAML file's lists, in one table
  evaluate RUN  score a run's test set again: log p(x), ELBO, diagnostics
  sample RUN    draw new data from a trained run
  impute RUN ROWS   fill the missing cells of a table

pyro-vae COMMAND --help explains a command's options; pyro-vae --version prints the version.
Exit status: 0 done, 2 bad input, 1 training that diverged or a fault such as a full disk, 130 and 143 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    command = arguments[0]
    try:
        if command == "--version":
            from pyro_vae.runs.saving import package_version

            print(f"pyro-vae {package_version()}")
            return 0
        return _guarded(command, arguments[1:])
    except KeyboardInterrupt:
        print(f"\npyro-vae {command}: interrupted; the same command with --resume goes on.", file=sys.stderr)
        return 130


def _guarded(command: str, arguments: list[str]) -> int:
    """Runs a command; what the user got wrong becomes one message and status 2."""
    from pyro_vae.data.files import CannotWrite
    from pyro_vae.errors import InputError, first_sentence, nearest
    from pyro_vae.training.faults import Fault, Terminated, is_out_of_memory
    from pyro_vae.training.nonfinite import TrainingDiverged

    said = f"pyro-vae {command}" if command in COMMANDS else "pyro-vae"
    try:
        if command not in COMMANDS:
            raise CommandError(f"there is no command {command!r}.{nearest(command, COMMANDS)} See pyro-vae --help.")
        if bad := next((word for word in arguments if "\0" in word), None):
            raise CommandError(f"{bad!r} holds a null byte.")
        run = getattr(importlib.import_module(f"{__name__}.{command}"), command)
        run(arguments)
    except (CommandError, InputError) as error:
        print(f"{said}: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        print(f"{said}: training stopped. {error}", file=sys.stderr)
        return 1
    except (CannotWrite, Fault) as error:
        print(f"{said}: {error} The same command with --resume goes on.", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"{said}: out of memory ({first_sentence(error)}); ask for less: {LESS.get(command, '')}.", file=sys.stderr
        )
        return 1
    except Terminated as error:
        print(f"{said}: {error.message} The same command with --resume goes on.", file=sys.stderr)
        return 143
    except SystemExit as error:  # --help
        return int(error.code or 0)
    return 0
