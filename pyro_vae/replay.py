"""Trace once, run many: a function of batches that captures itself, checks itself, and runs eagerly where it must."""

from __future__ import annotations

import contextlib
import logging
import operator
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.adam import MOST, AdamStep
from pyro_vae.capture import Captured, CaptureError, capture
from pyro_vae.lowering import Flat, has_compiler, lower, seconds_of
from pyro_vae.pair import kept_random_state
from pyro_vae.reach import PLAIN, Watch
from pyro_vae.recording import Recorded

Compile = Literal["auto", "eager", "graph", "inductor"]
COMPILE = ("auto", "eager", "graph", "inductor")

CAPTURE_FROM = 100  # calls; fewer do not repay the time that capturing takes

# Compiling the optimizer's step with the gradients: seconds more for each parameter, and the share of a call that it saves.
STEP_COST, STEP_GAIN = 0.25, 0.07

_LEAVES = {torch.Tensor, torch.nn.Parameter, *PLAIN}

MAX_KINDS = 32  # of batches, and of settings of the plain values around them, for each of which a graph is kept

logger = logging.getLogger("pyro_vae")


@dataclass
class Graph:
    """A captured function for one kind of batch.

    Attributes:
        captured: the graph.
        run: the fastest way to run it so far, a function of the inputs.
        params: Pyro's parameters in it, by name.
        stored: those of them that Pyro's store holds; the others are PyroModules' own.
        marks: what else about the parameters must stay as it was.
        inductor: whether it runs compiled; None while that is undecided.
        unchecked: how many more batches are to be run eagerly too, and compared.
        calls: of `run` since the last change of it.
        estimate: seconds that a call takes uncompiled, from its operations' sizes.
        step: the optimizer's step past its Python; False if it has to be taken by the optimizer.
        whole: the graph compiled together with the optimizer's step, if it is.
        alone: whether `run` is compiled.
        parted: how often a compiled step had to be given up.
    """

    captured: Captured
    run: Flat
    params: dict[str, torch.Tensor]
    stored: dict[str, torch.Tensor]
    marks: list[tuple[Any, ...]]
    inductor: bool | None = None
    unchecked: int = 1
    calls: int = 0
    estimate: float = 0.0
    step: AdamStep | Literal[False] | None = None
    whole: Whole | None = None
    alone: bool = False
    parted: int = 0


@dataclass
class Whole:
    """A captured loss and gradients compiled together with the optimizer's step.

    Attributes:
        step: the step.
        run: a function of what is held, the inputs, and what the step begins with.
        missed: how often the optimizer has had to take its own step since.
    """

    step: AdamStep
    run: Flat
    missed: int = 0


@dataclass
class _Setting:
    """The graphs that hold as long as the watched values are what they are."""

    watch: Watch
    graphs: dict[Any, Graph | None] = field(default_factory=dict)


