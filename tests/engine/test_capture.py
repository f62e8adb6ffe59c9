"""From Pyro to a tensor graph: what is kept, what is cleaned away, and what the ways of running it may change."""

import operator
import os
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import fx, nn

from pyro_vae import lowering, machine, products
from pyro_vae.engine.lower import lower, split_noise
from pyro_vae.engine.lower.logs import group_logs, vectorise_logs
from pyro_vae.engine.lower.products import choose_matrix_library, one_dnn_is_better, round_products
from pyro_vae.engine.recording import Recorded
from pyro_vae.engine.step.gradients import Gradients
from pyro_vae.engine.trace import Captured, CaptureError, aten, capture, is_random
from pyro_vae.pair import kept_random_state
from pyro_vae.reach import Watch, modules_of, reachable


def count(captured, *targets):
    return sum(node.target in targets for node in captured.graph.graph.nodes)


# --- capture --------------------------------------------------------------------------------------------------------


def test_a_graph_gives_what_the_function_gives():
    layer = nn.Linear(3, 2)

    def function(x):
        return {"loss": layer(x).square().sum(), "parts": [layer(x), (x + 1, "plain", 3)]}

    captured = capture(function, torch.ones(4, 3))
    x = torch.randn(4, 3)
    got, wanted = captured(x), function(x)
    assert got.keys() == wanted.keys()
    torch.testing.assert_close(got["loss"], wanted["loss"])
    torch.testing.assert_close(got["parts"][0], wanted["parts"][0])
    assert got["parts"][1][1:] == ("plain", 3)
    assert {id(t) for t in captured.held} == {id(p) for p in layer.parameters()}
    with torch.no_grad():
        layer.weight.zero_()
    torch.testing.assert_close(captured(x)["parts"][0], layer.bias.expand(4, 2))


def test_gradients_taken_inside_are_outputs():
    weight = torch.randn(3, requires_grad=True)

    def function(x):
        return torch.autograd.grad((weight * x).square().sum(), weight)[0]

    captured = capture(function, torch.ones(3))
    x = torch.randn(3)
    torch.testing.assert_close(captured(x), function(x))
    assert weight.grad is None
    assert not captured(x).requires_grad


def test_draws_stay_draws_in_their_order():
    def function(x):
        return x + torch.randn(2), torch.rand(2), torch.bernoulli(torch.full((2,), 0.5)), torch.zeros(2).exponential_()

    captured = capture(function, torch.zeros(2))
    for seed in range(3):
        torch.manual_seed(seed)
        wanted = function(torch.ones(2))
        torch.manual_seed(seed)
        torch.testing.assert_close(captured(torch.ones(2)), wanted, rtol=0, atol=0)


def test_a_draw_whose_value_is_unused_is_still_made():
    def function(x):
        torch.randn(5)
        return x + torch.randn(1)

    captured = capture(function, torch.zeros(1))
    torch.manual_seed(0)
    wanted = function(torch.zeros(1))
    torch.manual_seed(0)
    assert captured(torch.zeros(1)) == wanted


