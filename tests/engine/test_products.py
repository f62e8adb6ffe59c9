"""Matrix products: which library makes them, how exactly, and that this is found out once per machine."""

import pytest
import torch
from torch import nn

from pyro_vae.engine import machine
from pyro_vae.engine.graphs import aten
from pyro_vae.engine.lower import products
from pyro_vae.engine.lower.products import choose_matrix_library, one_dnn_is_better, round_products
from tests.engine.graphs import count, graph_of


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this torch")
def test_matrix_products_by_one_dnn_round_as_float32(monkeypatch):
    torch.manual_seed(0)
    layer, other = nn.Linear(30, 20), torch.randn(40, 20)
    captured, inputs = graph_of(lambda x: (layer(x), layer(x).t() @ other, other.t() @ x), torch.randn(40, 30))
    monkeypatch.setattr(products, "one_dnn_is_better", lambda a, b: True)
    wanted = captured.graph(*[t.double() if t.is_floating_point() else t for t in inputs])
    choose_matrix_library(captured.graph.graph)
    captured.graph.forget()
    assert count(captured, torch.ops.pyro_vae.linear.default) == 3
    assert count(captured, aten.mm.default, aten.addmm.default) == 0
    for got, exact in zip(captured.graph(*inputs), wanted, strict=True):
        assert (got.double() - exact).abs().max() < 2e-6 * exact.abs().max()


def test_double_precision_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "one_dnn_is_better", lambda a, b: True)
    captured, _ = graph_of(lambda x: x @ x, torch.randn(5, 5).double())
    choose_matrix_library(captured.graph.graph)
    assert count(captured, aten.mm.default) == 1


def test_what_is_fastest_here_is_found_out_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine._known.cache_clear()
    asked = []
    monkeypatch.setattr(products, "_one_dnn_wins", lambda: asked.append("output") or True)
    monkeypatch.setattr(products, "_one_dnn_wins_transposed", lambda: asked.append("gradient") or False)
    large, small = torch.zeros(256, 256), torch.zeros(8, 8)
    for _ in range(2):
        assert one_dnn_is_better(large, large)
        assert not one_dnn_is_better(large.t(), large)
        assert not one_dnn_is_better(small, small)
        machine._known.cache_clear()  # as in a new process
    assert asked == ["output", "gradient"]
    (tmp_path / "pyro_vae" / "machine.json").write_text("{")
    assert one_dnn_is_better(large, large)
    assert asked == ["output", "gradient", "output"]
    machine._known.cache_clear()


def test_lower_precision_would_be_seen(monkeypatch):
    def rounded(a, b, bias):
        return a.bfloat16().float() @ b.t().bfloat16().float()

    monkeypatch.setattr(products, "_one_dnn", rounded)
    assert not products._wins(torch.randn(64, 64), torch.randn(64, 64))


def test_bfloat16_is_for_products_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5))

    def function(x):
        return torch.autograd.grad(net(x).logsumexp(-1).sum(), net.parameters())

    captured, inputs = graph_of(function, torch.randn(2, 1, 4, 4))
    wanted = captured.graph(*inputs)
    round_products(captured.graph.graph)
    captured.graph.forget()
    got = captured.graph(*inputs)
    assert all(t.dtype == torch.float32 for t in got)
    for a, b in zip(got, wanted, strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
    for node in captured.graph.graph.nodes:
        if node.target in (aten.logsumexp.default, aten.sum.dim_IntList, aten.exp.default):
            assert node.meta["val"].dtype == torch.float32
