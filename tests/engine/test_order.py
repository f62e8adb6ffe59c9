"""Weights as first factors: the same numbers, by products of which each core reads its own rows of a weight."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.engine.graphs import Operations, aten, copied
from pyro_vae.engine.lower.order import WORTH_IT, weights_first
from pyro_vae.engine.trace import capture
from pyro_vae.svi import SVI

BATCH = 16


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """As many threads as a test says; two to begin with."""

    def are(number):
        monkeypatch.setattr(torch, "get_num_threads", lambda: number)

    are(2)
    return are


def gradients_of(network, extra=lambda y: y):
    params = [p for p in network.parameters() if p.requires_grad]

    def gradients(x):
        loss = (extra(network(x)) ** 2).sum()
        return loss.detach(), torch.autograd.grad(loss, params)

    return gradients


def turned(captured):
    graph = copied(captured.graph.graph)
    weights_first(graph)
    graph.lint()
    return Operations(graph)


def weights_last(graph):
    """How many products have one of the graph's own matrices, or its transpose, for second factor; and for first."""

    def is_weight(node):
        while node.target in (aten.t.default, aten.detach.default, aten.reshape.default, aten.transpose.int):
            node = node.args[0]
        return node.op == "placeholder" and node.name.startswith("held") and node.meta["val"].dim() == 2

    products = [n.args[-2:] for n in graph.graph.nodes if n.target in (aten.mm.default, aten.addmm.default)]
    products += [n.args for n in graph.graph.nodes if n.target is aten.bmm.default]
    return sum(is_weight(b) for _, b in products), sum(is_weight(a) for a, _ in products)


def same(graph, captured, x):
    torch.manual_seed(1)
    with torch.no_grad():
        got = graph(*captured.held, x)
        torch.manual_seed(1)
        wanted = captured.graph(*captured.held, x)
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert mine.is_contiguous()
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.float().abs().max().item())


@pytest.mark.parametrize(
    "activation",
    [
        nn.Softplus(),
        nn.Tanh(),
        nn.ReLU(),
        nn.ELU(),
        nn.LeakyReLU(),
        nn.Hardtanh(),
        nn.GELU(),
        nn.SiLU(),
        nn.Mish(),
        nn.Hardswish(),
    ],
    ids=lambda activation: type(activation).__name__,
)
def test_values_and_gradients_stay(activation):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(600, 500), activation, nn.Linear(500, 40), activation, nn.Linear(40, 600))
    x = torch.randn(BATCH, 600)
    captured = capture(gradients_of(network), x)
    graph = turned(captured)
    same(graph, captured, x)
    assert weights_last(captured.graph)[0] == 5  # three layers forward, two backward
    assert weights_last(graph) == (0, 5)


@pytest.mark.parametrize(
    "extra",
    [
        lambda y: y.view(BATCH, 4, 150).sum(1),
        lambda y: y.t(),
        lambda y: y.transpose(0, 1).reshape(150, -1),
        lambda y: torch.where(y > 0, y, torch.linspace(0, 1, 600)) * torch.ones(BATCH, 1) + torch.ones(1, 600),
        lambda y: y.exp().clamp(max=2.0) * torch.tensor(2.0) + torch.rand_like(y) * torch.randn(600),
        lambda y: torch.cat([y, y + 1], -1),
        lambda y: torch.softmax(y, -1).cumsum(0),
        lambda y: y[2:, ::3].contiguous().view(-1),
        lambda y: nn.functional.prelu(y, torch.tensor([0.2])),
        lambda y: y.double() @ torch.ones(600, 2, dtype=torch.float64),
    ],
    ids=["split", "t", "merge", "broadcast", "draws", "cat", "softmax", "slice", "prelu", "double"],
)
def test_whatever_follows_gives_the_same(extra):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(30, 500), nn.Tanh(), nn.Linear(500, 600))
    x = torch.randn(BATCH, 30)
    captured = capture(gradients_of(network, extra), x)
    graph = turned(captured)
    same(graph, captured, x)
    assert weights_last(graph)[1] > 0


