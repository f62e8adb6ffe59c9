"""fit: equal to Pyro's own losses and gradients, to the bit when resumed, and careful with what it finds."""

from __future__ import annotations

import csv
import functools
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import (
    VAE,
    Pair,
    TrainingDiverged,
    elbo_terms,
    fit,
    guides,
    likelihoods,
    load,
    log_likelihood,
    networks,
    objectives,
)
from pyro_vae.engine.step.gradients import Gradients
from pyro_vae.errors import InputError
from pyro_vae.runs import CHECKPOINT
from tests.component_table import vae
from tests.conftest import random_states
from tests.test_pair import TutorialVAE

quiet = functools.partial(fit, progress=False)


def binary(size=40, pixels=4):
    return torch.rand(size, pixels).round()


def weights(pair):
    return [p.detach().clone() for p in pair.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_loss_and_gradients_are_pyros_on_the_same_seed():
    pair, x = vae(), binary()
    pyro.set_rng_seed(3)
    expected = Trace_ELBO().loss_and_grads(pair.model, pair.guide, x)
    gradients = [p.grad.clone() for p in pair.parameters()]
    pair.zero_grad(set_to_none=True)
    pyro.set_rng_seed(3)
    loss, found = Gradients(lambda: (pair.model, pair.guide, Trace_ELBO().loss_and_grads), size=len)(x)
    assert loss == pytest.approx(expected / 40, rel=1e-6)
    for (name, _), gradient in zip(pair.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(found[f"{pair.name}$$${name}"] * 40, gradient)
    assert all(p.grad is None for p in pair.parameters())


def test_steps_are_pyros_svi_steps():
    """One batch a step, whole set, no shuffling of content: losses as SVI's with the same Adam and noise."""
    x = binary(16)
    pyro.set_rng_seed(1)
    ours = vae()
    pyro.set_rng_seed(1)
    theirs = vae()
    history = quiet(ours, x, epochs=4, batch_size=16, seed=7).history
    torch.manual_seed(7)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    losses = []
    for epoch in range(1, 5):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(7 * 1_000_003 + epoch))
        losses.append(svi.step(x[order]) / 16)
    assert [row["loss"] for row in history] == pytest.approx(losses, rel=1e-5)


def test_losses_are_per_datum_whatever_batch_size_and_plate(linear_gaussian):
    x = linear_gaussian.data(24)
    exact = -linear_gaussian.marginal().log_prob(x).mean().item()

    def with_plate(make):
        def model(x):
            pyro.param("unused", torch.zeros(()).double())
            with make(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
                loc = z @ linear_gaussian.weight.T + linear_gaussian.bias
                pyro.sample("x", dist.Normal(loc, linear_gaussian.noise).to_event(1), obs=x)

        def guide(x):
            shift = pyro.param("shift", torch.zeros(2).double())
            exact = linear_gaussian.posterior(x)
            with make(x):
                pyro.sample("z", dist.MultivariateNormal(exact.mean + shift, exact.covariance_matrix))

        return Pair(model, guide)

    for make in (lambda x: pyro.plate("data", len(x)), lambda x: pyro.plate("data", 24, subsample=x)):
        for batch_size in (24, 7, 1):
            pyro.clear_param_store()
            history = quiet(with_plate(make), x, epochs=1, batch_size=batch_size, lr=1e-12).history
            assert history[0]["loss"] == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(alpha=0, num_particles=4),
    ],
)
def test_any_pyro_elbo_is_accepted(objective):
    result = quiet(vae(), torch.ones(60, 4), epochs=8, objective=objective, lr=1e-2)
    assert math.isfinite(result.history[-1]["loss"])
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.parametrize("compile", ["graph", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{}, {"clip": 0.5}, {"objective": RenyiELBO(alpha=0, num_particles=3)}])
def test_captured_runs_are_eager_runs(compile, options):
    """With a short last batch; the gradient's norm and the weights too."""
    x, ends, histories = binary(50, 4), [], []
    for way in ("eager", compile):
        pyro.set_rng_seed(0)
        pair = vae()
        result = quiet(pair, x, epochs=3, batch_size=16, seed=1, lr=1e-2, compile=way, **options)
        ends.append(weights(pair))
        histories.append([[row["loss"], row["grad_norm"]] for row in result.history])
    assert result.how == {"graph": "captured", "inductor": "captured, Inductor"}[compile]
    torch.testing.assert_close(torch.tensor(histories[1]), torch.tensor(histories[0]), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_what_auto_does_depends_on_the_length_of_the_run():
    x = binary(64)
    assert quiet(vae(), x, epochs=1, batch_size=32).how == "eager"
    assert quiet(vae(), x, epochs=60, batch_size=32).how == "captured"
    assert quiet(vae(), x, epochs=60, batch_size=32, compile="eager").how == "eager"


def test_wake_sleep_trains_and_reports_the_models_bound():
    result = quiet(vae(), torch.ones(60, 4), epochs=8, lr=1e-2, objective=ReweightedWakeSleep(num_particles=4))
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_bfloat16_products_are_near_and_not_equal():
    x, losses = binary(64), {}
    for precision in ("float32", "bf16"):
        pyro.set_rng_seed(0)
        pair = vae()
        result = quiet(pair, x, epochs=4, batch_size=32, seed=0, compile="graph", precision=precision)
        losses[precision] = torch.tensor([row["loss"] for row in result.history])
        assert all(p.dtype == torch.float32 for p in pair.parameters())
    assert not torch.equal(losses["bf16"], losses["float32"])
    torch.testing.assert_close(losses["bf16"], losses["float32"], rtol=1e-2, atol=1e-2)
    with pytest.raises(InputError, match="precision='bf16' needs captured steps"):
        quiet(vae(), x, compile="eager", precision="bf16")
    with pytest.raises(InputError, match="precision='fp16'"):
        quiet(vae(), x, precision="fp16")


def test_a_captured_step_that_diverges_leaves_the_weights_and_names_the_site():
    pyro.set_rng_seed(0)
    pair = VAE((4,), 2, likelihood=likelihoods.Normal(scale=0.1), encoder=networks.MLP([5]), decoder=networks.MLP([5]))
    x = torch.randn(64, 4)
    with pytest.raises(TrainingDiverged, match="site 'z'|site 'x'|parameter|gradient"):
        quiet(pair, x, epochs=200, batch_size=32, lr=1e18, seed=0, compile="graph")
    assert all(p.isfinite().all() for p in pair.parameters())


def test_what_cant_be_captured_still_trains(caplog):
    net = nn.Linear(4, 4)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            logits = net(x) * math.cos(x.sum())
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    result = quiet(Pair(model, lambda x: None), binary(), epochs=3, compile="graph")
    assert result.how == "eager (not captured)"
    assert len([record for record in caplog.records if record.name == "pyro_vae"]) == 1
    assert "logits = net(x) * math.cos(x.sum())" in caplog.text


def test_history_result_and_validation():
    result = quiet(vae(), binary(50), epochs=2, validation=binary(20), batch_size=20)
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert result.history[0].keys() >= {"loss", "seconds", "validation_elbo", "validation_stderr", "lr"}
    assert result.stopped_because == "epochs"
    assert result.best_epoch in (1, 2)


def test_validation_is_the_true_elbo_whatever_is_trained():
    x, pair = binary(30), vae()
    result = quiet(pair, x, epochs=1, lr=1e-12, validation=x, seed=0, objective=RenyiELBO(alpha=0, num_particles=50))
    assert result.history[0]["validation_elbo"] == pytest.approx(elbo_terms(pair, x, seed=0).elbo, abs=1e-5)


def test_early_stopping_puts_the_best_weights_back():
    pyro.set_rng_seed(0)
    x, pair = binary(30), vae()
    result = quiet(pair, x, epochs=200, validation=binary(10), patience=3, lr=0.3, seed=0)
    assert result.stopped_because == "patience"
    assert len(result.history) == result.best_epoch + 3
    best = max(row["validation_elbo"] for row in result.history)
    assert result.history[result.best_epoch - 1]["validation_elbo"] == best
    pyro.set_rng_seed(0)
    x, twin = binary(30), vae()
    quiet(twin, x, epochs=result.best_epoch, lr=0.3, seed=0)
    assert same(weights(pair), weights(twin))


def test_schedule_warmup_and_clip():
    rates = [row["lr"] for row in quiet(vae(), binary(40), epochs=4, batch_size=10, lr=1.0, schedule="linear").history]
    assert rates == pytest.approx([1 - (e + 0.75) / 4 for e in range(4)])
    half = quiet(vae(), binary(8), epochs=8, lr=1.0, warmup=0.5, schedule=lambda done: 1.0).history
    assert [row["lr"] for row in half] == pytest.approx([1e-3, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    pair = vae()
    before = weights(pair)
    sgd = functools.partial(torch.optim.SGD, lr=1.0)
    quiet(pair, binary(8), epochs=1, batch_size=8, clip=1e-3, optimizer=sgd)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(pair), strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)  # the global norm, over all tensors at once


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(torch.optim.AdamW, lr=1e-2),
        pyro.optim.Adam({"lr": 1e-2}),
        pyro.optim.ClippedAdam({"lr": 1e-2}),
    ],
)
def test_optimizers_of_torch_and_pyro(optimizer):
    history = quiet(vae(), binary(), epochs=25, optimizer=optimizer).history
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_seed_repeats_a_run_and_leaves_the_random_state_alone():
    x = torch.rand(40, 4)
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        pair = vae()
        before = random_states()
        quiet(pair, x, epochs=2, binarize="dynamic", seed=11)
        assert random_states() == before
        runs.append(weights(pair))
    assert same(*runs)


