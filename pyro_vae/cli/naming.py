"""Which code a command may import: this package's components, and modules of the user's that the user names.

A file never has code imported from outside the package unless its module is named with `--allow`. The current folder comes
last on the import path, and only while a command runs that was given a module of the user's.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pyro_vae.cli.parsing import CommandError

_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
#: Options whose values may name classes.
_CLASSES = ("--model", "--objective")
_SCHEDULE = "--fit.schedule"


@contextlib.contextmanager
def users_modules(named: Sequence[str]) -> Iterator[None]:
    """Within, modules of the current folder can be imported, after all others, if the user named one.

    Args:
        named: modules outside this package that the user named.
    """
    if not named:
        yield
        return
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        if here in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]


def allowed(arguments: Sequence[str]) -> list[str]:
    """The modules after `--allow`."""
    found: list[str] = []
    taking = False
    for word in arguments:
        if word.startswith("-"):
            taking = word == "--allow"
            found += [word.partition("=")[2]] if word.startswith("--allow=") else []
        elif taking:
            found.append(word)
    return found


def named(arguments: Sequence[str]) -> list[str]:
    """The modules outside this package of the classes that the command line itself names.

    Raises:
        InputError, CommandError: if it names something of this package that is no component, or a schedule whose module is
            not allowed.
    """
    modules = []
    for at, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        value = value if equals else "".join(arguments[at + 1 : at + 2])
        if option == "--fit":
            raise CommandError("--fit takes no value by itself; say --fit.NAME VALUE. See --help.")
        if option == _SCHEDULE:
            _check_schedule(value, allowed(arguments), "the command line")
        elif option.split(".")[0] in _CLASSES:
            for path in _DOTTED.findall(value):
                if path.startswith("pyro_vae."):
                    _check_own(path, option)
                else:
                    modules.append(path.rpartition(".")[0])
    return modules


def check_options(content: dict[str, Any], where: str, allow: Sequence[str] = ()) -> None:
    """Looks at the options in a file before anything that they name is imported or opened.

    Args:
        content: the options.
        where: the file stands, for messages.
        allow: modules outside this package that the file may name.

    Raises:
        CommandError: if a part is no mapping, or names code that is not allowed.
        InputError: if it names something of this package that is no component.
    """
    for key in ("allow", "config", "config_text"):
        if key in content:
            raise CommandError(f"{where}: {key!r} can be said on the command line alone.")
    for key in ("fit", "model"):
        if key in content and content[key] is None:  # `fit:` with nothing below it
            del content[key]
    fit = content.get("fit")
    if fit is not None and not isinstance(fit, dict):
        raise CommandError(f"{where}: fit must hold options as 'name: value' lines.")
    for key in ("model", "objective"):
        part = content.get(key)
        if part is not None and not isinstance(part, (dict, str, list)):
            raise CommandError(f"{where}: {key} must be a class, with its arguments under init_args.")
        _check_names(part, allow, f"{where}: {key}")
    schedules = (fit or {}).get("schedule")
    for schedule in schedules if isinstance(schedules, list) else [schedules]:
        _check_schedule(schedule, allow, where)


def _check_names(part: Any, allow: Sequence[str], where: str) -> None:
    if isinstance(part, dict):
        for key, value in part.items():
            _check_names(value, allow, f"{where}.{key}" if key not in ("class_path", "init_args") else where)
    elif isinstance(part, list):
        for value in part:
            _check_names(value, allow, where)
    elif isinstance(part, str) and _DOTTED.fullmatch(part):
        if part.startswith("pyro_vae."):
            _check_own(part, where)
        else:
            _check_allowed(part, allow, where)
    elif isinstance(part, str) and re.search(r"[\x00-\x1f/\\]", part):
        raise CommandError(f"{where}={part!r} is no word; wanted: the name of a class or a choice.")


def _check_own(path: str, where: str) -> None:
    from pyro_vae.runs.specs import named_class

    named_class(path, (), where)


def _check_allowed(path: str, allow: Sequence[str], where: str) -> None:
    module = path.rpartition(".")[0]
    if not any(module == one or module.startswith(f"{one}.") for one in allow):
        raise CommandError(
            f"{where}: {path} is outside pyro_vae, and a file may name such code only if you allow it: --allow {module}."
        )


def _check_schedule(schedule: Any, allow: Sequence[str], where: str) -> None:
    """A schedule by name, or a function of a module that is allowed."""
    if isinstance(schedule, dict):
        schedule = str(schedule.get("class_path", "none"))
        schedule = schedule if "." in schedule else f"builtins.{schedule}"
    if isinstance(schedule, str) and ("." in schedule or "{" in schedule):
        found = _DOTTED.findall(schedule) or [schedule]
        for path in found:
            _check_allowed(path, allow, f"{where}: fit.schedule")