class Replay:
    """`function(*args, **kwargs)`, with what it does captured once per kind of batch and replayed.

    The first batch of a kind runs eagerly, at the second the function is captured and compared with an eager run under
    the same seed, value by value; and once more on the next batch, whose values differ. Whether to compile depends on
    counts alone, never on a clock, so that a seed fixes every bit. A kind is the shapes, dtypes
    and devices of the tensors in the arguments, and the value of everything else; numbers with a fraction that change
    from call to call are made tensors. What the programs reach besides (flags, numbers, parameters) is watched, and
    another setting of it gets graphs of its own. What can't be captured runs eagerly, and a warning says why, once.

    Args:
        function: of batches, to nested tensors. It may take gradients by itself.
        programs: the Python functions and modules behind it, to be watched.
        compile: "graph" replays the captured graph, "inductor" compiles it at once, "auto" once that pays, "eager"
            never captures.
        precision: of matrix products, see `lowering.lower`.
        calls: of a batch's tensors to how often such a batch will come, if that is known; "auto" then decides at the
            first batch of a kind how it is run to the end, and captures at once what it captures.
        what: what the function is, for messages.
        follow: of a captured loss and gradients, to the optimizer's step that `step` is to take with them once they are
            compiled; None if the caller is to take it.

    Attributes:
        latest: the graph that the last call ran; None if it ran eagerly.
        refusal: why nothing is captured, if so.
        capture_seconds, compile_seconds: spent so far.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        programs: tuple[Callable[..., Any], ...],
        *,
        compile: Compile = "auto",
        precision: str = "float32",
        calls: Callable[..., int] | None = None,
        what: str = "the step",
        follow: Callable[[Graph], AdamStep | None] | None = None,
    ):
        self.function, self.programs, self.what = function, programs, what
        self.compile, self.precision, self.calls, self.follow = compile, precision, calls, follow
        self.refusal: str | None = None
        self.capture_seconds = self.compile_seconds = 0.0
        self._settings: list[_Setting] = []
        self._moved = 0
        self._floats: dict[Any, dict[int, float | None]] = {}
        self.latest: Graph | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_settings": [], "latest": None}  # graphs belong to the tensors they were captured from

    @property
    def how(self) -> str:
        """How calls are run by now, for a progress bar."""
        if self.compile == "eager":
            return "eager"
        if self.refusal is not None:
            return "eager (not captured)"
        graphs = [graph for setting in self._settings for graph in setting.graphs.values() if graph is not None]
        if not graphs:
            return "eager"
        return "captured, Inductor" if any(graph.inductor for graph in graphs) else "captured"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns; tensors are detached."""
        return self._call(*self._find(args, kwargs), args, kwargs)

    def step(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, torch.Tensor] | None, torch.Tensor | None]:
        """The loss and the gradients of a function that returns these, for the caller to take a step by.

        Once the optimizer's step is compiled with them, the step has been taken: no gradients come back, and instead the
        gradient's norm if the step is a guarded one.
        """
        graph, tensors = self._find(args, kwargs)
        if graph is None or graph.whole is None:
            return *self._apart(graph, tensors, args, kwargs), None
        whole = graph.whole
        state = whole.step.begin()
        if state is None:
            self._part(graph, tensors)
            return *self._call(graph, tensors, args, kwargs), None
        self.latest = graph
        if not self._holds(graph, tensors, args, kwargs):
            return *self._eagerly(args, kwargs), None
        with _Unrecorded():
            loss, *norm = whole.run(*graph.captured.held, *tensors, *state)
        graph.calls += 1
        whole.step.count(loss, *norm)
        return loss, None, norm[0] if norm else None

    def _apart(
        self, graph: Graph | None, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, torch.Tensor] | None]:
        """The loss and the gradients; None for these where the step on them has been taken past the optimizer's Python."""
        self.latest = graph
        if graph is None or not self._holds(graph, tensors, args, kwargs):
            return self._eagerly(args, kwargs)
        if graph.step is None and self.follow is not None:
            step = self.follow(graph)
            graph.step = step if step is not None and step.guard is None and step.possible() else False
        with _Unrecorded():
            flat = graph.run(*tensors)
            taken = graph.step and graph.step.take(flat)
        self._count(graph, tensors)
        return (flat[0], None) if taken else graph.captured.nested(flat)

    def _call(
        self, graph: Graph | None, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.latest = graph
        if graph is None or not self._holds(graph, tensors, args, kwargs):
            return self._eagerly(args, kwargs)
        with _Unrecorded():
            flat = graph.run(*tensors)
        self._count(graph, tensors)
        return graph.captured.nested(flat)

    def _count(self, graph: Graph, tensors: list[torch.Tensor]) -> None:
        """Notes a call, and sees whether it is time for a faster way."""
        graph.calls += 1
        if graph.inductor is None:  # what has come so far is the best guess of what is to come
            self._consider_inductor(graph, tensors, graph.calls)
        elif graph.alone and self.calls is None and graph.whole is None and graph.calls % 1000 == 0:
            pays = self._step_pays(graph, graph.calls, _cost(graph))
            if pays and not self._join(graph, tensors):
                graph.parted = 2  # not tried again

    def _holds(self, graph: Graph, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the graph may be trusted: it is compared once more on a batch that it was not captured from."""
        if not graph.unchecked or not graph.calls:
            return True
        graph.unchecked -= 1
        try:
            self._compare(graph, tensors, args, kwargs)
        except CaptureError as error:
            self._refuse(str(error))
            self.latest = None
            return False
        return True

    def captures(self, *args: Any, **kwargs: Any) -> bool:
        """Whether such a call runs a graph; captures it if it is due."""
        return self._find(args, kwargs)[0] is not None

    def _eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A plain call; programs that change what is watched each time they run are found out here."""
        result = self.function(*args, **kwargs)
        if self._settings and (place := self._settings[0].watch.changed()):
            self._moved += 1
            if self._moved > 2:  # first calls may set things up
                self._refuse(f"{place} is set anew as the programs run")
        return result

    # --- which graph --------------------------------------------------------------------------------------------------

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Graph | None, list[torch.Tensor]]:
        if self.compile == "eager" or self.refusal is not None or _PYRO_STACK:
            return None, []
        flat = not kwargs and all(map(_LEAVES.__contains__, map(type, args)))
        leaves, spec = (args, None) if flat else tree_flatten((args, kwargs))
        key, tensors = self._kind(leaves, len(args) if flat else spec)
        if key is None:
            return None, []
        setting = self._setting()
        if setting is None:
            return None, []
        if key not in setting.graphs:
            if sum(graph is not None for graph in setting.graphs.values()) >= MAX_KINDS:
                return None, []
            setting.graphs[key] = None  # captured if it comes again
            if self.calls is None:
                return None, []
        graph = setting.graphs[key]
        if graph is not None and not _same_params(graph):
            # The store was cleared or loaded: an eager call registers the modules anew.
            self._settings.clear()
            return None, []
        if graph is None:
            if self.calls is not None and self.compile == "auto" and self.calls(*tensors) < CAPTURE_FROM:
                return None, []
            try:
                graph = self._capture(setting, leaves, tree_flatten((args, kwargs))[1] if flat else spec, tensors)
            except CaptureError as error:
                self._refuse(str(error))
                return None, []
            setting.graphs[key] = graph
        return graph, tensors

    def _kind(self, leaves: Sequence[Any], spec: Any) -> tuple[Any, list[torch.Tensor]]:
        """A key for the kind of batch, and the tensors in it; no key where an argument can't be told apart."""
        parts: list[Any] = []
        tensors: list[torch.Tensor] = []
        floats = None
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                tensors.append(leaf)
                parts.append((leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad))
            elif isinstance(leaf, float):
                if floats is None:
                    floats = self._floats.setdefault(len(leaves), {})
                if floats.setdefault(i, leaf) != leaf:
                    floats[i] = None  # it changes
                parts.append(("number", floats[i]))
            elif isinstance(leaf, PLAIN):
                parts.append((type(leaf), leaf))
            else:
                self._refuse(f"an argument is a {type(leaf).__name__}, whose changes can't be seen")
                return None, []
        if floats:
            changing = [leaves[i] for i in _changing(floats, leaves)]
            device = tensors[0].device if tensors else None
            tensors += [torch.tensor(value, dtype=torch.get_default_dtype(), device=device) for value in changing]
        ambient = (torch.is_grad_enabled(), torch.get_default_dtype(), *map(torch.is_autocast_enabled, ("cpu", "cuda")))
        return (tuple(parts), spec, ambient), tensors

    def _setting(self) -> _Setting | None:
        """The setting in which the watched values are what they are now."""
        place = None
        for i, setting in enumerate(self._settings):
            now = setting.watch.changed(follow=True)
            if now is None:
                if setting.watch.moved:
                    _rebind(setting)
                if i:
                    self._settings.insert(0, self._settings.pop(i))
                return setting
            place = place or now
        if len(self._settings) >= MAX_KINDS:
            self._refuse(
                f"{place} keeps changing; keep it in a tensor (a buffer of its module, changed in place) or pass it "
                "as an argument"
            )
            return None
        self._settings.insert(0, _Setting(Watch(*self.programs)))
        return self._settings[0]

    def _refuse(self, reason: str) -> None:
        self.refusal = reason
        self._settings.clear()
        logger.warning(
            "%s runs eagerly, which is slower, as it can't be captured: %s.",
            _sentence(self.what),
            reason,
        )

    # --- capturing ------------------------------------------------------------------------------------------------------

    def _capture(self, setting: _Setting, leaves: Sequence[Any], spec: Any, tensors: list[torch.Tensor]) -> Graph:
        start = time.perf_counter()
        changing = _changing(self._floats.get(len(leaves), {}), leaves)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)] + changing

        def of_tensors(*given: torch.Tensor) -> Any:
            filled = list(leaves)
            for i, tensor in zip(places, given, strict=True):
                filled[i] = tensor
            args, kwargs = tree_unflatten(filled, spec)
            return self.function(*args, **kwargs)

        store = pyro.get_param_store()
        before = dict(store._params)
        with _unmarked(setting.watch, tensors):
            with poutine.trace(param_only=True) as found:
                captured = capture(of_tensors, *tensors)
            place = setting.watch.changed()
            replaced = [name for name, tensor in before.items() if store._params.get(name) is not tensor]
        if place or replaced:
            raise CaptureError(f"{place or f'the parameter {replaced[0]!r}'} is set anew as the programs run")
        params = {name: site["value"].unconstrained() for name, site in found.trace.nodes.items()}
        stored = {name: tensor for name, tensor in params.items() if name in store._params}
        graph = Graph(captured, captured.graph, params, stored, [*map(_MARKS, params.values())])
        args, kwargs = tree_unflatten(leaves, spec)
        self._compare(graph, tensors, args, kwargs)
        graph.estimate = seconds_of(captured.graph)
        self.capture_seconds += time.perf_counter() - start
        self._lower(graph, tensors, "graph")
        if self.compile == "inductor" and not self.compile_seconds:  # further kinds must come often
            self._compile(graph, tensors)
        if self.compile == "graph":
            graph.inductor = False
        elif self.calls is not None and graph.inductor is None:
            self._consider_inductor(graph, tensors, self.calls(*tensors))
            graph.inductor = bool(graph.inductor)
        return graph

    def _compare(self, graph: Graph, tensors: list[torch.Tensor], args: Any, kwargs: Any) -> None:
        """Runs the function and its graph on one batch under one seed.

        Raises:
            CaptureError: if their values differ by more than rounding.
        """
        if any(hook for _, *hooks in graph.marks for hook in hooks):
            raise CaptureError("a parameter has a hook on its gradient")
        device = tensors[0].device if tensors else "cpu"
        watch = self._settings[0].watch if self._settings else Watch(*self.programs)
        with _unmarked(watch, graph.captured.written), kept_random_state(device, 0):
            random.seed(0)  # not as it was at capture: what is drawn from these is burnt in
            np.random.seed(0)
            expected = [_detached(leaf) for leaf in tree_flatten(self.function(*args, **kwargs))[0]]
        with _unmarked(watch, graph.captured.written), kept_random_state(device, 0):
            with torch.no_grad():
                flat = graph.captured.recorded(*graph.captured.held, *tensors)
            got = [_detached(leaf) for leaf in tree_flatten(graph.captured.nested(flat))[0]]
        for mine, theirs in zip(got, expected, strict=True):
            if not _close(mine, theirs):
                raise CaptureError(
                    "its graph gives other values than an eager run under the same seed: something else than its "
                    "arguments and parameters changes from call to call, such as Python's random numbers"
                )

    def _lower(self, graph: Graph, tensors: list[torch.Tensor], mode: Literal["graph", "inductor"]) -> None:
        """Puts in place a way of running the graph.

        Raises:
            CaptureError: if there is none, or it gives other values.
        """
        device = tensors[0].device if tensors else "cpu"
        with kept_random_state(device):  # a compiler draws numbers of its own
            run = lower(graph.captured, tensors, mode, self.precision)
        if self.precision == "float32":
            results = []
            for way in (graph.captured.recorded, run):
                with _unmarked(None, graph.captured.written), kept_random_state(device, 0), torch.no_grad():
                    results.append([_detached(t) for t in way(*graph.captured.held, *tensors)])
            # Rounding of the whole computation, 1e-7 of its largest number, may be all that is in a small one.
            noise = 1e-7 * max((t.double().abs().max().item() for t in results[0] if t.numel()), default=0.0)
            # Where weights are exp of large numbers, as in IWAE, rounding grows to 1e-4; mistakes are larger.
            if not all(_close(b, a, 2e-3, noise) for a, b in zip(*results, strict=True)):
                raise CaptureError(f"run by {mode}, its graph gives other values")
        held = graph.captured.held
        graph.run, graph.calls, graph.step = lambda *inputs: run(*held, *inputs), 0, None
        if tensors and tensors[0].device.type == "cuda":
            graph.run = Recorded(graph.run)

    def _consider_inductor(self, graph: Graph, tensors: list[torch.Tensor], calls: int) -> None:
        """Compiles where that pays: it takes some seconds, and saves about a third of the time of each later call."""
        if calls * graph.estimate / 3 < _cost(graph):
            return
        if has_compiler(tensors[0].device if tensors else torch.device("cpu")):
            self._compile(graph, tensors)
        else:
            graph.inductor = False

    def _compile(self, graph: Graph, tensors: list[torch.Tensor]) -> None:
        start = time.perf_counter()
        graph.inductor = False
        try:
            calls = graph.calls if self.calls is None else self.calls(*tensors)
            if not (self._step_pays(graph, calls) and self._join(graph, tensors)):
                self._lower(graph, tensors, "inductor")
                graph.alone = True
            graph.inductor = True
        except CaptureError as error:
            logger.warning("%s stays a captured graph that is not compiled: %s.", _sentence(self.what), error)
        self.compile_seconds += time.perf_counter() - start

    def _step_pays(self, graph: Graph, calls: int, more: float = 0.0) -> bool:
        """Whether so many calls repay the time for compiling the optimizer's step too, and `more` seconds."""
        if self.follow is None or graph.parted > 1:
            return False
        gain = 0.3 * STEP_GAIN if graph.step else STEP_GAIN  # less where the optimizer's Python is saved anyway
        return calls * graph.estimate * gain >= STEP_COST * len(graph.params) + more

    def _join(self, graph: Graph, tensors: list[torch.Tensor]) -> bool:
        """Compiles the graph together with the optimizer's step, if that can be done."""
        step = self.follow(graph)
        if step is None or len(step.places) > MOST or not step.possible():
            return False
        try:
            graph.whole = self._whole(graph, tensors, step)
        except CaptureError as error:  # such as parameters that share memory
            logger.info("%s is compiled apart from the optimizer's: %s.", _sentence(self.what), error)
        return graph.whole is not None

    def _whole(self, graph: Graph, tensors: list[torch.Tensor], step: AdamStep) -> Whole:
        """The graph and the step after it, compiled as one.

        Raises:
            CaptureError: if that can't be done, or gives other values.
        """
        try:
            joined, state = step.joined(), step.begin()
        except Exception as error:  # gradients of shapes that only an optimizer takes, say
            raise CaptureError(f"its step fails: {str(error).splitlines()[0]}") from error
        with kept_random_state("cpu"):
            run = lower(joined, [*tensors, *state], "inductor", self.precision)
        if self.precision == "float32":
            results = []
            for way in (joined.graph, run):
                held, now = ([_detached(t) for t in some] for some in (graph.captured.held, state))
                with kept_random_state("cpu", 0), torch.no_grad():
                    out = [_detached(t) for t in way(*held, *tensors, *now)]
                moved = [(held[i] - p.detach()).flatten() for i, p in zip(step.places, step.params, strict=True)]
                results.append((out + now, torch.cat(moved)))
            (expected, moves), (got, own_moves) = results
            noise = 1e-7 * max((t.double().abs().max().item() for t in expected if t.numel()), default=0.0)
            # Where a gradient is nothing but rounding, Adam makes full steps of it; over all there are few of these.
            same = (moves - own_moves).abs().sum() <= 0.05 * moves.abs().sum()
            if not same or not all(_close(b, a, 2e-3, noise) for a, b in zip(expected, got, strict=True)):
                raise CaptureError("run by inductor, its graph gives other values")
            if not all(t.isfinite().all() for t in expected):
                raise CaptureError("its first values are not finite, and can't be compared")
        return Whole(step, run)

    def _part(self, graph: Graph, tensors: list[torch.Tensor]) -> None:
        """Compiles anew once the optimizer has gone another way for some steps; without its step if that happens often."""
        graph.whole.missed += 1
        if graph.whole.missed > 3:
            graph.whole, graph.parted = None, graph.parted + 1
            if not graph.alone:
                self._compile(graph, tensors)


