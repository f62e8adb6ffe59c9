"""Matrix products: which library makes them on a CPU, and at which precision."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx

from pyro_vae.capture import aten, value_of
from pyro_vae.files import write_text

#: Where an operation's factors are among its arguments.
PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten.convolution.default: (0, 1),
    aten.convolution_backward.default: (0, 1, 2),
}


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
    which it carries too. Both are timed on the graph's own shapes.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for node in list(graph.graph.nodes):
        if node.target is aten.mm.default:
            bias, (left, right) = None, node.args
        elif node.target is aten.addmm.default and not node.kwargs and value_of(node.args[0]).dim() == 1:
            bias, left, right = node.args
        else:
            continue
        a, b = value_of(left), value_of(right)
        if a.dtype != torch.float32 or 0 in (*a.shape, *b.shape):
            continue
        if not one_dnn_is_better(a, b):
            continue
        with graph.graph.inserting_before(node):
            weight = graph.graph.call_function(aten.t.default, (right,))
            new = graph.graph.call_function(torch.ops.pyro_vae.linear.default, (left, weight, bias))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()


def one_dnn_is_better(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether oneDNN multiplies two such matrices faster than `torch.mm`, and with float32's own rounding.

    Timed once on a machine: what was found is kept in a file, so that later runs round as earlier ones did.
    """
    sizes = (tuple(a.shape), a.stride(), tuple(b.shape), b.stride())
    key = f"{_processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads: {sizes}"
    known = _known_products()
    if key not in known:
        known[key] = _one_dnn_wins(*sizes)
        with contextlib.suppress(OSError):  # no place to keep it: it is then found out anew by the next process
            write_text(_products_file(), json.dumps({**_read_products(), **known}, indent=0))
    return known[key]


def _one_dnn_wins(shape_a: Any, stride_a: Any, shape_b: Any, stride_b: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.empty_strided(shape, stride).copy_(torch.randn(shape, generator=generator))
        for shape, stride in ((shape_a, stride_a), (shape_b, stride_b))
    )
    with torch.no_grad():
        exact = a.double() @ b.double()
        plain = (torch.mm(a, b) - exact).abs().max()
        # Lower precision would be off by hundreds of times as much.
        if (_one_dnn(a, b.t(), None) - exact).abs().max() > 3 * plain + 1e-6 * exact.abs().max():
            return False
        times: tuple[list[float], list[float]] = ([], [])
        budget = time.perf_counter() + 0.05
        while len(times[0]) < 3 or (time.perf_counter() < budget and len(times[0]) < 30):
            for record, product in zip(times, (torch.mm, lambda a, b: _one_dnn(a, b.t(), None)), strict=True):
                start = time.perf_counter()
                product(a, b)
                record.append(time.perf_counter() - start)
    # A tenth, and the few microseconds that its call takes through Python, speak for the plain product.
    return 1.1 * min(times[1]) + 4e-6 < min(times[0])


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _products_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pyro_vae" / "products.json"


def _read_products() -> dict[str, bool]:
    try:
        return json.loads(_products_file().read_text())
    except (OSError, ValueError):
        return {}


@functools.cache
def _known_products() -> dict[str, bool]:
    return _read_products()


def round_products(graph: fx.GraphModule) -> None:
    """Runs float32 matrix products and convolutions on bfloat16, their results widened to float32 at once."""
    g = graph.graph
    for node in list(g.nodes):
        if node.target not in PRODUCTS or value_of(node.args[PRODUCTS[node.target][0]]).dtype != torch.float32:
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
def float32_products(precision: str) -> Iterator[None]:
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