def test_probabilistic_pca_reaches_its_maximum_likelihood(linear_gaussian):
    """Tipping & Bishop 1999: the optimum is known from the covariance's eigenvalues."""
    x = linear_gaussian.data(500).float()
    d, q = 5, 2
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T.double(), correction=0)).flip(0)
    noise = eigenvalues[q:].mean()
    best = -0.5 * (d * math.log(2 * math.pi) + eigenvalues[:q].log().sum() + (d - q) * noise.log() + d)
    pair = VAE(
        event_shape=(d,),
        latent_dim=q,
        likelihood=likelihoods.Normal("shared"),
        guide=guides.FullCovariance(),
        encoder=networks.MLP([]),
        decoder=networks.MLP([]),
    )
    quiet(pair, x, epochs=250, batch_size=50, lr=1e-2, schedule="cosine", seed=0)
    reached = log_likelihood(pair, x, 500).mean
    assert reached == pytest.approx(best.item(), abs=0.02)


# --- what goes wrong --------------------------------------------------------------------------------------------------


class Explodes(nn.Module):
    """An encoder one of whose outputs is no number for data above 0.95, from the fourth call on."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls, self.armed = nn.Linear(4, 4), 0, False

    def forward(self, x):
        self.calls += self.armed
        out = self.inner(x)
        if self.calls > 3:
            spoilt = torch.where(x[:, :1] > 0.95, float("nan"), 0.0)
            out = out + torch.cat([spoilt, torch.zeros(len(x), 3)], dim=1)
        return out


def test_a_nan_names_site_parameters_and_data_and_keeps_the_last_good_weights(tmp_path):
    pair = vae(encoder=Explodes(), likelihood=likelihoods.Bernoulli(relaxed=True))
    x = 0.9 * torch.rand(40, 4)
    x[[5, 31], 0] = 1.0
    pair.encoder.module.armed = True
    with pytest.raises(TrainingDiverged, match=r"guide, site 'z': Normal has loc not finite for data (5|31)") as e:
        quiet(pair, x, epochs=5, batch_size=20, seed=0, out=tmp_path / "run")
    assert "Epoch 3" in str(e.value) or "Epoch 2" in str(e.value) or "Epoch 1" in str(e.value)
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert torch.equal(kept["encoder.module.inner.weight"], pair.encoder.module.inner.weight)


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 4)

        def forward(self, z):
            return self.inner(z) + (0.0 * self.inner.weight.sum()).abs().sqrt()  # d/dw √|0| is not a number

    pair = vae(decoder=Root())
    before = weights(pair)
    with pytest.raises(TrainingDiverged, match="gradient of .*decoder"):
        quiet(pair, binary(), epochs=1)
    assert same(before, weights(pair))


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops_a_compiled_run_too():
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.factor = nn.Linear(4, 4), nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.inner(x) + 0.0 * (self.factor * x[:, :1]).abs().sqrt()  # no number where x is 0

    pair = vae(encoder=Rooted(), likelihood=likelihoods.Bernoulli(relaxed=True))
    x = 0.1 + 0.8 * torch.rand(100, 4)
    x[17, 0] = 0.0
    with pytest.raises(TrainingDiverged, match="Epoch 1: .*gradient of .*encoder.module.factor"):
        quiet(pair, x, epochs=1, batch_size=10, seed=0, compile="inductor")
    assert all(parameter.isfinite().all() for parameter in pair.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"lr": -1e-3}, "lr=-0.001"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"clip": 0}, "clip=0"),
        ({"patience": 0}, "patience=0"),
        ({"compile": "fast"}, "compile='fast'"),
        ({"binarize": "dinamic"}, "Did you mean 'dynamic'"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"resume": True}, "out="),
        ({"optimizer": "adam"}, "optimizer='adam'"),
        ({"optimizer": lambda p: 3}, "int"),
        ({"validation": torch.zeros(3, 9)}, "event_shape"),
    ],
)
def test_bad_arguments_are_named_before_the_first_step(arguments, message):
    pair = vae()
    before = weights(pair)
    with pytest.raises(InputError, match=message):
        quiet(pair, binary(), **arguments)
    assert same(before, weights(pair))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.0, 1, 0, 1], [0, float("nan"), 0, 1]]), r"1.*1|nan"),
        (torch.full((3, 4), 2.0), "support"),
        (torch.full((3, 4), 0.5), "grey"),
        (torch.zeros(3, 5), "event_shape"),
        (torch.zeros(3, 4).double(), "torch.float64.*torch.float32"),
        (torch.zeros(0, 4), "no data"),
        ((torch.zeros(3, 4), torch.zeros(3, 4)), "one tensor"),
        ((torch.zeros(3, 4), torch.zeros(2, 4)), "holds 3 data"),
        ("mnits", "mnist"),
        (object(), "object"),
    ],
)
def test_bad_data_are_refused_before_the_first_step(x, message):
    with pytest.raises(InputError, match=message):
        quiet(vae(), x)


def test_a_pair_without_parameters_is_refused(linear_gaussian):
    with pytest.raises(InputError, match="no parameters"):
        quiet(linear_gaussian.exact_pair(), linear_gaussian.data(4))


# --- run folders ------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_it_should(tmp_path):
    pair, x = vae((1, 4, 4)), torch.rand(60, 1, 4, 4).round()
    result = quiet(pair, x, epochs=2, validation=x[:20], out=tmp_path / "run")
    names = {str(p.relative_to(result.out)) for p in result.out.rglob("*") if p.is_file()}
    figures = {f"figures/{n}.png" for n in ("curves", "samples", "reconstructions", "latent")}
    assert names >= {"config.yaml", "model.safetensors", "metrics.csv", CHECKPOINT, *figures}
    assert not [n for n in names if n.endswith(".tmp")]
    rows = list(csv.DictReader((result.out / "metrics.csv").read_text().splitlines()))
    assert [float(r["loss"]) for r in rows] == [r["loss"] for r in result.history]
    assert float(rows[0]["seconds"]) > 0
    twin = load(result.out)
    assert torch.equal(log_likelihood(twin, x, 20).values, log_likelihood(pair, x, 20).values)


def test_a_run_is_not_overwritten(tmp_path):
    quiet(vae(), binary(), epochs=1, out=tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        quiet(vae(), binary(), epochs=1, out=tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def run_with_interruption(folder, stop_after, **arguments):
    """A run cut off by KeyboardInterrupt in the middle of an epoch, then resumed."""
    x = torch.rand(50, 4)
    settings = {"epochs": 6, "batch_size": 16, "seed": 3, "binarize": "dynamic", "schedule": "cosine", **arguments}
    pyro.set_rng_seed(1)
    pair = vae(encoder=nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 4)))
    if stop_after is not None:
        calls, guide = 0, pair.guide

        def interrupting(batch):
            nonlocal calls
            calls += 1
            if calls == stop_after:
                raise KeyboardInterrupt
            guide(batch)

        pair.guide = interrupting
        with pytest.raises(KeyboardInterrupt):
            quiet(pair, x, out=folder, **settings)
        pair.guide = guide
        pyro.set_rng_seed(99)
        pair = vae(encoder=nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 4)))
    result = quiet(pair, x, out=folder, resume=stop_after is not None, **settings)
    return weights(pair), result


@pytest.mark.parametrize("stop_after", [11, 22])
@pytest.mark.parametrize(
    "extra", [{}, {"validation": torch.ones(5, 4), "patience": 4}, {"ema": 0.9, "skip_gradient_above": 3.0}]
)
def test_a_resumed_run_ends_as_the_uninterrupted_one_to_the_bit(tmp_path, stop_after, extra):
    pyro.set_rng_seed(0)
    whole, result = run_with_interruption(tmp_path / "whole", None, **extra)
    pyro.set_rng_seed(0)
    resumed, again = run_with_interruption(tmp_path / "cut", stop_after, **extra)
    assert same(whole, resumed)
    assert [row["loss"] for row in result.history] == [row["loss"] for row in again.history]
    assert result.stopped_because == again.stopped_because


@pytest.mark.parametrize("compile", ["graph", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_captured_run_resumes_to_the_bit(tmp_path, compile):
    """Captured steps call no Python of the pair's, so the schedule interrupts."""

    def run(folder, stop_at, resume=False):
        steps = 0

        def falling(done):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise KeyboardInterrupt
            return 1 - done / 2

        pyro.set_rng_seed(1)
        pair, x = vae(), torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
        settings = {"epochs": 6, "batch_size": 16, "seed": 3, "binarize": "dynamic", "schedule": falling}
        result = quiet(pair, x, out=folder, resume=resume, compile=compile, **settings)
        return weights(pair), result

    whole, result = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 14)
    resumed, again = run(tmp_path / "cut", None, resume=True)
    assert same(whole, resumed)
    assert [row["loss"] for row in result.history] == [row["loss"] for row in again.history]
    assert again.how.startswith("captured")


