"""From a captured graph to the fastest way of running it here: matrix library, noise drawn ahead, Inductor."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import fx

from pyro_vae.capture import Captured, CaptureError, aten, is_random

Mode = Literal["graph", "inductor"]
Flat = Callable[..., Sequence[torch.Tensor]]

logger = logging.getLogger("pyro_vae")


def lower(captured: Captured, inputs: Sequence[torch.Tensor], mode: Mode, precision: str = "float32") -> Flat:
    """A function of `held` and inputs that returns the flat outputs, as the graph does and faster.

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
    elif all(t.device.type == "cpu" for t in tensors):
        choose_matrix_library(graph)
    if mode == "graph":
        return graph
    noise, rest = split_noise(graph)
    if all(t.device.type == "cpu" for t in tensors):
        vectorise_logs(rest)
    compiled = _inductor(rest, [*tensors, *noise(*tensors)])

    def run(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
        return compiled(*arguments, *noise(*arguments))

    return run


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


def _copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    return new


def _inductor(graph: fx.GraphModule, tensors: list[torch.Tensor]) -> Flat:
    import torch._inductor as inductor

    inductor_log = logging.getLogger("torch.utils.cpp_extension")
    level = inductor_log.level
    inductor_log.setLevel(logging.ERROR)  # it warns of a CUDA toolkit without a card
    try:
        # fallback_random: draws that stay in the graph come from torch's own generator, as they do in eager code.
        with torch.no_grad():
            return inductor.compile(graph, tensors, options={"fallback_random": True})
    except Exception as error:
        raise CaptureError(f"Inductor can't compile the graph: {str(error).splitlines()[0]}") from error
    finally:
        inductor_log.setLevel(level)


# --- noise ----------------------------------------------------------------------------------------------------------

# Draws that do not look at their tensor argument, which only says shape, dtype and device.
_BLIND = {
    aten.normal_functional.default,
    aten.uniform.default,
    aten.exponential.default,
    aten.bernoulli.p,
    aten.cauchy.default,
    aten.geometric.default,
    aten.log_normal.default,
    aten.rand_like.default,
    aten.randn_like.default,
}


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
        tensors = [a for a in node.all_input_nodes if not (node.target in _BLIND and a is node.args[0])]
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
        if node.target in _BLIND:
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
    return fx.GraphModule(torch.nn.Module(), noise), graph


# On a fresh tensor these need no copy.
_IN_PLACE = {
    aten.normal_functional.default: aten.normal_.default,
    aten.uniform.default: aten.uniform_.default,
    aten.exponential.default: aten.exponential_.default,
    aten.bernoulli.p: aten.bernoulli_.float,
}


# --- matrix products ------------------------------------------------------------------------------------------------

_library = torch.library.Library("pyro_vae", "DEF")
# Inductor insists on constant weights for oneDNN's own operator; under a name of ours it leaves the call alone.
_library.define("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor")


def _one_dnn(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(input, weight, bias, "none", [], "")


def _shape_of_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return input.new_empty(input.shape[0], weight.shape[0])


_library.impl("linear", _one_dnn, "CPU")
torch.library.register_fake("pyro_vae::linear", _shape_of_linear, lib=_library)


def choose_matrix_library(graph: fx.GraphModule) -> None:
    """Gives each float32 matrix product to oneDNN where that is faster here and as exact.

    Torch sends `mm` to the library it was built with (MKL on x86), which on some processors is half as fast as oneDNN,
    which it carries too. Both are timed on the graph's own shapes, once in a process.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for node in list(graph.graph.nodes):
        if node.target is aten.mm.default:
            bias, (left, right) = None, node.args
        elif node.target is aten.addmm.default and not node.kwargs and _value(node.args[0]).dim() == 1:
            bias, left, right = node.args
        else:
            continue
        a, b = _value(left), _value(right)
        if a.dtype != torch.float32 or 0 in (*a.shape, *b.shape):
            continue
        if not one_dnn_is_better(tuple(a.shape), a.stride(), tuple(b.shape), b.stride(), torch.get_num_threads()):
            continue
        with graph.graph.inserting_before(node):
            weight = graph.graph.call_function(aten.t.default, (right,))
            new = graph.graph.call_function(torch.ops.pyro_vae.linear.default, (left, weight, bias))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()


@functools.cache
def one_dnn_is_better(
    shape_a: tuple[int, ...],
    stride_a: tuple[int, ...],
    shape_b: tuple[int, ...],
    stride_b: tuple[int, ...],
    threads: int,
) -> bool:
    """Whether oneDNN multiplies two such matrices faster than `torch.mm`, and with float32's own rounding.

    The error against float64 may be at most three times that of `torch.mm`; lower precision would be off by hundreds.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.empty_strided(shape, stride).copy_(torch.randn(shape, generator=generator))
        for shape, stride in ((shape_a, stride_a), (shape_b, stride_b))
    )
    with torch.no_grad():
        exact = a.double() @ b.double()
        plain = (torch.mm(a, b) - exact).abs().max()
        if (_one_dnn(a, b.t(), None) - exact).abs().max() > 3 * plain + 1e-6 * exact.abs().max():
            return False
        times = [[], []]
        budget = time.perf_counter() + 0.05
        while len(times[0]) < 3 or (time.perf_counter() < budget and len(times[0]) < 30):
            for record, product in zip(times, (torch.mm, lambda a, b: _one_dnn(a, b.t(), None)), strict=True):
                start = time.perf_counter()
                product(a, b)
                record.append(time.perf_counter() - start)
    # Its call costs some microseconds more than it shows here, through Python.
    return min(times[1]) + 4e-6 < min(times[0])


def _value(node: fx.Node) -> torch.Tensor:
    return node.meta["val"]


def vectorise_logs(graph: fx.GraphModule) -> None:
    """Writes softplus, log-sigmoid and log1p in exp and log, for which Inductor has vector code on a CPU.

    Its log1p takes ten times as long. With u = 1 + y rounded, log1p(y) = y · log(u) / (u − 1) makes good the rounding
    of u (Goldberg 1991, theorem 4), so that no accuracy is lost, near zero least of all.
    """
    g = graph.graph
    for node in list(g.nodes):
        if node.target in (aten.softplus.default, aten.log_sigmoid_forward.default, aten.log1p.default):
            dtype = _value(node.args[0]).dtype
        else:
            continue
        if not dtype.is_floating_point or (node.target is aten.softplus.default and len(node.args) > 1 and node.args[1] != 1):
            continue
        call = g.call_function
        x = node.args[0]
        with g.inserting_before(node):
            if node.target is aten.log1p.default:
                new = _log1p(g, x)
            else:
                tail = _log1p(g, call(aten.exp.default, (call(aten.neg.default, (call(aten.abs.default, (x,)),)),)))
                if node.target is aten.softplus.default:  # max(x, 0) + log1p(exp(−|x|))
                    new = call(aten.add.Tensor, (call(aten.clamp_min.default, (x, 0)), tail))
                else:  # min(x, 0) − log1p(exp(−|x|))
                    new = call(aten.sub.Tensor, (call(aten.clamp_max.default, (x, 0)), tail))
        if node.target is aten.log_sigmoid_forward.default:
            for part in [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]:
                part.replace_all_uses_with(new)
                g.erase_node(part)
        else:
            node.replace_all_uses_with(new)
    g.eliminate_dead_code()
    graph.recompile()


def _log1p(g: fx.Graph, y: fx.Node) -> fx.Node:
    call = g.call_function
    u = call(aten.add.Tensor, (y, 1.0))
    excess = call(aten.sub.Tensor, (u, 1.0))
    ratio = call(aten.div.Tensor, (call(aten.log.default, (u,)), excess))
    # u = 1, where y is lost in it, gives 0 / 0; y = infinity gives infinity · NaN.
    plain = call(aten.eq.Scalar, (excess, 0.0))
    near = call(aten.where.self, (plain, y, call(aten.mul.Tensor, (y, ratio))))
    return call(aten.where.self, (call(aten.isinf.default, (u,)), u, near))


_PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten.convolution.default: (0, 1),
    aten.convolution_backward.default: (0, 1, 2),
}


