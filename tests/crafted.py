"""Damage for files: values that do not belong, put somewhere into a tree, and bytes changed, cut out or added."""

from __future__ import annotations

import copy
import datetime
from typing import Any

from hypothesis import strategies as st

ODD = (
    None, True, -1, 0, 3, 10**9, 10**12, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "x", "\0",
    "a" * 5000, "given in Python", "../../..", [], [[]], [1, 2], ["x"], {}, {"x": 1}, {1: 2}, b"bytes", set(),
    datetime.date(2020, 1, 1),
    {"class_path": "os.system", "init_args": {"command": "true"}}, {"class_path": "pyro_vae.__main__.main"},
    {"class_path": "pyro_vae.priors.Prior"}, {"class_path": "pyro_vae.priors.Mixture", "init_args": [1]},
    {"class_path": "pyro_vae.networks.MLP", "init_args": {"hidden": [10**9]}}, {"class_path": ["x"]},
    {"class_path": "pyro_vae.models.vae.VAE"}, {"class_path": "pyro_vae.priors.StandardNormal", "init_args": {"x": 1}},
)  # fmt: skip
WAYS = ("replace", "replace", "replace", "leave out", "nest", "rename")


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested dicts and lists; of long lists just the first three."""
    found = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:3]) if isinstance(tree, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def damaged(tree: Any, path: tuple[Any, ...], how: str, value: Any) -> Any:
    """A tree with the value at `path` replaced, left out, put under another name, or written twice; the rest is shared."""
    key, *rest = path
    tree = copy.copy(tree)
    if rest:
        tree[key] = damaged(tree[key], tuple(rest), how, value)
    elif how == "replace":
        tree[key] = value
    elif how == "leave out":
        del tree[key]
    elif how == "nest":
        tree[key] = [tree[key]] * 2
    elif isinstance(tree, dict):
        tree["renamed"] = tree.pop(key)
    return tree


def damage(tree: Any, odd: tuple[Any, ...] = ODD) -> st.SearchStrategy[Any]:
    """Trees that differ from `tree` at one place."""
    return st.builds(damaged, st.just(tree), st.sampled_from(places(tree)), st.sampled_from(WAYS), st.sampled_from(odd))


def bytes_damage(content: bytes) -> st.SearchStrategy[bytes]:
    """Contents that differ from `content` in a few bytes, are cut off, or have bytes put in between."""

    def change(at: int, length: int, new: bytes) -> bytes:
        at %= len(content) + 1
        return content[:at] + new + content[at + length :]

    places = st.integers(0, len(content)) | st.integers(0, min(len(content), 600))
    return st.builds(change, places, st.sampled_from([0, 1, 2, 8, 100, 10**9]), st.binary(max_size=12))
