"""What a function asks of its tensors' values while it is traced: numbers stay tensors, branches become guards.

A graph holds one course of a function. Where that hangs on the value of a tensor (`if x.mean() > 0`, `range(int(n))`), the
course taken is recorded with its condition, a guard: an output of the graph, looked at after each replay. What would
burn values in without a guard is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vae.engine import compat
from pyro_vae.engine.policy import MOST_BURNT, MOST_LENGTHS
from pyro_vae.engine.tape import Tape, current_line, paused


class CaptureError(RuntimeError):
    """A function can't be captured; the message says why, and where."""


class NoGraph(CaptureError):
    """A function has run, as it would have by itself, and makes no graph.

    Attributes:
        result: what it returned.
    """

    def __init__(self, reason: str, result: Any):
        super().__init__(reason)
        self.result = result


@dataclass
class Guard:
    """A condition that held when the function was traced, and the line that asks for it."""

    condition: torch.Tensor
    line: str


class Values(TorchFunctionMode):
    """Looks on at torch's functions while a function is traced.

    Args:
        tape: what the operations are written on.

    Attributes:
        guards: the conditions met so far.
        numbers: tensors that the function has got for Python's numbers, as long as they live.
        gave_numbers: whether there have been any.
    """

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.guards: list[Guard] = []
        self.numbers = WeakTensorKeyDictionary()
        self.gave_numbers = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.tape.refusal is not None:
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None or any(isinstance(arg, torch.Generator) for arg in args):
            self.tape.refuse("draws from a generator of its own")
        elif func in _REFUSED:
            self.tape.refuse(_REFUSED[func])
        elif func in _HANDLED:
            return _HANDLED[func](self, func, *args, **kwargs)
        return func(*args, **kwargs)

    def burn(self, tensor: torch.Tensor, most: int = MOST_BURNT) -> Any:
        """The tensor's values, as Python's, which the graph may use as long as they are the same."""
        tensor = tensor.detach()
        with paused():
            expected = tensor.tolist()
        if tensor.numel() > most:
            self.tape.refuse("asks for the values of a large tensor")
            return expected
        if isinstance(expected, list):
            same = (tensor == torch.tensor(expected, dtype=tensor.dtype, device=tensor.device)).all()
        elif tensor.dtype is torch.bool:
            same = tensor if expected else ~tensor
        else:
            same = tensor == expected
        self.guards.append(Guard(same.reshape(()), current_line()))
        return expected


# --- what is handled ------------------------------------------------------------------------------------------------


def _item(mode: Values, func: Any, tensor: torch.Tensor) -> Any:
    """Numbers with a fraction stay tensors; whole ones are sizes and places, as a rule, and are Python's."""
    if tensor.numel() != 1:
        return func(tensor)  # raises
    tensor = tensor.detach().reshape(())
    if not tensor.is_floating_point() and not tensor.is_complex():
        return mode.burn(tensor)
    mode.numbers[tensor] = mode.gave_numbers = True
    return tensor