def test_a_run_resumed_after_its_best_epoch_still_gets_the_best_weights_back(tmp_path):
    extra = {"validation": torch.ones(5, 4), "patience": 3, "lr": 0.5, "epochs": 60, "schedule": "constant"}
    pyro.set_rng_seed(0)
    whole, result = run_with_interruption(tmp_path / "whole", None, **extra)
    assert result.stopped_because == "patience"
    batches = 4 + 1  # of an epoch, with the guide's run over the validation data
    pyro.set_rng_seed(0)
    resumed, again = run_with_interruption(tmp_path / "cut", batches * (result.best_epoch + 2), **extra)
    assert again.best_epoch == result.best_epoch
    assert same(whole, resumed)


def test_without_a_seed_too(tmp_path):
    pyro.set_rng_seed(0)
    whole, _ = run_with_interruption(tmp_path / "whole", None, seed=None)
    pyro.set_rng_seed(0)
    resumed, _ = run_with_interruption(tmp_path / "cut", 13, seed=None)
    assert same(whole, resumed)


def test_resuming_with_other_settings_is_refused_and_more_epochs_are_not(tmp_path):
    pair, x = vae(), binary()
    quiet(pair, x, epochs=2, out=tmp_path, seed=0)
    with pytest.raises(InputError, match=r"lr=0.001, not 0.01"):
        quiet(pair, x, epochs=2, out=tmp_path, seed=0, lr=1e-2, resume=True)
    assert len(quiet(pair, x, epochs=5, out=tmp_path, seed=0, resume=True).history) == 5


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_bit(tmp_path):
    """SIGKILL at any moment leaves a checkpoint that can be read."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys, pyro, torch
        from pyro_vae import VAE, fit, networks
        pyro.set_rng_seed(0)
        x = torch.rand(400, 64)
        vae = VAE((64,), 4, encoder=networks.MLP([32]), decoder=networks.MLP([32]))
        fit(vae, x, epochs=40, batch_size=50, seed=0, binarize="dynamic", out=sys.argv[1], resume=True, progress=False)
        print(sum(p.double().sum().item() for p in vae.parameters()).hex())
    """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = lambda out, **kw: subprocess.Popen(  # noqa: E731
        [sys.executable, str(script), str(tmp_path / out)], env=environment, stdout=subprocess.PIPE, text=True, **kw
    )
    whole = run("whole").communicate()[0]
    cut = run("cut")
    while not (tmp_path / "cut" / "metrics.csv").exists():
        assert cut.poll() is None
        time.sleep(0.01)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    cut.stdout.close()
    assert run("cut").communicate()[0] == whole