def test_a_pass_repeated_in_guide_and_model_is_computed_once():
    """A top-down pair whose guide walks down the model's own path (Sønderby et al. 2016)."""
    torch.manual_seed(0)
    down = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
    up, out = nn.Linear(6, 8), nn.Linear(4, 6)

    def levels(x, posterior):
        h = torch.zeros(len(x), 4)
        for i, layer in enumerate(down):
            h = torch.tanh(layer(h))
            loc = h + (up(x)[:, :4] if posterior else 0.0)
            h = h + pyro.sample(f"z{i}", dist.Normal(loc, 1.0).to_event(1))
        return h

    def model(x):
        pyro.module("down", down)
        pyro.module("out", out)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(out(levels(x, False)), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("down", down)
        pyro.module("up", up)
        with pyro.plate("data", len(x)):
            levels(x, True)

    step = Gradients(Trace_ELBO().loss_and_grads, model, guide)
    x = torch.randn(5, 6)
    step(x)
    captured = capture(step, x)
    products_forward = 4 + 1 + 1  # each level once, not twice; up once, not four times; out
    assert count(captured, aten.addmm.default) == products_forward
    torch.manual_seed(1)
    wanted = step(x)
    torch.manual_seed(1)
    got = captured(x)
    assert got[0].item() == pytest.approx(wanted[0], rel=1e-6)
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_what_is_written_to_is_written_to_at_each_replay():
    total = torch.zeros(2)

    def function(x):
        total.add_(x)
        return total * 1

    captured = capture(function, torch.ones(2))
    assert [t is total for t in captured.written] == [True]
    total.zero_()
    captured(torch.ones(2))
    assert captured(torch.ones(2)).tolist() == [2, 2]
    assert total.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x if x.sum() > 0 else -x, "decides by the value of a tensor"),
        (lambda x: x[: int(x[0])], "decides by the value of a tensor"),
        (lambda x: x * float(x.numpy()[0]), "turns a tensor into a NumPy array"),
        (lambda x: x[x > 0], "."),
        (lambda x: nn.utils.rnn.pack_padded_sequence(x[None, :, None], torch.tensor([2]), batch_first=True), "lengths"),
        (lambda x: x.missing, "AttributeError"),
    ],
)
def test_what_depends_on_values_is_refused_with_its_line(function, message):
    with pytest.raises(CaptureError, match=message) as caught:
        capture(function, torch.ones(2))
    assert "test_capture.py, line" in str(caught.value)


def test_what_runs_but_makes_no_graph_is_refused_too(monkeypatch):
    def make_fx(function, **options):
        def trace(*inputs):
            function(*inputs)
            raise SyntaxError("from")  # as of random_(from, to) in some versions of torch

        return trace

    monkeypatch.setattr("pyro_vae.engine.trace.make_fx", make_fx)
    with pytest.raises(CaptureError, match="tracing it fails: SyntaxError: from"):
        capture(lambda x: x + 1, torch.ones(2))


def test_item_stays_a_tensor():
    captured = capture(lambda x: x * x.sum().item(), torch.ones(2))
    assert captured(torch.tensor([1.0, 2.0])).tolist() == [3.0, 6.0]


def test_numbers_that_differ_in_kind_are_not_taken_for_one():
    captured = capture(
        lambda x: (x * 1, x * 1.0, x.sum(0), x.sum(1), torch.full((2,), 0.0), torch.full((2,), -0.0)),
        torch.ones(2, 2, dtype=torch.long),
    )
    got = captured(torch.tensor([[1, 2], [3, 4]]))
    assert got[0].dtype == torch.long
    assert got[1].dtype == torch.float32
    assert [got[2].tolist(), got[3].tolist()] == [[4, 6], [3, 7]]
    assert got[5].signbit().all() and not got[4].signbit().any()  # noqa: PT018 - one statement about both


def test_pyro_is_as_it_was_after_a_capture():
    import pyro.util
    from pyro.infer.util import Dice

    before = (pyro.util.torch_isnan, Dice.compute_expectation, pyro.infer.util.is_validation_enabled())
    with pytest.raises(CaptureError):
        capture(lambda x: bool(x.sum()), torch.ones(2))
    assert before == (pyro.util.torch_isnan, Dice.compute_expectation, pyro.infer.util.is_validation_enabled())


# --- ways of running it ---------------------------------------------------------------------------------------------


def graph_of(function, *inputs):
    captured = capture(function, *inputs)
    return captured, [*captured.held, *inputs]


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (torch.log1p, lambda x: torch.log1p(x)),
        (nn.functional.softplus, lambda x: x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))),
        (nn.functional.logsigmoid, lambda x: x.clamp_max(0) - torch.log1p(torch.exp(-x.abs()))),
        (
            lambda x: nn.functional.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none"),
            lambda x: (-x).clamp_min(0) + torch.log1p(torch.exp(-x.abs())),
        ),
    ],
)
def test_logs_for_vector_code_lose_no_accuracy(function, exact):
    x = torch.cat([torch.logspace(-30, 4, 4001), -torch.logspace(-30, 1.5, 4001), torch.zeros(1)])
    if function is torch.log1p:
        x = torch.cat([x[x > -0.99], torch.tensor([torch.inf])])
    captured, inputs = graph_of(function, x)
    vectorise_logs(captured.graph)
    assert count(captured, aten.softplus.default, aten.log1p.default, aten.log_sigmoid_forward.default) == 0
    assert count(captured, aten.binary_cross_entropy_with_logits.default) == 0
    got, wanted = captured.graph(*inputs)[0].double(), exact(x.double())
    finite = wanted.abs().isfinite() & (wanted.abs() > 1e-37)
    assert ((got - wanted) / wanted)[finite].abs().max() < 4e-7  # three roundings of float32
    assert torch.equal(got[~wanted.isfinite()], wanted[~wanted.isfinite()])


