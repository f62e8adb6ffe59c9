"""From a captured graph to the fastest way of running it here: matrix library, noise drawn ahead, Inductor."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import fx

from pyro_vae.arithmetic import group_logs, log1p_is_slow, vectorise_logs
from pyro_vae.capture import BLIND, Captured, CaptureError, aten, is_random, value_of, written
from pyro_vae.layouts import weights_first
from pyro_vae.machine import remembered
from pyro_vae.products import PRODUCTS, choose_matrix_library, round_products

Mode = Literal["graph", "inductor"]
Flat = Callable[..., Sequence[torch.Tensor]]

logger = logging.getLogger("pyro_vae")


def lower(captured: Captured, inputs: Sequence[torch.Tensor], mode: Mode, precision: str = "float32") -> Flat:
    """A function of `held` and inputs that returns the flat outputs, as the graph does and faster.

    It is to be called where no gradients are recorded.

    Args:
        captured: what to run; it is left as it is.
        inputs: tensors like those to come.
        mode: "graph" runs the operations one by one; "inductor" compiles them, which takes seconds.
        precision: "bf16" runs matrix products and convolutions on bfloat16 inputs; all else stays as it was, so that
            densities are summed in float32.

    Raises:
        CaptureError: if Inductor can't compile the graph; its own message follows.
    """
    graph = fx.GraphModule(captured.graph, _copied(captured.graph.graph))
    tensors = [*captured.held, *inputs]
    if precision == "bf16":
        round_products(graph)
    if all(t.device.type == "cpu" for t in tensors):
        if precision != "bf16":
            if mode == "inductor":
                weights_first(graph)
            choose_matrix_library(graph)
        if mode == "inductor":
            group_logs(graph)
        if remembered("log1p is slow", log1p_is_slow):
            vectorise_logs(graph)
    if mode == "graph":
        return graph.forward  # a module's call costs as much as a small operation
    noise, rest = split_noise(graph)
    compiled = _inductor(rest, [*tensors, *noise(*tensors)])

    return lambda *arguments: compiled(*arguments, *noise(*arguments))


def has_compiler(device: torch.device) -> bool:
    """Whether Inductor finds what it compiles with: a C++ compiler for the CPU, Triton for CUDA."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()
    if device.type != "cpu":
        return False
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # a private function, which raises errors of its own where there is no compiler
        return False


@functools.cache
def _vector_instructions() -> dict[str, Any]:
    """Spares Inductor its trial compilations of each set of vector instructions, a quarter of a first compilation.

    Which sets the processor has, torch knows; what is left to see is that the compiler takes their flags.
    """
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler

    if getattr(config.cpp, "vec_isa_ok", False) is not None:  # set by the user, or unknown to this torch
        return {}
    flags = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx512vnni"]
    known = subprocess.run([get_cpp_compiler(), *flags, "-x", "c++", "-E", os.devnull], capture_output=True)
    return {"cpp.vec_isa_ok": True} if known.returncode == 0 else {}


@functools.cache
def _begin_with_headers() -> None:
    """Has the compiler begin with what all generated code includes: without a cache that lasts as long as the rest of it,
    and Inductor would only ask for it once its own Python is through."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    def compile_headers() -> None:
        nothing = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel(float* x) {}'
        with contextlib.suppress(Exception):  # Inductor will come upon it in its turn, and say so
            CppPythonBindingsCodeCache.load_pybinding_async(["float*"], nothing, submit_fn=lambda compile_kernel: None)

    pick_vec_isa()  # notes flags in objects of its own as it tries them, and must not do so in two threads at once
    context = contextvars.copy_context()  # holds Inductor's settings
    threading.Thread(target=context.run, args=(compile_headers,), daemon=True).start()


@contextlib.contextmanager
def _set_for_inductor(tensors: list[torch.Tensor], on_cpu: bool) -> Iterator[list[torch.Tensor]]:
    """Draws as in eager code, and compiled graphs kept for later runs; gives what it is to take for the tensors."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # fallback_random: draws that stay in the graph come from torch's own generator.
    options = {"fallback_random": True} | (_vector_instructions() if on_cpu else {})
    # Only where there is an environment for shapes does Inductor look for a graph that it has compiled before.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    # What it knows a graph by is, in older versions of torch, not all that its code hangs on.
    tag, processor = torch.compiler.config.cache_key_tag, torch.backends.cpu.get_cpu_capability()
    keys = torch.compiler.config.patch(cache_key_tag=f"{tag} {processor} {torch.get_num_threads()} threads")
    # AOTAutograd's own cache would keep the generated code from us.
    apart = torch._functorch.config.patch(enable_autograd_cache=False)
    with config.patch(options), keys, apart, tracing(TracingContext(mode)):
        yield [mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]


