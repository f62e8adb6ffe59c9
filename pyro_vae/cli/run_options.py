"""Options of commands that take a run folder, and the pair that they name."""

from __future__ import annotations

from typing import Any


def add_run_options(parser: Any) -> None:
    """Adds the run folder, the code that may load, the device and the data's folder."""
    parser.add_argument("run", type=str, help="run folder that pyro-vae train or save() wrote")
    parser.add_argument(
        "--allow", type=str, nargs="*", default=[], help="modules outside pyro_vae whose classes may load"
    )
    parser.add_argument(
        "--device", type=str, default=None, help="cpu, cuda or mps; the fastest that is there by default"
    )
    parser.add_argument("--data_root", "--data-root", type=str, default=None, help="where the run's data lie now")


def loaded(config: Any) -> Any:
    """The pair of the run folder that the options name, on the device that they name."""
    from pyro_vae.cli.naming import users_modules
    from pyro_vae.runs.saving import load
    from pyro_vae.training.settings import pick_device

    with users_modules(config.allow):
        return load(config.run, allow=config.allow).to(pick_device(config.device))