def _compare(mode: Values, func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    """Python compares numbers in double precision, torch a number with a float32 in that."""
    if isinstance(b, float) and isinstance(a, torch.Tensor) and a in mode.numbers:
        a = a.double()
    return func(a, b, **kwargs)


def _arange(mode: Values, func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return func(*(_whole(mode, func, arg) if isinstance(arg, torch.Tensor) else arg for arg in args), **kwargs)


def _with_whole_slices(mode: Values, index: Any) -> Any:
    """An index in whose slices tensors have become Python's numbers."""
    if isinstance(index, tuple):
        return tuple(_with_whole_slices(mode, part) for part in index)
    if not isinstance(index, slice):
        return index
    ends = (index.start, index.stop, index.step)
    return slice(*(_whole(mode, None, end) if isinstance(end, torch.Tensor) else end for end in ends))


def _set_item(mode: Values, func: Any, tensor: torch.Tensor, index: Any, value: Any) -> None:
    func(tensor, _with_whole_slices(mode, index), value)


def _get_item(mode: Values, func: Any, tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """A mask gives as many entries as it did; a number that is a tensor stays one."""
    index = _with_whole_slices(mode, index)
    if _is_mask(index):
        count = int(mode.burn(index.sum()))
        places = torch.nonzero_static(index.bool(), size=count)
        return func(tensor, tuple(places.unbind(1)))
    if isinstance(index, tuple) and any(map(_is_mask, index)):
        mode.tape.refuse(_COUNTED)
    elif isinstance(index, torch.Tensor) and not index.dim():
        return tensor.index_select(0, index.reshape(1).to(tensor.device)).squeeze(0)
    return func(tensor, index)


def _truth(mode: Values, func: Any, tensor: torch.Tensor) -> bool:
    if _asked_by(*compat.warning_codes()):  # a loss that is not finite is looked for after each replay
        return False
    if tensor.numel() != 1:
        return func(tensor)  # raises
    return bool(mode.burn((tensor if tensor.dtype is torch.bool else tensor.detach() != 0).reshape(())))


def _contains(mode: Values, func: Any, tensor: torch.Tensor, element: Any) -> bool:
    return bool(mode.burn((tensor == element).any()))


def _whole(mode: Values, func: Any, tensor: torch.Tensor) -> int:
    if tensor.is_floating_point() or tensor.is_complex():
        mode.tape.refuse("turns a tensor into a Python number")
        return func(tensor) if func is not None else int(tensor)
    return int(mode.burn(tensor.reshape(())))


def _list(mode: Values, func: Any, tensor: torch.Tensor) -> Any:
    if tensor.is_floating_point() or tensor.is_complex():
        mode.tape.refuse("turns a tensor into a list")
        return func(tensor)
    return mode.burn(tensor)


def _equal(mode: Values, func: Any, a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return bool(mode.burn((a == b).all()))


def _allclose(mode: Values, func: Any, a: torch.Tensor, b: torch.Tensor, *args: Any, **kwargs: Any) -> bool:
    return bool(mode.burn(torch.isclose(a, b, *args, **kwargs).all()))


def _one_hot(mode: Values, func: Any, tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """torch's own asks for the largest value; with the number of classes given, that is only a check."""
    if num_classes < 1:
        mode.tape.refuse(_COUNTED)
        return func(tensor, num_classes)
    _truth(mode, func, ((tensor >= 0) & (tensor < num_classes)).all())
    zeros = torch.zeros((*tensor.shape, num_classes), dtype=tensor.dtype, device=tensor.device)
    return zeros.scatter(-1, tensor.unsqueeze(-1), 1)


def _all(mode: Values, func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Zero weights are multiplied where Pyro's enumeration would select the others, a size that depends on values."""
    if _asked_by(compat.dice_code()):
        return False  # "not all weights are positive": leads to masked_select
    return func(tensor, *args, **kwargs)


def _masked_select(mode: Values, func: Any, tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if not _asked_by(compat.dice_code()):
        mode.tape.refuse(_COUNTED)
        return func(tensor, mask)
    return torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))


def _where(mode: Values, func: Any, condition: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if not args and not kwargs:
        mode.tape.refuse(_COUNTED)
    return func(condition, *args, **kwargs)


def _repeat_interleave(mode: Values, func: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    repeats = args[0] if args else kwargs.get("repeats", tensor)
    if isinstance(repeats, torch.Tensor) and kwargs.get("output_size") is None:
        mode.tape.refuse(_COUNTED)
    return func(tensor, *args, **kwargs)


def _register_hook(mode: Values, func: Any, tensor: torch.Tensor, hook: Callable[..., Any]) -> Any:
    """A backward pass runs where the mode does not look on, so hooks bring it back."""

    def looked_on(gradient: torch.Tensor) -> Any:
        with mode:
            return hook(gradient)

    return func(tensor, looked_on)


def _of_lengths(mode: Values, func: Any, data: torch.Tensor, second: Any, *args: Any, **kwargs: Any) -> Any:
    """torch reads the lengths of packed sequences where it does not say so."""
    if isinstance(second, torch.Tensor) and second.dtype == torch.long:
        mode.burn(second, MOST_LENGTHS)
    return func(data, second, *args, **kwargs)


def _of_data(mode: Values, func: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
    """torch reads tensors inside of lists where it does not say so."""
    if not isinstance(data, (list, tuple)) or not any(isinstance(part, torch.Tensor) for part in tree_leaves(data)):
        return func(data, *args, **kwargs)
    with paused():
        like = func(data, *args, **kwargs)
    if like.requires_grad or like.numel() > MOST_LENGTHS:
        mode.tape.refuse("makes a tensor of a list of tensors")
        return like
    parts = [torch.as_tensor(part).detach().to(like.device, like.dtype).reshape(-1) for part in tree_leaves(data)]
    return torch.cat(parts).reshape(like.shape)


def _of_old(mode: Values, func: Any, tensor: torch.Tensor, data: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(data, (list, tuple)) and any(isinstance(part, torch.Tensor) for part in tree_leaves(data)):
        mode.tape.refuse("makes a tensor of a list of tensors")
    return func(tensor, data, *args, **kwargs)


def _at_indices(mode: Values, func: Any, tensor: torch.Tensor, where: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(where, torch.Tensor):
        where = mode.burn(where)
    return func(tensor, where, *args, **kwargs)


_COUNTED = "gives a tensor whose shape depends on values"
_PACKED = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_HANDLED: dict[Any, Callable[..., Any]] = {
    torch.Tensor.item: _item,
    **dict.fromkeys((torch.Tensor.__bool__, torch.Tensor.is_nonzero, torch.is_nonzero), _truth),
    **dict.fromkeys((torch.Tensor.__int__, torch.Tensor.__index__), _whole),
    **dict.fromkeys((torch.Tensor.lt, torch.Tensor.le, torch.Tensor.gt, torch.Tensor.ge), _compare),
    **dict.fromkeys((torch.Tensor.eq, torch.Tensor.ne), _compare),
    **dict.fromkeys((torch.tensor, torch.as_tensor, torch.asarray), _of_data),
    torch.Tensor.new_tensor: _of_old,
    **dict.fromkeys((torch.tensor_split, torch.Tensor.tensor_split), _at_indices),
    torch.Tensor.__contains__: _contains,
    torch.Tensor.tolist: _list,
    **dict.fromkeys((torch.equal, torch.Tensor.equal), _equal),
    **dict.fromkeys((torch.allclose, torch.Tensor.allclose), _allclose),
    torch.nn.functional.one_hot: _one_hot,
    torch.Tensor.register_hook: _register_hook,
    torch.Tensor.all: _all,
    **dict.fromkeys((torch.masked_select, torch.Tensor.masked_select), _masked_select),
    **dict.fromkeys((torch.where, torch.Tensor.where), _where),
    **dict.fromkeys((torch.repeat_interleave, torch.Tensor.repeat_interleave), _repeat_interleave),
    **dict.fromkeys((*_PACKED, *compat.of_packed_sequences()), _of_lengths),
    torch.Tensor.__getitem__: _get_item,
    torch.Tensor.__setitem__: _set_item,
    torch.arange: _arange,
}
_REFUSED = {
    **dict.fromkeys((torch.Tensor.__float__, torch.Tensor.__complex__), "turns a tensor into a Python number"),
    **dict.fromkeys((torch.Tensor.numpy, torch.Tensor.__array__), "turns a tensor into a NumPy array"),
    **dict.fromkeys((torch.Tensor.__format__, torch.Tensor.__repr__), "writes a tensor's values into a text"),
    **dict.fromkeys((torch.Tensor.data_ptr, torch.Tensor.untyped_storage), "looks at a tensor's memory"),
    **dict.fromkeys((torch.Tensor.__reduce_ex__, torch.Tensor.__dlpack__), "copies a tensor's values out"),
    torch.Tensor._version.__get__: "asks for a tensor's version",  # type: ignore[attr-defined]
    **dict.fromkeys(
        (
            *(torch.nonzero, torch.argwhere, torch.unique, torch.unique_consecutive, torch.bincount),
            *(torch.Tensor.nonzero, torch.Tensor.argwhere, torch.Tensor.unique, torch.Tensor.unique_consecutive),
            *(torch.Tensor.bincount, torch.histc, torch.Tensor.histc),
        ),
        _COUNTED,
    ),
}


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) and index.dim() > 0


def _asked_by(*codes: Any) -> bool:
    """Whether the function being looked at is called by one of these codes."""
    frame = sys._getframe(3)
    return frame is not None and frame.f_code in codes