def _copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    return new


def _inductor(graph: fx.GraphModule, tensors: list[torch.Tensor]) -> Flat:
    from torch._inductor import compile_fx

    plain: list[Any] = []  # what runs the generated code, where that takes and gives what the graph does

    def inner(inside: fx.GraphModule, examples: Sequence[Any], **settings: Any) -> Any:
        whole = len(examples) == len(tensors) and _count_outputs(inside) == outputs
        code = compile_fx.compile_fx_inner(inside, examples, **settings)
        plain.append(getattr(code, "current_callable", None) if whole else None)
        return code

    outputs, writes = _count_outputs(graph), written(graph)
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    inductor_log = logging.getLogger("torch.utils.cpp_extension")
    level = inductor_log.level
    inductor_log.setLevel(logging.ERROR)  # it warns of a CUDA toolkit without a card
    try:
        with torch.no_grad(), _set_for_inductor(tensors, on_cpu) as examples:
            if on_cpu:
                _begin_with_headers()
            compiled = compile_fx.compile_fx(graph, examples, inner_compile=inner)
    except Exception as error:
        raise CaptureError(f"Inductor can't compile the graph: {str(error).splitlines()[0]}") from error
    finally:
        inductor_log.setLevel(level)
    # Around it come switches for autocast and autograd, and notes of what is written: 0.05 ms of a training step.
    if not on_cpu or len(plain) != 1 or plain[0] is None or any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return compiled
    (code,) = plain
    if not writes:
        return lambda *arguments: code([*arguments])

    def run(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
        outputs = code([*arguments])
        torch.autograd.graph.increment_version([arguments[i] for i in writes])
        return outputs

    return run


def _count_outputs(graph: fx.GraphModule) -> int:
    return len(next(iter(reversed(graph.graph.nodes))).args[0])


# --- noise ----------------------------------------------------------------------------------------------------------


def split_noise(graph: fx.GraphModule) -> tuple[Flat, fx.GraphModule]:
    """The draws that depend on no value, to be made first, and the rest of the graph, which takes them as inputs.

    A compiler is free to move draws past each other, and slow at making them. Drawn ahead, in their order and by
    torch itself, they are what eager code draws. Draws behind one that depends on values stay where they are.

    Returns:
        A function of the graph's inputs that makes the draws, and the graph, whose inputs they follow.
    """
    nodes = list(graph.graph.nodes)
    ahead: list[fx.Node] = []
    for node in (n for n in nodes if is_random(n)):
        tensors = [a for a in node.all_input_nodes if not (node.target in BLIND and a is node.args[0])]
        if tensors or not isinstance(node.meta.get("val"), torch.Tensor):
            break
        ahead.append(node)
    if not ahead:
        return (lambda *tensors: ()), graph
    noise = fx.Graph()
    places = [n for n in nodes if n.op == "placeholder"]
    for place in places:
        noise.placeholder(place.name)
    made = []
    for node in ahead:
        args = list(node.args)
        if node.target in BLIND:
            val = node.args[0].meta["val"]
            args[0] = noise.call_function(
                torch.empty_strided, (tuple(val.shape), val.stride()), {"dtype": val.dtype, "device": val.device}
            )
        in_place = _IN_PLACE.get(node.target, node.target)
        made.append(noise.call_function(in_place, tuple(args), dict(node.kwargs)))
    noise.output(made)
    after = places[-1]
    for node in ahead:
        with graph.graph.inserting_after(after):
            place = graph.graph.placeholder(f"noise_{node.name}")
        place.meta, after = dict(node.meta), place
        node.replace_all_uses_with(place)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return fx.GraphModule(torch.nn.Module(), noise).forward, graph


# On a fresh tensor these need no copy.
_IN_PLACE = {
    aten.normal_functional.default: aten.normal_.default,
    aten.uniform.default: aten.uniform_.default,
    aten.exponential.default: aten.exponential_.default,
    aten.bernoulli.p: aten.bernoulli_.float,
}


def seconds_of(graph: fx.GraphModule) -> float:
    """About how long one run of the graph takes on two cores, from the sizes in it alone."""
    seconds = 0.0
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            continue
        seconds += 4e-6 + value.numel() / 2e9
        if node.target in PRODUCTS:
            inner = value_of(node.args[PRODUCTS[node.target][0]]).shape[-1]
            seconds += 2 * value.numel() * inner / 2e11
    return seconds
