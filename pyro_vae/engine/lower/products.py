"""Matrix products: which library makes them on a CPU, and at which precision."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator

import torch
from torch import fx

from pyro_vae.engine.graphs import aten, value_of
from pyro_vae.engine.machine import best_seconds, remembered

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
#: Multiplications in a product, below which oneDNN's call costs more than it saves.
WORTH_IT = 2**22

# Inductor insists on constant weights for oneDNN's own operator; under a name of ours it leaves the call alone.
_library.define("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor")


def _one_dnn(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(input, weight, bias, "none", [], "")


def _shape_of_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return input.new_empty(input.shape[0], weight.shape[0])


_library.impl("linear", _one_dnn, "CPU")
torch.library.register_fake("pyro_vae::linear", _shape_of_linear, lib=_library)


def choose_matrix_library(graph: fx.Graph) -> None:
    """Gives each float32 matrix product to oneDNN where that is faster here and as exact.

    Torch sends `mm` to the library it was built with (MKL on x86), which on some processors is half as fast as oneDNN,
    which it carries too.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for node in list(graph.nodes):
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
        with graph.inserting_before(node):
            weight = graph.call_function(aten.t.default, (right,))
            new = graph.call_function(torch.ops.pyro_vae.linear.default, (left, weight, bias))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def one_dnn_is_better(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether to give a @ b to oneDNN: for products large enough to repay its call, where this machine prefers it.

    Asked apart for a layer's output and for its weight's gradient, whose first factor comes transposed.
    """
    if a.shape[0] * a.shape[1] * b.shape[1] < WORTH_IT:
        return False
    if a.stride(0) < a.stride(1):
        return remembered("oneDNN multiplies faster, first factor transposed", _one_dnn_wins_transposed)
    return remembered("oneDNN multiplies faster", _one_dnn_wins)


def _one_dnn_wins() -> bool:
    """For (128, 784) @ (784, 400), as of the layer of 400 units on a batch of 128."""
    generator = torch.Generator().manual_seed(0)
    return _wins(torch.randn(128, 784, generator=generator), torch.randn(400, 784, generator=generator).t())


def _one_dnn_wins_transposed() -> bool:
    generator = torch.Generator().manual_seed(0)
    return _wins(torch.randn(128, 784, generator=generator).t(), torch.randn(128, 400, generator=generator))


def _wins(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether oneDNN multiplies these float32 matrices faster than `torch.mm` does, and with float32's own rounding."""
    with torch.no_grad():
        exact = a.double() @ b.double()
        plain, other = ((product - exact).abs().max() for product in (a @ b, _one_dnn(a, b.t(), None)))
        # Lower precision would be off by hundreds of times as much.
        if other > 3 * plain + 1e-6 * exact.abs().max():
            return False
        torchs, one_dnns = best_seconds(lambda: torch.mm(a, b), lambda: _one_dnn(a, b.t(), None))
    return 1.05 * one_dnns < torchs


def round_products(graph: fx.Graph) -> None:
    """Runs float32 matrix products and convolutions on bfloat16, their results widened to float32 at once."""
    g = graph
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