def _sentence(what: str) -> str:
    return what[:1].upper() + what[1:]


def _cost(graph: Graph) -> float:
    """Seconds that compiling takes, as seen on two cores without a cache."""
    return 2.0 + 0.04 * len(graph.captured.graph.graph.nodes)


class _Unrecorded:
    """`torch.no_grad()` without its Python, which between large products takes 0.02 ms."""

    def __enter__(self) -> None:
        self.recording = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_grad_enabled(self.recording)


class _Kept:
    """Replays that belong to an object; its copies and its pickles have none."""

    def __init__(self) -> None:
        self.replays: dict[Any, Replay] = {}

    def __deepcopy__(self, memo: Any) -> _Kept:
        return _Kept()

    def __reduce__(self) -> Any:
        return _Kept, ()


def kept_with(thing: Any) -> dict[Any, Replay]:
    """The replays kept with an object, to be looked up and added to; they are gone when it is."""
    if not hasattr(thing, "__dict__"):
        return {}
    if "_replays" not in vars(thing):
        object.__setattr__(thing, "_replays", _Kept())  # past torch's own, which looks for modules in it
    return vars(thing)["_replays"].replays


def _changing(floats: dict[int, float | None], leaves: Sequence[Any]) -> list[int]:
    """The places of numbers that have been seen to change."""
    return [i for i, value in floats.items() if value is None and isinstance(leaves[i], float)]


