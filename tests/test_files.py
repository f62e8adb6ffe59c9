"""Files are there whole or not at all, and trees of tensors come back as they went."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_vae.data.files import read_tensors, replacing, write_tensors, write_text
from pyro_vae.errors import InputError

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.arange(torch.Size(shape).numel()).reshape(shape)),
)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=60)
@given(trees)
def test_any_tree_survives(tree):
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "t", tree)
        assert equal(read_tensors(Path(folder) / "t"), tree)


def test_an_interruption_while_saving_leaves_the_previous_file(tmp_path, monkeypatch):
    write_tensors(tmp_path / "t", {"x": torch.zeros(3)})
    import safetensors.torch

    def half(tensors, path, metadata=None):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "t", {"x": torch.ones(3)})
    assert torch.equal(read_tensors(tmp_path / "t")["x"], torch.zeros(3))
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_failing_block_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "t", "before")

    def fail_halfway():
        with replacing(tmp_path / "t") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert (tmp_path / "t").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", b"\x00" * 100])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(InputError, match="can't be read"):
        read_tensors(tmp_path / "t")
    with pytest.raises(InputError, match="can't be read"):
        read_tensors(tmp_path / "missing")
