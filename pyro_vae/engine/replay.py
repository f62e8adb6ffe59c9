"""Trace once, run many: a function of batches that captures itself, verifies itself, and runs eagerly where it must.

A call is plain, observed, captured or replayed. The function's Python runs at most once in it, so that a program that counts
its own calls counts what it would count without us. There are two exceptions: where the number of calls is known, capturing
comes before the first call; and where tracing fails halfway, the call runs again, after a run that has changed nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro import poutine
from torch.utils._pytree import tree_leaves

from pyro_vae.engine import compat, lower, policy
from pyro_vae.engine.arguments import Arguments, Call, Unkeyed
from pyro_vae.engine.observe import ONCE, Executed, can_observe, observe
from pyro_vae.engine.reach import Unseen
from pyro_vae.engine.recording import Recorded
from pyro_vae.engine.trace import Captured, capture
from pyro_vae.engine.values import CaptureError
from pyro_vae.engine.verify import (
    LOWERED,
    RandomState,
    against_eager,
    agree,
    as_before,
    check_lowered,
    run_apart,
    unwritten,
    version_of,
    written_to,
)
from pyro_vae.engine.watch import Watch
from pyro_vae.pair import kept_random_state

Compile = Literal["auto", "eager", "graph", "inductor"]
COMPILE = ("auto", "eager", "graph", "inductor")

logger = logging.getLogger("pyro_vae")


@dataclass
class Graph:
    """A captured function for one kind of batch.

    Attributes:
        captured: the graph.
        run: the fastest way to run it so far, a function of the inputs.
        params: Pyro's parameters in it, by name.
        compiled: whether it runs compiled; None while that is undecided.
        calls: replays so far, and `agreed` of them when the graph last agreed with an eager call.
        misses: replays whose guards did not hold.
        seconds: that a call takes uncompiled, estimated from its operations' sizes.
    """

    captured: Captured
    params: dict[str, torch.Tensor]
    run: lower.Flat = None  # type: ignore[assignment]
    compiled: bool | None = None
    calls: int = 0
    agreed: int = 0
    misses: int = 0
    seconds: float = 0.0


@dataclass
class _Kept:
    """A graph that holds for calls of a key, as long as what is watched is what it is."""

    key: Any
    watch: Watch
    graph: Graph


@dataclass
class _Waiting:
    """A kind of batch that has no graph yet."""

    calls: int = 0
    observed: int = 0
    ready: Watch | None = None  #: the state in which an observed call has changed nothing
    aliases: tuple[int | None, ...] = ()  #: which arguments the programs reach anyway


class Replay:
    """`function(*args, **kwargs)`, with what it does captured once per kind of batch and replayed.

    Calls of a kind run eagerly until capturing pays (`policy`). Then they run under a profiler (`observe`), until one of
    them has changed nothing that the programs can reach, has asked nothing of the world outside, and has executed no new
    code. The next call is traced. Replays are verified against eager calls at growing intervals (`verify`).

    A kind is the shapes, dtypes and devices of the tensors in the arguments, and the value of everything else; floats that
    change from call to call become tensors. What the programs reach is watched, and another state of it gets graphs of its
    own. Programs that cannot be captured run eagerly; one warning names the reason.

    Args:
        function: of batches, to nested tensors. It may take gradients by itself.
        programs: the Python functions and modules behind it, or a function that gives them.
        compile: "graph" replays the captured graph, "inductor" compiles it at once, "auto" does what pays, "eager" never
            captures.
        precision: of matrix products, see `lower.lower`.
        calls: of a batch's tensors to how often such a batch will come, if that is known.
        what: what the function is, for messages.
        plain: runs a call of which nothing is to be seen; `function` by default.
        looks_at_loss: whether a first output that is not finite sends the call to an eager run, which says more.

    Attributes:
        refusal: why nothing is captured, if so.
        capture_seconds, compile_seconds: spent so far.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        programs: Sequence[Any] | Callable[[], Sequence[Any]],
        *,
        compile: Compile = "auto",
        precision: str = "float32",
        calls: Callable[..., int] | None = None,
        what: str = "the step",
        looks_at_loss: bool = False,
        plain: Callable[..., Any] | None = None,
    ):
        self.function, self.what, self.compile, self.precision = function, what, compile, precision
        self.programs = programs if callable(programs) else lambda: programs
        self.calls, self.looks_at_loss, self.plain = calls, looks_at_loss, plain or function
        self.capture_seconds = self.compile_seconds = 0.0
        self.refusal: str | None = None
        self._complete = False  # whether torch and Pyro have all that it needs; asked at the first call
        self._warned: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        self._kept: list[_Kept] = []
        self._waiting: dict[Any, _Waiting] = {}
        self._arguments, self._executed = Arguments(), Executed()
        self._set_up = self._unsettled = 0

    def __getstate__(self) -> dict[str, Any]:
        mine = ("_kept", "_waiting", "_arguments", "_executed", "_set_up", "_unsettled")
        return {name: value for name, value in vars(self).items() if name not in mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()  # graphs belong to the tensors they were captured from

    @property
    def how(self) -> str:
        """How calls are run by now, for a progress bar."""
        if self.compile == "eager":
            return "eager"
        if self.refusal is not None:
            return "eager (not captured)"
        if not self._kept:
            return "eager"
        return "captured, Inductor" if any(kept.graph.compiled for kept in self._kept) else "captured"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns; tensors are detached."""
        graph, result = self.flat(args, kwargs)
        return result if graph is None else graph.captured.nested(result)

    def flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Graph | None, Any]:
        """A graph and its flat outputs; or None and what the function returned."""
        if not self._captures():
            return None, self.plain(*args, **kwargs)
        try:
            call = self._arguments.sort(args, kwargs)
            if (graph := self._find(call)) is not None:
                return self._replay(graph, call, args, kwargs)
            watch = self._due(call)
        except (Unkeyed, Unseen) as reason:
            self.refuse(str(reason))
            return None, self.plain(*args, **kwargs)
        if watch is None:
            return None, self.plain(*args, **kwargs)
        if self.calls is not None:
            return self._prepare(watch, call, args, kwargs)
        if watch is self._waiting[call.key].ready:
            return None, self._capture(watch, call, args, kwargs)
        return None, self._observe(watch, call, args, kwargs)

    def _captures(self) -> bool:
        """Whether this call may be captured or replayed."""
        if self.compile == "eager" or self.refusal is not None:
            return False
        if not self._complete:
            self._complete = compat.is_complete()
            if not self._complete:
                self.refuse("this release of torch or Pyro lacks what capturing needs")
                return False
        return not self._is_looked_on()

    def replays(self, *args: Any) -> bool:
        """Whether such calls are captured or replayed, as far as is known."""
        if self.compile == "eager" or self.refusal is not None:
            return False
        return self.compile != "auto" or self.calls is None or self.calls(*args) >= policy.CALLS_WORTH_CAPTURE

    def current(self, *args: Any) -> Graph | None:
        """The graph that holds for a call now, if there is one and it takes no branches; nothing is run."""
        if self.refusal is not None or self._is_looked_on():
            return None
        call = self._arguments.sort(args, {})
        graph = self._find(call)
        return None if graph is None or graph.captured.guards else graph

    def refuse(self, reason: str) -> None:
        """Runs everything eagerly from now on, and says why."""
        self.refusal = reason = reason.partition("Trace Shapes:")[0].rstrip(".\n ")  # Pyro's table of all sites
        self._forget()
        logger.warning("%s runs eagerly, which is slower, as it can't be captured: %s.", _sentence(self.what), reason)

    def _is_looked_on(self) -> bool:
        """Whether something around the call sees or changes what happens in it."""
        if compat.handlers:
            self._warn("a Pyro handler is active around it")
        elif compat.function_modes():
            self._warn("a mode of torch's is active around it")
        elif torch.is_inference_mode_enabled():
            self._warn("torch's inference mode is on around it")
        elif torch.is_anomaly_enabled():
            self._warn("torch's anomaly detection is on")
        else:
            return False
        return True

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("%s runs eagerly, as %s.", _sentence(self.what), reason)

    # --- before there is a graph --------------------------------------------------------------------------------------

    def _find(self, call: Call) -> Graph | None:
        """The graph for this kind of call that holds for what the programs reach now."""
        for i, kept in enumerate(self._kept):
            if kept.key != (call.key, kept.watch.aliases(call.tensors)) or kept.watch.changed(follow=True) is not None:
                continue
            if kept.watch.moved:
                _rebind(kept)
            if i:
                self._kept.insert(0, self._kept.pop(i))
            return kept.graph
        return None

    def _due(self, call: Call) -> Watch | None:
        """A watch for an observed call or, if the last one changed nothing, for capturing; None for a plain call.

        Raises:
            Unseen: if the programs reach something whose changes cannot be seen, or that changes all the time.
        """
        if len(self._waiting) > policy.MOST_KINDS:
            self._waiting.clear()
        waiting = self._waiting.setdefault(call.key, _Waiting())
        waiting.calls += 1
        if self.compile == "auto":
            known = self.calls(*call.tensors) if self.calls is not None else None
            if (waiting.calls <= policy.CALLS_BEFORE_CAPTURE) if known is None else known < policy.CALLS_WORTH_CAPTURE:
                return None
        if len(self._kept) >= policy.MOST_KINDS:
            self._warn(f"{policy.MOST_KINDS} graphs are kept already, and this kind of call would need another")
            return None
        if waiting.ready is not None:
            place = waiting.ready.changed(follow=True)
            waiting.ready.moved.clear()
            if place is None and waiting.aliases == waiting.ready.aliases(call.tensors):
                return waiting.ready
            place = place or "the tensor that is passed as an argument, and that the programs reach too,"
            waiting.ready = None
            self._unsettled += 1
            if self._unsettled > policy.MOST_SETTINGS:
                raise Unseen(_KEEPS_CHANGING.format(place))
        if not can_observe():
            self._warn("a profiler is active")
            return None
        objects = call.objects
        if not self._executed.codes:  # which would look in vain for what nothing names
            return Watch(tuple, Executed())
        return Watch(lambda: (*self.programs(), *objects), self._names())

    def _names(self) -> Executed:
        now = self._executed
        return Executed(dict(now.codes), set(now.names), set(now.own_names), now.any_name)

    def _prepare(
        self, watch: Watch | None, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Graph | None, Any]:
        """The call by a graph that is captured first, so that how often a function has been called changes no bit of it.

        Where capturing is refused, the call is the eager one that shows why.
        """
        random, written = RandomState(call.device), []
        with contextlib.suppress(Unseen):
            tensors = Watch(lambda: (*self.programs(), *call.objects), Executed(any_name=True)).tensors()
            written = [(tensor, tensor.detach().clone()) for tensor in tensors if not tensor.requires_grad]
        try:
            while watch is not None:
                if ready := watch is self._waiting[call.key].ready:
                    result = self._capture(watch, call, args, kwargs)
                else:
                    result = self._observe(watch, call, args, kwargs)
                if self.refusal is not None:
                    return None, result
                random.restore()
                _put_back(written, ())
                watch = None if ready else self._due(call)
            graph = self._find(call)
        except Unseen as reason:
            self.refuse(str(reason))
            graph = None
        if graph is None:
            return None, self.plain(*args, **kwargs)
        return self._replay(graph, call, args, kwargs)

    def _observe(self, watch: Watch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An eager call, to see whether it may be captured."""
        waiting = self._waiting[call.key]
        waiting.observed += 1
        leaves = _Leaves([*watch.tensors(), *call.tensors])
        result, executed, reason = observe(self.function, *args, **kwargs)
        grown = self._executed.add(executed)
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
        if reason is not None and not (waiting.observed == 1 and reason.endswith(ONCE)):
            self.refuse(reason)
        elif reason is None and not grown and place is None:
            watch.written = leaves.written()
            waiting.ready, waiting.observed, waiting.aliases = watch, 0, watch.aliases(call.tensors)
        return result

    def _changed_arguments(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        now = self._arguments.sort(args, kwargs)
        same = now.key == call.key and all(
            a is b for a, b in zip(now.leaves, call.leaves, strict=True) if _is_tensor(a)
        )
        return None if same else "it changes its arguments"

    # --- capturing ----------------------------------------------------------------------------------------------------

    def _capture(self, watch: Watch, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call, traced; where that fails, run eagerly on the same random state."""
        start = time.perf_counter()
        random = RandomState(call.device)
        written = [(tensor, tensor.detach().clone()) for tensor in watch.written]
        store = [(part, dict(part)) for part in compat.store_parts()]
        try:
            with poutine.trace(param_only=True) as found:
                captured = capture(lambda *given: self._of_tensors(call, given), *call.tensors)
        except CaptureError as error:
            random.restore()
            _put_back(written, store)
            self.refuse(str(error))
            return self.plain(*args, **kwargs)
        params = {name: site["value"].unconstrained() for name, site in found.trace.nodes.items()}
        graph = Graph(captured, params)
        try:
            self._check(graph, watch, call)
            self._lower(graph, call.tensors, "graph")
            self._keep(graph, watch, call)
            self.capture_seconds += time.perf_counter() - start
            self._first_decision(graph, call)
        except (CaptureError, Unseen) as error:
            self.refuse(str(error))
        except Exception as error:  # torch's own, where a graph can't be run
            self.refuse(f"its graph can't be run: {str(error).splitlines()[0]}")
        result, captured.result = captured.result, None
        return result

    def _of_tensors(self, call: Call, given: Sequence[torch.Tensor]) -> Any:
        args, kwargs = call.filled(given)
        return self.function(*args, **kwargs)

    def _check(self, graph: Graph, watch: Watch, call: Call) -> None:
        """Refuses what a replay would leave out.

        Raises:
            CaptureError: with the reason.
        """
        if place := watch.changed():
            raise CaptureError(f"{place} is set anew as the programs run")
        if any(tensor._backward_hooks or tensor._post_accumulate_grad_hooks for tensor in graph.params.values()):
            raise CaptureError("a parameter has a hook on its gradient")
        if any(place >= len(graph.captured.held) for place in graph.captured.places_written):
            raise CaptureError("it changes its arguments in place")
        if not torch.is_grad_enabled():
            return
        known = {id(tensor) for tensor in graph.params.values()}
        foreign = [t for t in (*graph.captured.held, *call.tensors) if t.requires_grad and id(t) not in known]
        if any(tensor.is_leaf and tensor.grad is not None for tensor in foreign):
            raise CaptureError("a tensor that is no parameter of Pyro's gets a gradient")

    def _keep(self, graph: Graph, watch: Watch, call: Call) -> None:
        watch.add(graph.params)
        self._kept.insert(0, _Kept((call.key, watch.aliases(call.tensors)), watch, graph))
        del self._waiting[call.key]

    def _first_decision(self, graph: Graph, call: Call) -> None:
        graph.seconds = lower.seconds_of(graph.captured)
        if self.compile == "graph":
            graph.compiled = False
        elif self.compile == "inductor" and not self.compile_seconds:  # further kinds must come often
            self._compile(graph, call.tensors)
        elif self.calls is not None:
            self._consider_compiling(graph, call.tensors, self.calls(*call.tensors))
            graph.compiled = bool(graph.compiled)

    def _lower(self, graph: Graph, tensors: Sequence[torch.Tensor], mode: lower.Mode) -> None:
        """Puts in place a way of running the graph.

        Raises:
            CaptureError: if there is none, or it gives other values.
        """
        device = tensors[0].device if tensors else torch.device("cpu")
        with kept_random_state(device), torch.no_grad():  # a compiler draws numbers of its own
            run = lower.lower(graph.captured, tensors, mode, self.precision)
        if self.precision == "float32":
            check_lowered(run, graph.captured, tensors, mode)
        held = graph.captured.held
        graph.run = lambda *inputs: run(*held, *inputs)
        if tensors and device.type == "cuda":
            graph.run = Recorded(graph.run)

    def _consider_compiling(self, graph: Graph, tensors: Sequence[torch.Tensor], calls: int) -> None:
        if not policy.compiling_pays(calls, graph.seconds, graph.captured.graph.graph):
            return
        if lower.has_compiler(tensors[0].device if tensors else torch.device("cpu")):
            self._compile(graph, tensors)
        else:
            graph.compiled = False

    def _compile(self, graph: Graph, tensors: Sequence[torch.Tensor]) -> None:
        start = time.perf_counter()
        graph.compiled = False
        try:
            self._lower(graph, tensors, "inductor")
            graph.compiled = True
        except CaptureError as error:
            logger.warning("%s stays a captured graph that is not compiled: %s.", _sentence(self.what), error)
        self.compile_seconds += time.perf_counter() - start

    # --- replaying ----------------------------------------------------------------------------------------------------

    def _replay(
        self, graph: Graph, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Graph | None, Any]:
        graph.calls += 1
        if policy.is_verified(graph.calls - 1):
            return self._verify(graph, call, args, kwargs)
        random = RandomState(call.device)
        written = [(tensor, tensor.detach().clone()) for tensor in written_to(graph.captured, call.tensors)]
        try:
            with compat.Unrecorded():
                flat = graph.run(*call.tensors)
            if self._holds(graph, flat):
                if graph.compiled is None:  # what has come so far is the best guess of what is to come
                    self._consider_compiling(graph, call.tensors, graph.calls)
                return graph, flat
        except Exception as error:  # eager code raises it too, or the graph is wrong
            failure = f"its graph fails on a later batch ({str(error).splitlines()[0]})"
        else:
            failure = None
        random.restore()
        _put_back(written, ())
        graph.misses += 1
        result = self.plain(*args, **kwargs)
        if failure is not None:
            self.refuse(failure)
        elif graph.misses > max(policy.MOST_MISSES, policy.SHARE_OF_MISSES * graph.calls):
            self.refuse(f"{' and '.join(graph.captured.guards) or 'the loss'} goes another way too often")
        return None, result

    def _holds(self, graph: Graph, flat: Sequence[torch.Tensor]) -> bool:
        """Whether the graph's course is the function's on this batch."""
        if graph.captured.guards and not flat[-1].item():
            return False
        if not self.looks_at_loss or 0 in graph.captured.fixed:
            return True
        loss = flat[0]
        return loss.numel() != 1 or not loss.is_cpu or math.isfinite(loss.item())

    def _verify(
        self, graph: Graph, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Graph | None, Any]:
        """An eager call, with which the graph is compared; where calls are counted, the graph's if they agree."""
        captured, random = graph.captured, RandomState(call.device)
        got = lowered = None
        with contextlib.suppress(Exception):  # eager code raises it too, or the comparison fails
            with unwritten(written_to(captured, call.tensors)), torch.no_grad():
                got = [tensor.clone() for tensor in captured.recorded(*captured.held, *call.tensors)]
                after = RandomState(call.device)
            random.restore()
            if self.precision == "float32":
                lowered = run_apart(lambda *_: graph.run(*call.tensors), captured, call.tensors)
        random.restore()
        written = [(tensor, tensor.detach().clone()) for tensor in written_to(captured, call.tensors)]
        result = self.function(*args, **kwargs)
        if got is not None and captured.guards and not got[-1].item():
            graph.misses += 1
            return None, result
        leaves = tree_leaves(result, is_leaf=lambda leaf: leaf is None)
        same = got is not None and len(leaves) == captured.spec.num_leaves and after.is_now(RandomState(call.device))
        same = same and all(agree([leaves[i]], [value], 0.0) for i, value in captured.fixed.items())
        if same:
            expected = [leaf for i, leaf in enumerate(leaves) if i not in captured.fixed]
            same = against_eager(captured, call.tensors, got[: len(expected)], expected, as_before(random, written))
        if same and lowered is not None:
            with as_before(random, written):
                same = agree(lowered, got, LOWERED) or _check_again(graph, call)
        if not same:
            self.refuse(_OTHER_VALUES.format(graph.calls - graph.agreed - 1))
            return None, result
        graph.agreed = graph.calls
        if self.calls is None:
            return None, result
        random.restore()
        _put_back(written, ())
        with compat.Unrecorded():
            return graph, graph.run(*call.tensors)


_KEEPS_CHANGING = (
    "{} keeps changing; keep it in a tensor (a buffer of its module, changed in place) or pass it as an argument"
)
_OTHER_VALUES = (
    "its graph gives other values than an eager run under the same random state ({} calls have gone by since they last "
    "agreed): something else than its arguments and parameters changes from call to call"
)


def _check_again(graph: Graph, call: Call) -> bool:
    """Whether the graph as it is run and the operations as they came differ by no more than rounding."""
    try:
        check_lowered(lambda *_: graph.run(*call.tensors), graph.captured, call.tensors, "graph")
    except CaptureError:
        return False
    return True


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


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _sentence(what: str) -> str:
    return what[:1].upper() + what[1:]


def _put_back(written: Sequence[tuple[torch.Tensor, torch.Tensor]], store: Any) -> None:
    for part, before in store:
        if part.keys() != before.keys() or any(part[key] is not value for key, value in before.items()):
            part.clear()
            part.update(before)
    with torch.no_grad():
        for tensor, copy in written:
            tensor.copy_(copy)


def _rebind(kept: _Kept) -> None:
    """Gives a graph the tensors that have taken the place of others."""
    graph, held = kept.graph, kept.graph.captured.held
    places = {id(old): new for old, new in kept.watch.moved}  # at once, as two may have changed places
    held[:] = [places.get(id(tensor), tensor) for tensor in held]
    if isinstance(graph.run, Recorded):  # which reads where the old ones lie
        graph.run = Recorded(graph.run.function)
    kept.watch.moved.clear()


class _Belonging:
    """Replays that belong to an object; its copies and its pickles have none."""

    def __init__(self) -> None:
        self.replays: dict[Any, Replay] = {}

    def __deepcopy__(self, memo: Any) -> _Belonging:
        return _Belonging()

    def __reduce__(self) -> Any:
        return _Belonging, ()


def kept_with(thing: Any) -> dict[Any, Replay]:
    """The replays kept with an object, to be looked up and added to; they are gone when it is."""
    if not hasattr(thing, "__dict__"):
        return {}
    if "_replays" not in vars(thing):
        object.__setattr__(thing, "_replays", _Belonging())  # past torch's own, which looks for modules in it
    return vars(thing)["_replays"].replays