@pytest.mark.slow
def test_two_processes_end_equal_and_equal_to_one_on_the_union(tmp_path):
    """A pair without noise (its latent is a Delta), so that shares of a batch add up to the batch exactly."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys, pyro, torch, pyro.distributions as dist
        from torch import nn
        from pyro_vae import fit
        class Point(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.down = nn.Linear(2, 3), nn.Linear(3, 2)
            def model(self, x):
                pyro.module("up", self.up)
                with pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                    pyro.sample("x", dist.Normal(self.up(z), 1.0).to_event(1), obs=x)
            def guide(self, x):
                pyro.module("down", self.down)
                shift = pyro.param("shift", torch.zeros(2, dtype=x.dtype))  # no nn.Parameter: reduced by fit itself
                with pyro.plate("data", len(x)):
                    pyro.sample("z", dist.Delta(self.down(x) + shift, event_dim=1))
        pyro.set_rng_seed(0)
        x = torch.randn(21, 3)
        pair = Point().double()
        torch.set_default_dtype(torch.float64)
        result = fit(pair, x.double(), epochs=3, batch_size=8, seed=0, progress=False, device="cpu", lr=1e-2)
        from accelerate import PartialState
        sums = " ".join(f"{p.sum().item():.12f}" for p in [*pair.parameters(), pyro.param("shift")])
        line = f"PROCESSES {PartialState().num_processes} WEIGHTS {sums} {result.history[-1]['loss']:.12f}\\n"
        sys.stdout.write(line)
        sys.stdout.flush()
    """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    found = []
    for launch in ([sys.executable], [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]):
        done = subprocess.run([*launch, str(script)], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(re.findall(r"PROCESSES (\d) WEIGHTS (.*)", done.stdout))
    (one,), two = found
    assert one[0] == "1"
    assert two == [("2", one[1])] * 2


def test_a_stream_trains_like_the_tensor_it_reads():
    x = binary(30)
    runs = []
    for source in (x, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=30)):
        pyro.set_rng_seed(0)
        pair = vae()
        runs.append(quiet(pair, source, epochs=2, batch_size=30, seed=0).history[0]["loss"])
    assert runs[0] == pytest.approx(runs[1], rel=0.2)