@pytest.mark.parametrize(
    ("shape", "grouped", "turned"),
    [
        ((5, 784), True, False),
        ((5, 784), True, True),
        ((5, 1, 28, 28), True, False),
        ((2, 5, 22), True, False),
        ((5, 7), False, False),
        ((5, 67), False, True),
    ],
)
def test_bernoullis_summed_with_one_logarithm_for_many_lose_no_more_than_the_rounding_of_a_nat(shape, grouped, turned):
    def log_prob(logits, x):
        logits = logits.t() if turned else logits
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(len(shape) - 1).log_prob(x)

    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(shape, generator=generator) > 0.5).float()
    size = torch.Size(shape[1:]).numel()
    for near in (1.0, 4.0, 16.6, 30.0):  # all certain of x: terms of e^-near, about all of which 1 + e loses at 16.6
        logits = (2 * x - 1) * (near + torch.rand(shape, generator=generator))
        logits = logits.t() if turned else logits
        captured, inputs = graph_of(log_prob, logits, x)
        group_logs(captured.graph)
        assert count(captured, aten.binary_cross_entropy_with_logits.default) == (not grouped)
        wanted = log_prob(logits.double(), x.double())
        assert not grouped or (captured.graph(*inputs)[0] - wanted).abs().max() < size * 2**-24
    logits = 5 * torch.randn(shape[::-1] if turned else shape, generator=generator)
    got, wanted = captured.graph(logits, x)[0], log_prob(logits.double(), x.double())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0)


def test_log_probs_that_something_else_reads_are_left_alone():
    def terms(logits, x):
        each = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return each.sum(-1), each

    captured, _ = graph_of(terms, torch.randn(3, 16), torch.ones(3, 16))
    group_logs(captured.graph)
    assert count(captured, aten.binary_cross_entropy_with_logits.default) == 1


def test_noise_is_drawn_ahead_and_the_same():
    def function(x):
        a = torch.randn(3)
        b = nn.functional.dropout(x + a, 0.5)
        c = torch.bernoulli(torch.sigmoid(b))  # depends on values, and so do all draws after it
        return a, b, c, torch.rand(3)

    captured, inputs = graph_of(function, torch.ones(3))
    torch.manual_seed(0)
    wanted = function(torch.ones(3))
    noise, rest = split_noise(captured.graph)
    assert sum(is_random(node) for node in rest.graph.nodes) == 2
    torch.manual_seed(0)
    got = rest(*inputs, *noise(*inputs))
    torch.testing.assert_close(tuple(got), wanted, rtol=0, atol=0)


@pytest.mark.slow
def test_what_inductor_has_compiled_is_known_to_later_processes_with_as_many_threads(tmp_path):
    code = """
import torch
from torch._dynamo.utils import counters
from torch._inductor import compile_fx
from pyro_vae.engine.trace import capture
from pyro_vae.engine.lower import lower
inner = compile_fx.compile_fx_inner
def of_known_shapes(graph, examples, **settings):
    assert all(type(length) is int for example in examples for length in example.shape)
    return inner(graph, examples, **settings)
compile_fx.compile_fx_inner = of_known_shapes
captured = capture(lambda x: 3 * x + 1, torch.ones(64))
run = lower(captured, [torch.ones(64)], "inductor")
assert torch.equal(run(*captured.held, torch.ones(64))[0], torch.full((64,), 4.0))
print(counters["inductor"]["fxgraph_cache_hit"])
"""
    places = dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "TMPDIR"), str(tmp_path))

    def hits(threads):
        variables = os.environ | places | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, env=variables)
        return int(done.stdout)

    assert hits(1) == 0
    # What the compiler is given to begin with is what generated code includes: else it had compiled others for nothing.
    assert len(list(tmp_path.rglob("*.gch"))) == 1
    assert [hits(1), hits(2), hits(1)] == [1, 0, 1]


