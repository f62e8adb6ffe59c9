"""Parsers of the commands, and their messages as one sentence each."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any, NoReturn


class CommandError(Exception):
    """The command line can't be understood; the message is one for the user."""


def parser_of(command: str, description: str) -> Any:
    """A parser of jsonargparse that raises a CommandError of one sentence."""
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    class Parser(ArgumentParser):
        """Says what is wrong in one sentence; jsonargparse makes further ones of this class for nested options."""

        outermost = False

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.outermost:
                raise argparse.ArgumentError(None, message)  # jsonargparse adds which class it was
            raise CommandError(_explained(message, self))

    parser = Parser(prog=f"pyro-vae {command}", description=description, allow_abbrev=False)
    parser.outermost = True
    if command == "train":
        parser.add_argument("--config_text", action=ActionConfigFile, help=argparse.SUPPRESS)
    return parser


def read_options(name: str, what: str = "") -> dict[str, Any]:
    """The options in a YAML file.

    Args:
        name: of the file.
        what: the option that named it, for messages.

    Raises:
        CommandError: if the file cannot be read, is not YAML, or holds no options.
    """
    from pyro_vae.errors import InputError
    from pyro_vae.runs.reading import read_yaml

    said = f"{what} {name!r}".strip()
    try:
        content = read_yaml(name)
    except InputError as error:
        raise CommandError(f"{what}: {error}" if what else str(error)) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CommandError(f"{said} must hold options as 'name: value' lines.")
    return content


def with_inline_config(arguments: list[str]) -> list[str]:
    """The arguments with the YAML of `--config FILE` put in their place, less what a run folder adds to it."""
    import yaml

    from pyro_vae.cli.naming import allowed, check_options

    result = list(arguments)
    if any(word.startswith("--config_text") for word in arguments):
        raise CommandError("there is no option --config_text. Did you mean '--config'? See --help.")
    for at, word in enumerate(arguments):
        if word != "--config" and not word.startswith("--config="):
            continue
        name = word.partition("=")[2] or (arguments[at + 1] if at + 1 < len(arguments) else "")
        content = read_options(name, "--config")
        for key in ("pyro_vae", "format"):
            content.pop(key, None)
        check_options(content, "--config", allowed(arguments))
        model = content.get("model")
        if isinstance(model, dict) and isinstance(model.get("init_args"), dict):
            model["init_args"].pop("event_shape", None)
        width = 1 if "=" in word else 2
        result[at : at + width] = ["--config_text", yaml.safe_dump(content)]
        break
    return result


def _explained(message: str, parser: Any) -> str:
    """jsonargparse's message as one sentence, with the nearest right name."""
    from pyro_vae.errors import nearest

    text = " ".join(str(message).split())
    where = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', text))) or "the config"
    if found := re.search(r"[Uu]nrecognized arguments: (\S+)", text):
        option = found[1].partition("=")[0]
        known = [word for action in parser._actions for word in action.option_strings]
        return f"there is no option {option}.{nearest(option, known)} See --help."
    if found := re.search(r"Option '(\S+)' is not accepted", text):
        return _unknown_argument(found[1], text, where)
    if found := re.search(r"Expected a typing.Literal\[(.*?)\].*Given value: (\S+)", text):
        choices = [word.strip(" '") for word in found[1].split(",")]
        return f"{where}={found[2]!r} is not known.{nearest(found[2], choices)} Choose one of {', '.join(choices)}."
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        return f"{where}: there is no class {found[1]!r}.{nearest(found[1], _class_names())} See --model.help."
    if found := re.search(r"Expected a <class '(int|float)'>\.? Got value: (.+?)(?: Given|$)", text):
        wanted = {"int": "whole number", "float": "number"}[found[1]]
        return f"{where}={found[2]!r} must be a {wanted}."
    return text


def _class_names() -> list[str]:
    from pyro_vae.component import Component
    from pyro_vae.models import ComposedPair
    from pyro_vae.objectives import Objective

    def below(cls: Any) -> Iterator[str]:
        for sub in cls.__subclasses__():
            yield sub.__name__
            yield from below(sub)

    return [*below(Component), *below(ComposedPair), *below(Objective)]


def _unknown_argument(option: str, text: str, where: str) -> str:
    """The class whose argument was misspelt, and the arguments that it takes."""
    import inspect
    from importlib import import_module

    from pyro_vae.errors import nearest

    path = re.findall(r"class_path '([\w.]+)'", text)
    if not path:
        return f"{where}: there is no option {option!r}."
    module, _, name = path[-1].rpartition(".")
    known = [p for p in inspect.signature(getattr(import_module(module), name)).parameters if p != "event_shape"]
    if name in ("Prior", "Likelihood", "Guide", "Network"):
        return f"{where}: name a class before its {option!r}, as in --{where} NAME --{where}.{option} VALUE."
    return f"{where}: {name} takes no {option!r}.{nearest(option, known)} It takes {', '.join(known) or 'nothing'}."