def test_a_named_set_brings_its_validation_part():
    pair = vae((1, 8, 8))
    result = quiet(pair, "digits", epochs=1, binarize="dynamic", seed=0)
    assert "validation_elbo" in result.history[0]
    assert log_likelihood(pair, "digits", 2, binarize="static").num_data == 1293


def test_a_stream_is_checked_as_it_is_read():
    x = binary(30)
    x[25, 1] = 0.5
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=10)
    with pytest.raises(InputError, match=r"x\[5, 1\] = 0.5 is grey"):
        quiet(vae(), loader, batch_size=10)


def test_the_tutorial_pair_reaches_the_loss_of_pyros_loop():
    """Same data, same network, three seeds each: mean final losses within 4 standard errors (false alarm 6e-5)."""
    x = (torch.rand(200, 12) < torch.linspace(0.1, 0.9, 12)).float()
    ours, theirs = [], []
    for seed in range(3):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        ours.append(quiet(TutorialVAE(), x, epochs=10, batch_size=50).history[-1]["loss"])
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        pair = TutorialVAE()
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        for _ in range(10):
            order = torch.randperm(200)
            last = sum(svi.step(x[rows]) for rows in order.split(50)) / 200
        theirs.append(last)
    a, b = torch.tensor(ours), torch.tensor(theirs)
    assert abs(a.mean() - b.mean()) < 4 * ((a.var() + b.var()) / 3).sqrt() + 0.05


def test_tensorboard_events_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is optional: events are written where it is installed")
    quiet(vae(), binary(), epochs=1, out=tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_objectives_are_told_of_the_run(caplog):
    """How much of it is done, before each step; how many data there are; and a warning if it ends off the bound."""
    told = []

    class Watched(objectives.Annealed):
        def progress(self, done):
            told.append(done)
            super().progress(done)

    quiet(vae(), binary(), epochs=2, batch_size=20, objective=Watched(end=0.5))
    assert told == [0.0, 0.25, 0.5, 0.75]
    assert "ends with weight 0.5 and not 1" in caplog.text
    correlation = objectives.BetaTC()
    assert math.isfinite(quiet(vae(), binary(), epochs=1, batch_size=20, objective=correlation).history[-1]["loss"])
    assert correlation.num_data is None  # the caller's own is left as it was


def test_training_by_an_importance_weighted_bound_is_captured():
    result = quiet(vae(), binary(), epochs=2, objective=objectives.IWAE(3), compile="graph")
    assert result.how == "captured"
