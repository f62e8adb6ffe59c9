"""From the first call of a kind to the one that is captured: eager calls are observed until one has changed nothing."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyro_vae.engine import policy
from pyro_vae.engine.arguments import Arguments, Call, Unkeyed
from pyro_vae.engine.observe import ONCE, Executed, observe
from pyro_vae.engine.places import Unseen
from pyro_vae.engine.verify import version_of
from pyro_vae.engine.watch import Watch


class Stage(enum.Enum):
    """What the next call of a kind is for."""

    OBSERVED = "to be observed"
    READY = "to be captured"


@dataclass
class Waiting:
    """A kind of batch that has no graph yet."""

    calls: int = 0
    observed: int = 0
    ready: Watch | None = None  #: the state in which an observed call has changed nothing
    aliases: tuple[int | None, ...] = ()  #: which arguments the programs reach anyway


class Settling:
    """What observed calls have told of a function and its programs.

    Args:
        function: of batches.
        programs: gives what is behind it.
        arguments: which sorts calls into kinds.
    """

    def __init__(self, function: Callable[..., Any], programs: Callable[[], Sequence[Any]], arguments: Arguments):
        self.function, self.programs, self.arguments = function, programs, arguments
        self.waiting: dict[Any, Waiting] = {}
        self._executed = Executed()
        self._set_up = self._unsettled = 0

    def count(self, call: Call) -> int:
        """How many calls of this kind have come without a graph, with this one."""
        if len(self.waiting) > policy.MOST_KINDS:
            self.waiting.clear()
        waiting = self.waiting.setdefault(call.key, Waiting())
        waiting.calls += 1
        return waiting.calls

    def next(self, call: Call) -> tuple[Stage, Watch]:
        """What this call is for, and the watch that goes with it.

        Raises:
            Unseen: if the programs reach something whose changes cannot be seen, or that changes all the time.
        """
        waiting = self.waiting[call.key]
        if waiting.ready is not None:
            place = waiting.ready.changed(follow=True)
            waiting.ready.moved.clear()
            if place is None and waiting.aliases == waiting.ready.aliases(call.tensors):
                return Stage.READY, waiting.ready
            waiting.ready = None
            self._unsettled += 1
            if self._unsettled > policy.MOST_SETTINGS:
                raise Unseen(_KEEPS_CHANGING.format(place or _PASSED))
        if not self._executed.codes:  # which would look in vain for what nothing names
            return Stage.OBSERVED, Watch(tuple, Executed())
        objects = call.objects
        return Stage.OBSERVED, Watch(lambda: (*self.programs(), *objects), self._executed.copy())

    def reached(self, call: Call) -> list[torch.Tensor]:
        """All tensors that the programs reach by any name.

        Raises:
            Unseen: if they reach something whose changes cannot be seen.
        """
        return Watch(lambda: (*self.programs(), *call.objects), Executed(any_name=True)).tensors()

    def observe(
        self, watch: Watch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, str | None]:
        """An eager call: what the function returned, and why it may not be captured, if so."""
        waiting = self.waiting[call.key]
        waiting.observed += 1
        leaves = _Leaves([*watch.tensors(), *call.tensors])
        result, executed, reason = observe(self.function, *args, **kwargs)
        grown, reason = self._executed.add(executed), reason or _asks(executed)
        place = None
        try:
            reason = reason or leaves.reason() or self._changed_arguments(call, args, kwargs)
            place = None if grown else watch.changed()
        except (Unkeyed, Unseen) as error:
            reason = reason or str(error)
        if reason is None and place is not None:
            self._set_up += 1
            if self._set_up > policy.SETTING_UP:
                reason = f"{place} is set anew as the programs run"
        if reason is None and waiting.observed > 2 * policy.MOST_SETTINGS:
            reason = "it executes other code at each call"
        if reason is None and not grown and place is None:
            watch.written = leaves.written()
            waiting.ready, waiting.observed, waiting.aliases = watch, 0, watch.aliases(call.tensors)
        if reason is not None and waiting.observed == 1 and reason.endswith(ONCE):
            reason = None
        return result, reason

    def brings_news(self, executed: Executed) -> bool:
        """Whether a call that is captured has executed code that no observed call has."""
        self._executed.names |= executed.names  # the tracer's own are no news
        return self._executed.add(executed)

    def start_again(self, call: Call) -> None:
        """Has the next call of this kind observed."""
        self.waiting[call.key].ready = None

    def _changed_arguments(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        now = self.arguments.sort(args, kwargs)
        pairs = zip(now.leaves, call.leaves, strict=True)
        same = now.key == call.key and all(a is b for a, b in pairs if isinstance(a, torch.Tensor))
        return None if same else "it changes its arguments"


def _asks(executed: Executed) -> str | None:
    """Why programs are not captured that ask for what a captured step does not have as eager code has it.

    It leaves nothing in `.grad`, and `.item()` gives tensors for numbers.
    """
    of_items = {code.co_filename for code, _ in executed.codes.values() if "item" in code.co_names}
    for code, _ in executed.codes.values():
        names, what = set(code.co_names), None
        if ("grad" in names and "autograd" not in names) or any(name.startswith(_OF_GRADIENTS) for name in names):
            what = "looks at gradients"
        elif code.co_filename in of_items and names & _OF_TYPES:
            what = "asks for the type of what may be a tensor's number"
        if what is not None:
            return f"{Path(code.co_filename).name}, line {code.co_firstlineno} ({code.co_name}) {what}"
    return None


_OF_GRADIENTS = ("clip_grad", "get_total_norm", "zero_grad")
_OF_TYPES = {"isinstance", "is_tensor", "type", "issubclass", "__class__"}
_PASSED = "the tensor that is passed as an argument, and that the programs reach too,"
_KEEPS_CHANGING = (
    "{} keeps changing; keep it in a tensor (a buffer of its module, changed in place) or pass it as an argument"
)


class _Leaves:
    """Tensors before an eager call, to see which of them it writes to, or gives gradients."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self._tensors = list({id(tensor): tensor for tensor in tensors}.values())
        self._before = list(map(self._marks, self._tensors))

    @staticmethod
    def _marks(tensor: torch.Tensor) -> tuple[Any, ...]:
        grad = tensor.grad if tensor.requires_grad and tensor.is_leaf else None
        return version_of(tensor), grad, None if grad is None else version_of(grad)

    def reason(self) -> str | None:
        """Why the call may not be captured, if it gives gradients to what is no parameter of Pyro's."""
        for tensor, (_, grad, version) in zip(self._tensors, self._before, strict=True):
            _, now, now_version = self._marks(tensor)
            if now is not grad or now_version != version:
                return f"a tensor of shape {tuple(tensor.shape)} that is no parameter of Pyro's gets a gradient"
        return None

    def written(self) -> list[torch.Tensor]:
        """The tensors that the call has written to."""
        return [t for t, before in zip(self._tensors, self._before, strict=True) if self._marks(t)[0] != before[0]]
