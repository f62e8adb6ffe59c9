"""The command line: `pyro-vae train`, `grid`, `evaluate`, `sample` and `impute`, one file a command.

Options of models and of `fit` are read off their signatures and docstrings by jsonargparse; torch is imported only
once a command is chosen.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from pyro_vae.cli.parsing import CommandError

__all__ = ["COMMANDS", "USAGE", "CommandError", "main"]

#: Each is a function of the remaining arguments, in the module of its name.
COMMANDS = ("train", "grid", "evaluate", "sample", "impute")

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
Exit status: 0 done, 2 bad input, 1 training that diverged.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from pyro_vae.runs.saving import package_version

        print(f"pyro-vae {package_version()}")
        return 0
    return _guarded(arguments[0], arguments[1:])


def _guarded(command: str, arguments: list[str]) -> int:
    """Runs a command; what the user got wrong becomes one message and status 2."""
    from pyro_vae.errors import InputError, nearest
    from pyro_vae.training.nonfinite import TrainingDiverged

    sys.path.insert(0, os.getcwd())  # so that a class in a file of the user's can be named
    try:
        if command not in COMMANDS:
            raise CommandError(f"there is no command {command!r}.{nearest(command, COMMANDS)} See pyro-vae --help.")
        run = getattr(importlib.import_module(f"{__name__}.{command}"), command)
        run(arguments)
    except (CommandError, InputError) as error:
        print(f"pyro-vae {command}: {error}" if command in COMMANDS else f"pyro-vae: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        print(f"pyro-vae {command}: training stopped. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\npyro-vae {command}: interrupted; the same command with --resume goes on.", file=sys.stderr)
        return 130
    except SystemExit as error:  # --help
        return int(error.code or 0)
    finally:
        sys.path.remove(os.getcwd())
    return 0
