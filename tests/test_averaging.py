"""The average of the weights, and steps that are left out: by hand, resumed, and on the device path."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import Pair, TrainingDiverged, elbo_terms, fit, generate, guides, load, objectives, priors
from pyro_vae.engine.step.whole import Tally, WholeStep
from pyro_vae.errors import InputError
from pyro_vae.inference.temperature import tempered
from pyro_vae.training.averaging import Average
from tests.component_table import vae


def test_it_is_the_recursion():
    theta = nn.Parameter(torch.tensor([1.0, 2.0]))
    average, by_hand = Average({"theta": theta}, 0.9), theta.detach().clone()
    for _ in range(5):
        with torch.no_grad():
            theta.mul_(1.5)
        average.update()
        by_hand = 0.9 * by_hand + 0.1 * theta.detach()
    torch.testing.assert_close(average.values["theta"], by_hand)
    kept = theta.detach().clone()
    with average.in_place():
        torch.testing.assert_close(theta.detach(), by_hand)
    assert torch.equal(theta, kept)
    average.take()
    torch.testing.assert_close(theta.detach(), by_hand)


@pytest.mark.parametrize("compile", ["eager", "graph"])
def test_fit_gives_the_pair_its_average_and_validates_on_it(compile):
    """The same steps with plain weights, averaged by hand after each epoch of one step."""
    x, validation = torch.rand(20, 4).round(), torch.rand(30, 4).round()
    torch.manual_seed(0)
    plain = vae()
    kept, by_hand = copy.deepcopy(plain), [p.detach().clone() for p in plain.parameters()]
    averaged = fit(
        kept, x, epochs=4, batch_size=20, ema=0.8, seed=0, validation=validation, compile=compile, progress=False
    )
    for epochs in range(1, 5):
        twin = copy.deepcopy(plain)
        fit(twin, x, epochs=epochs, batch_size=20, seed=0, validation=validation, compile=compile, progress=False)
        by_hand = [0.8 * a + 0.2 * p.detach() for a, p in zip(by_hand, twin.parameters(), strict=True)]
    for mine, expected in zip(kept.parameters(), by_hand, strict=True):
        torch.testing.assert_close(mine.detach(), expected)
    assert elbo_terms(kept, validation, seed=0).elbo == pytest.approx(averaged.history[-1]["validation_elbo"])


def test_what_is_saved_is_the_average(tmp_path):
    x = torch.rand(40, 4).round()
    pair = vae()
    fit(pair, x, epochs=3, batch_size=10, ema=0.9, seed=0, progress=False, out=tmp_path)
    for mine, expected in zip(load(tmp_path).parameters(), pair.parameters(), strict=True):
        assert torch.equal(mine, expected)


# --- gradients that explode -----------------------------------------------------------------------------------------


def spiked() -> tuple[Pair, nn.Parameter]:
    """A pair whose gradient is as large as the datum."""
    loc = nn.Parameter(torch.zeros(()))

    def model(x: torch.Tensor) -> None:
        centre = pyro.param("centre", loc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(centre, 1.0), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Pair(model, guide), loc


@pytest.mark.parametrize("compile", ["eager", "graph"])
@pytest.mark.parametrize("spike", [1e6, 1e25], ids=["large", "infinite"])
def test_exploding_gradients_change_nothing_and_are_counted(spike, compile):
    """Of ten steps on one datum each, three have a gradient of 1e6, or a loss that is infinite in float32."""
    x = torch.ones(10)
    x[[2, 5, 7]] = spike
    pair, loc = spiked()
    options = {"batch_size": 1, "lr": 0.1, "seed": 0, "compile": compile, "progress": False}
    result = fit(pair, x, epochs=20, skip_gradient_above=10.0, **options)
    assert all(row["skipped"] == 3 for row in result.history)
    assert loc.item() == pytest.approx(1.0, abs=0.05)  # of the seven ones alone
    if spike > 1e20:
        assert result.history[-1]["loss"] == pytest.approx(0.919, abs=0.01)  # those that are not finite are left out
        pyro.clear_param_store()
        with pytest.raises(TrainingDiverged):
            fit(spiked()[0], x, epochs=1, **options)


def test_nothing_but_exploding_gradients_is_said():
    pair, loc = spiked()
    with pytest.raises(TrainingDiverged, match=r"all 10 gradients had a norm above skip_gradient_above=0.001"):
        fit(pair, torch.ones(10), epochs=1, batch_size=1, skip_gradient_above=1e-3, progress=False)
    assert loc.item() == 0


def test_the_device_path_skips_and_averages_alike():
    """WholeStep on the CPU, where an optimizer leaves parameters alone at found_inf = 1 as on a GPU."""
    theta = nn.Parameter(torch.zeros(2))
    tally, seen = Tally(torch.device("cpu")), []

    class Optimizer:
        found_inf: torch.Tensor

        def step(self) -> None:
            if not self.found_inf:
                with torch.no_grad():
                    theta.sub_(theta.grad)

    def losses(g: torch.Tensor):
        return g.sum(), {"theta": g.expand(2)}

    values = torch.tensor([0.5, 100.0, float("inf"), 0.25, float("nan")])
    whole = WholeStep(
        lambda index: (values[index],),
        losses,
        {"theta": theta},
        Optimizer(),
        None,
        tally,
        skip_above=10.0,
        after=lambda: seen.append(theta.detach().clone()),
    )
    for i in range(5):
        whole.run(torch.tensor([i]))
    torch.testing.assert_close(theta.detach(), torch.full((2,), -0.75))
    assert len(seen) == 5
    assert (int(tally.skipped), int(tally.left_out), int(tally.bad)) == (3, 2, -1)
    assert float(tally.loss) == pytest.approx(100.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema": 1.0}, "ema=1.0 must be"),
        ({"ema": 0}, "ema=0 must be"),
        ({"skip_gradient_above": -1}, "skip_gradient_above=-1 must be a positive number"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        fit(vae(), torch.rand(4, 4).round(), progress=False, **options)


def test_a_pair_may_bring_its_objective():
    class Own(objectives.ELBO):
        pass

    pair, x = vae(), torch.rand(20, 4).round()
    made = []
    pair.default_objective = lambda: made.append(Own()) or made[0]
    fit(pair, x, epochs=1, progress=False)
    assert len(made) == 1
    fit(pair, x, epochs=1, progress=False, objective=objectives.ELBO())
    assert len(made) == 1


# --- temperature ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(torch.ones(3), 2.0).to_event(1),
        dist.Laplace(torch.ones(3), 2.0).to_event(1),
        dist.StudentT(8.0, torch.ones(3), 2.0).to_event(1),
        dist.MultivariateNormal(torch.ones(3), torch.eye(3) * 4 + 1),
        dist.Normal(torch.ones(3), 2.0).mask(True).to_event(1),
    ],
    ids=lambda fn: type(getattr(fn, "base_dist", fn)).__name__,
)
def test_a_temperature_multiplies_the_scale(fn):
    """Same noise, a spread about the centre that is half as wide; the distribution that was given stays as it was."""
    torch.manual_seed(0)
    warm = fn.sample((5,))
    before = fn.log_prob(warm)
    torch.manual_seed(0)
    cool = tempered(fn, 0.5).sample((5,))
    torch.testing.assert_close(cool - 1, (warm - 1) / 2)
    assert torch.equal(fn.log_prob(warm), before)


@pytest.mark.parametrize(
    "prior", [priors.StandardNormal(), priors.Mixture(3), priors.Flow(hidden=[8]), priors.Vamp(3)], ids=repr
)
def test_cool_latents_lie_closer_together(prior):
    pair, x = vae(prior=prior), torch.rand(20, 4).round()
    spread = []
    for temperature in (1.0, 0.1):
        held = pyro.poutine.trace(pyro.poutine.uncondition(pair.model))
        from pyro_vae.inference.temperature import Tempered

        with Tempered(temperature):
            torch.manual_seed(0)
            spread.append(held.get_trace(x.repeat(100, 1)).nodes["z"]["value"].std(0).mean())
    assert spread[1] < 0.9 * spread[0]
    assert torch.equal(generate(pair, 3, temperature=1.0, seed=0), generate(pair, 3, seed=0))


def test_latents_without_a_scale_are_refused():
    pair = vae(prior=priors.Spherical(), guide=guides.Spherical())
    with pytest.raises(InputError, match="site 'z' is drawn from SphereUniform; use temperature=1") as refused:
        generate(pair, 2, temperature=0.5)
    assert "Trace Shapes" not in str(refused.value)  # one sentence, not Pyro's table of all sites
    with pytest.raises(InputError, match="temperature=0"):
        generate(vae(), 2, temperature=0)