def test_rows_that_are_summed_over_are_shared_out_where_they_can_be(threads):
    def shares(number, rows=600):
        threads(number)
        network = nn.Sequential(nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, rows))
        x = torch.randn(BATCH, 500)
        captured = capture(gradients_of(network), x)
        graph = turned(captured)
        same(graph, captured, x)
        return [n.args[0].meta["val"].shape[0] for n in graph.graph.nodes if n.target is aten.bmm.default]

    assert shares(2) == [2]
    assert shares(3) == [3]
    assert shares(2, rows=601) == []
    assert shares(8) == []


@pytest.mark.parametrize(
    "extra",
    [
        lambda y: y * torch.bernoulli(torch.sigmoid(y)) + torch.randn_like(y),
        lambda y: dist.Gamma(y.exp(), 1.0).rsample(),
        lambda y: torch.view_as_real(torch.view_as_complex(y.view(BATCH, 300, 2)) * 1j),
        lambda y: y + y.detach().view(torch.float64).float().repeat(1, 2),
        lambda y: y * torch.as_strided(y.detach(), (BATCH, 1), (1, 1)),
        lambda y: torch.pdist(y),
    ],
    ids=["value-dependent draws", "Gamma", "complex", "dtype", "strided", "pdist"],
)
def test_left_alone_where_the_order_of_numbers_matters(extra):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(30, 500), nn.Tanh(), nn.Linear(500, 600))
    captured = capture(gradients_of(network, extra), torch.randn(BATCH, 30))
    graph = turned(captured)
    assert weights_last(graph) == weights_last(captured.graph)
    same(graph, captured, torch.randn(BATCH, 30))


def test_left_alone(threads):
    def products(network, x, function=None):
        captured = capture(function or gradients_of(network), x)
        graph = turned(captured)
        assert weights_last(graph) == weights_last(captured.graph)

    large = nn.Sequential(nn.Linear(600, 500), nn.Tanh(), nn.Linear(500, 600))
    products(large, torch.randn(400, 600))  # a large batch
    small = nn.Sequential(nn.Linear(WORTH_IT // 500 - 1, 500), nn.Tanh(), nn.Linear(500, 3))
    products(small, torch.randn(BATCH, WORTH_IT // 500 - 1))
    products(large, torch.randn(BATCH, 600), lambda x: large(x).sum())  # nothing learns
    frozen = nn.Sequential(nn.Linear(600, 500).requires_grad_(False), nn.Tanh(), nn.Linear(500, 3))
    products(frozen, torch.randn(BATCH, 600))
    threads(1)
    products(large, torch.randn(BATCH, 600))


def test_a_weight_times_a_weight_keeps_the_order_of_its_gradient():
    torch.manual_seed(0)
    first, second = ((torch.randn(shape) * 0.03).requires_grad_() for shape in ((20, 600), (600, 500)))

    def gradients(x):
        loss = (torch.tanh(x @ (first @ second)) ** 2).sum() + (first.exp() * 1e-3).sum()
        return loss.detach(), torch.autograd.grad(loss, [first, second])

    captured = capture(gradients, torch.randn(BATCH, 20))
    graph = turned(captured)
    same(graph, captured, torch.randn(BATCH, 20))
    assert weights_last(graph)[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", [dist.Normal, dist.Gamma], ids=lambda kind: kind.__name__)
def test_compiled_steps_go_where_eager_steps_go(kind):
    def losses(compile):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        encoder, loc, scale = nn.Sequential(nn.Linear(784, 400), nn.Softplus()), nn.Linear(400, 20), nn.Linear(400, 20)
        decoder = nn.Sequential(nn.Linear(20, 400), nn.Softplus(), nn.Linear(400, 784))

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", kind(torch.full((len(x), 20), 1.0), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x):
            for name, part in (("encoder", encoder), ("loc", loc), ("scale", scale)):
                pyro.module(name, part)
            with pyro.plate("data", len(x)):
                hidden = encoder(x)
                first = loc(hidden) if kind is dist.Normal else loc(hidden).exp()
                pyro.sample("z", kind(first, scale(hidden).exp()).to_event(1))

        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO(), compile=compile)
        x = torch.bernoulli(torch.full((64, 784), 0.3))
        values = [svi.step(x) for _ in range(20)]
        assert (svi.how == "captured, Inductor") == (compile == "inductor")
        return torch.tensor(values)

    torch.testing.assert_close(losses("inductor"), losses("eager"), rtol=1e-4, atol=0)