def round_products(graph: fx.GraphModule) -> None:
    """Runs float32 matrix products and convolutions on bfloat16, their results widened to float32 at once."""
    g = graph.graph
    for node in list(g.nodes):
        if node.target not in _PRODUCTS or _value(node.args[_PRODUCTS[node.target][0]]).dtype != torch.float32:
            continue
        args = list(node.args)
        with g.inserting_before(node):
            for i, arg in enumerate(args):
                if isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), torch.Tensor):
                    args[i] = g.call_function(aten.to.dtype, (arg, torch.bfloat16))
        node.args = tuple(args)
        if node.target is aten.convolution_backward.default:
            parts = [user for user in node.users if user.target is operator.getitem]
        else:
            parts = [node]
        for part in parts:
            with g.inserting_after(part):
                wide = g.call_function(aten.to.dtype, (part, torch.float32))
            wide.meta = dict(part.meta)
            part.replace_all_uses_with(wide, delete_user_cb=lambda user, wide=wide: user is not wide)
    graph.recompile()


@contextlib.contextmanager
def float32_products(precision: str) -> Any:
    """TensorFloat-32 for CUDA's float32 matrix products where `precision` is "tf32"; put back afterwards."""
    places = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]
    before = [place.fp32_precision for place in places]
    if precision == "tf32":
        for place in places:
            place.fp32_precision = "tf32"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            if place.fp32_precision != value:
                place.fp32_precision = value