def _rebind(setting: _Setting) -> None:
    """Gives graphs the tensors that have taken the place of others."""
    for old, new in setting.watch.moved:
        for graph in filter(None, setting.graphs.values()):
            held = graph.captured.held
            held[:] = [new if tensor is old else tensor for tensor in held]
            if isinstance(graph.run, Recorded):  # which reads where the old one lies
                graph.run = Recorded(graph.run.function)
    setting.watch.moved.clear()


@contextlib.contextmanager
def _unmarked(watch: Watch | None, tensors: list[torch.Tensor]) -> Iterator[None]:
    """Leaves values, buffers, parameters' places and random states as they were."""
    store = pyro.get_param_store()
    held = {id(t): t for t in (*tensors, *(watch.tensors() if watch else ())) if not t.requires_grad}
    copies = [(t, t.detach().clone()) for t in held.values()]
    entries = (dict(store._params), dict(store._constraints), dict(store._param_to_name))
    python, numpy = random.getstate(), np.random.get_state()
    device = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
    try:
        with kept_random_state(device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if watch:
            watch.restore()
        for now, then in zip((store._params, store._constraints, store._param_to_name), entries, strict=True):
            if len(now) != len(then) or any(now.get(key) is not value for key, value in then.items()):
                now.clear()
                now.update(then)
        with torch.no_grad():
            for tensor, copy in copies:
                tensor.copy_(copy)


def _same_params(graph: Graph) -> bool:
    """Whether the store still holds the graph's parameters, and none of them has got a hook or been frozen."""
    held = pyro.get_param_store()._params
    if not all(map(operator.is_, map(held.get, graph.stored), graph.stored.values())):
        return False
    return [*map(_MARKS, graph.params.values())] == graph.marks


# Hooks on gradients among them.
_MARKS = operator.attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks")


def _detached(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _close(a: Any, b: Any, relative: float = 1e-5, noise: float = 1e-12) -> bool:
    """Whether two results are equal but for rounding, measured by the largest entry."""
    if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        return a == b or (a != a and b != b)
    if a is None or b is None:
        return False
    a, b = (torch.as_tensor(t).double().cpu() for t in (a, b))
    if a.shape != b.shape:
        return False
    size = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0.0
    return torch.allclose(a, b, rtol=relative, atol=relative * size + noise, equal_nan=True)