@pytest.mark.slow
def test_inductor_gives_what_the_graph_gives_draws_included():
    def function(x):
        a = torch.randn(3, 4)
        b = nn.functional.dropout(x + a, 0.5)
        return torch.bernoulli(torch.sigmoid(b)), torch.rand(3), nn.functional.softplus(b).sum()

    captured, inputs = graph_of(function, torch.ones(3, 4))
    run = lower(captured, inputs, "inductor")
    for seed in range(3):
        torch.manual_seed(seed)
        wanted = captured.graph(*inputs)
        torch.manual_seed(seed)
        torch.testing.assert_close(list(run(*inputs)), list(wanted), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_autograd_sees_what_compiled_code_writes():
    mean = torch.zeros(3)

    def function(x):
        mean.mul_(0.5).add_(x.sum(0))
        return (x * mean).sum(), x @ x.t()

    x = torch.ones(4, 3)
    captured = capture(function, x)
    run = lower(captured, [x], "inductor")
    mean.zero_()
    weight = torch.ones(3, requires_grad=True)
    product = (weight * mean).sum()
    with torch.no_grad():
        total, _ = run(*captured.held, x)
    assert total == 48.0
    assert torch.equal(mean, torch.full((3,), 4.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.slow
def test_compiled_code_leaves_autocast_outside():
    weight = torch.randn(8, 8)

    def function(x):
        return x @ weight, (x @ weight).sum()

    with torch.autocast("cpu", torch.bfloat16):
        captured, inputs = graph_of(function, torch.randn(4, 8))
        run = lower(captured, inputs[1:], "inductor")
        with torch.no_grad():
            got, wanted = run(*inputs), captured.graph(*inputs)
    assert [t.dtype for t in got] == [t.dtype for t in wanted]
    torch.testing.assert_close(list(got), list(wanted), rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN in this torch")
def test_matrix_products_by_one_dnn_round_as_float32(monkeypatch):
    torch.manual_seed(0)
    layer, other = nn.Linear(30, 20), torch.randn(40, 20)
    captured, inputs = graph_of(lambda x: (layer(x), layer(x).t() @ other, other.t() @ x), torch.randn(40, 30))
    monkeypatch.setattr(products, "one_dnn_is_better", lambda a, b: True)
    wanted = captured.graph(*[t.double() if t.is_floating_point() else t for t in inputs])
    choose_matrix_library(captured.graph)
    assert count(captured, torch.ops.pyro_vae.linear.default) == 3
    assert count(captured, aten.mm.default, aten.addmm.default) == 0
    for got, exact in zip(captured.graph(*inputs), wanted, strict=True):
        assert (got.double() - exact).abs().max() < 2e-6 * exact.abs().max()


def test_double_precision_is_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "one_dnn_is_better", lambda a, b: True)
    captured, _ = graph_of(lambda x: x @ x, torch.randn(5, 5).double())
    choose_matrix_library(captured.graph)
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


def test_slow_logs_are_replaced_only_where_they_are_slow(monkeypatch):
    for slow in (True, False):
        monkeypatch.setattr(lowering, "remembered", lambda question, find_out, slow=slow: slow and "log1p" in question)
        captured, inputs = graph_of(lambda x: x.log1p(), torch.rand(5))
        run = lower(captured, inputs, "graph")
        graph = run.__self__.graph
        assert sum(node.target is aten.log1p.default for node in graph.nodes) == (not slow)
        torch.testing.assert_close(run(*captured.held, *inputs)[0], inputs[0].log1p())


def test_bfloat16_is_for_products_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 5))

    def function(x):
        return torch.autograd.grad(net(x).logsumexp(-1).sum(), net.parameters())

    captured, inputs = graph_of(function, torch.randn(2, 1, 4, 4))
    wanted = captured.graph(*inputs)
    round_products(captured.graph)
    got = captured.graph(*inputs)
    assert all(t.dtype == torch.float32 for t in got)
    for a, b in zip(got, wanted, strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
    for node in captured.graph.graph.nodes:
        if node.target in (aten.logsumexp.default, aten.sum.dim_IntList, aten.exp.default):
            assert node.meta["val"].dtype == torch.float32


@pytest.mark.parametrize(
    ("compiler", "set_by_the_user", "trusted"),
    [("true", None, True), ("false", None, False), ("true", False, False), ("true", True, False)],
    ids=["knows the flags", "does not", "user's no", "user's yes"],
)
def test_trial_compilations_are_left_out_where_the_compiler_knows_the_flags(
    compiler, set_by_the_user, trusted, monkeypatch
):
    """`true` and `false` are programs that take any flag and none."""
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: compiler)
    monkeypatch.setattr(lowering, "_vector_instructions", lowering._vector_instructions.__wrapped__)
    with config.patch({"cpp.vec_isa_ok": set_by_the_user}):
        assert lowering._vector_instructions() == ({"cpp.vec_isa_ok": True} if trusted else {})


def test_a_graph_that_inductor_refuses_is_a_capture_error(monkeypatch):
    from torch._inductor import compile_fx

    def fail(*args, **kwargs):
        raise ValueError("no\nmore")

    monkeypatch.setattr(compile_fx, "compile_fx", fail)
    captured, inputs = graph_of(lambda x: x + 1, torch.ones(2))
    with pytest.raises(CaptureError, match="Inductor can't compile the graph: no$"):
        lower(captured, inputs, "inductor")


def test_estimates_grow_with_work():
    small, _ = graph_of(lambda x: x @ x, torch.zeros(8, 8))
    large, _ = graph_of(lambda x: x @ x, torch.zeros(512, 512))
    assert lowering.seconds_of(small.graph) < 1e-4 < lowering.seconds_of(large.graph) < 1e-2


# --- what programs reach ----------------------------------------------------------------------------------------------


class Holder:
    def __init__(self):
        self.rate, self.net = 0.5, nn.Linear(2, 2)

    def program(self, x):
        return self.net(x) * self.rate


FACTOR = 2.0


def test_what_programs_reach_is_watched():
    holder, inner = Holder(), nn.Dropout(0.5)
    options = {"deep": {"beta": 1.0}}
    level = 3

    def program(x):
        return inner(x) * FACTOR * options["deep"]["beta"] * level

    assert modules_of(holder.program, program) == [holder.net, inner]
    assert holder in list(reachable(holder.program, {}))

    def changed_by(change):
        watch = Watch(holder.program, program)
        assert watch.changed() is None
        change()
        return watch.changed()

    assert changed_by(lambda: setattr(holder, "rate", 0.25)) == "Holder.rate"
    assert changed_by(lambda: inner.eval()) == "Dropout.training"
    assert changed_by(lambda: setattr(inner, "p", 0.1)) == "Dropout.p"
    assert changed_by(lambda: options["deep"].update(beta=2.0)) == "a dict.beta"
    assert changed_by(lambda: globals().update(FACTOR=3.0)) == "global FACTOR"
    assert changed_by(lambda: setattr(holder.net, "weight", nn.Parameter(torch.zeros(2, 2)))) == "Linear.weight"
    assert changed_by(lambda: setattr(holder, "rate", float("0.25"))) is None  # the same number

    def raise_level():
        nonlocal level
        level = 4

    assert changed_by(raise_level).startswith("level in ")


def test_watched_values_are_put_back():
    holder = Holder()
    watch = Watch(holder.program)
    holder.rate, weight = 7.0, holder.net.weight
    holder.net.weight = nn.Parameter(torch.zeros(2, 2))
    watch.restore()
    assert holder.rate == 0.5
    assert holder.net.weight is weight


# --- recording ------------------------------------------------------------------------------------------------------


def test_nothing_is_recorded_off_the_gpu():
    recorded = Recorded(lambda x: x + 1)
    assert [recorded(torch.zeros(1)).item() for _ in range(6)] == [1.0] * 6
    assert recorded.graph is None


def test_random_state_is_kept_by_lowering():
    captured, inputs = graph_of(lambda x: x + torch.randn(2), torch.zeros(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with kept_random_state():
        lower(captured, inputs, "graph")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(captured, Captured)
    assert isinstance(captured.graph, fx.GraphModule)
    assert operator.length_hint(captured.held) == 0
