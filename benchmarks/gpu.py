"""What only a CUDA card can show: that recorded steps equal eager ones, wait for nothing, hold no memory, and how fast.

    python -m benchmarks.gpu --json gpu.json

`--device cpu` rehearses the same code where there is no card; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks.harness import environment, interleave, rows, say
from benchmarks.pairs import ImportanceWeighted, Tutorial
from benchmarks.torch_peers import LR, drop_in, hand_written_step, pyro_step
from pyro_vae import VAE, TrainingDiverged, fit, likelihoods, log_likelihood, networks
from pyro_vae.data.resident import Examples
from pyro_vae.engine.replay import Replay
from pyro_vae.engine.step.gradients import Gradients
from pyro_vae.engine.step.whole import Tally, WholeStep

BUDGET = 500.0  # seconds; parts that would begin later are left out and named


def images(size: int, device: str) -> torch.Tensor:
    """Made-up binary images with some structure, the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    latent, weight = torch.randn(size, 8, generator=generator), torch.randn(8, 784, generator=generator)
    return (torch.sigmoid(latent @ weight - 2) > torch.rand(size, 784, generator=generator)).float().to(device)


def make_vae(device: str) -> VAE:
    torch.manual_seed(0)
    vae = VAE((784,), 50, encoder=networks.MLP([400]), decoder=networks.MLP([400]))
    return vae.to(device)


def whole_step(pair: Any, x: torch.Tensor, compile: str = "inductor") -> WholeStep:
    """Our step as `fit` takes it on a card, for positions in x."""
    loss_and_grads = pair.objective().loss_and_grads
    gradients = Gradients(lambda: (pair.model, pair.guide, loss_and_grads), size=len)
    gradients(x[:4])
    on_card = x.device.type == "cuda"
    rate = torch.tensor(LR, device=x.device) if on_card else LR
    optimizer = torch.optim.Adam(list(gradients.params.values()), lr=rate, fused=True, capturable=on_card)
    step = Replay(gradients, (pair.model, pair.guide), compile=compile)
    return WholeStep(Examples(x).batch, step, gradients.params, optimizer, None, Tally(x.device))


def recorded_by_hand(pair: Any, x: torch.Tensor, batch_size: int) -> Callable[[], None]:
    """PyTorch without Pyro at its best: the whole step in a CUDA graph."""
    on_card = x.device.type == "cuda"
    optimizer = torch.optim.Adam(pair.parameters(), lr=LR, fused=True, capturable=on_card)
    static = x[:batch_size].clone()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        pair.loss(static).backward()
        optimizer.step()

    if not on_card:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- checks ---------------------------------------------------------------------------------------------------------


def check_fit(device: str) -> dict[str, Any]:
    """Recorded epochs against eager ones on one seed: losses and weights."""
    x, results = images(2_100, device), {}  # a short last batch
    for compile in ("eager", "graph", "inductor"):
        vae = make_vae(device)
        history = fit(vae, x, epochs=5, batch_size=128, seed=0, compile=compile, device=device, progress=False).history
        weights = torch.cat([p.detach().flatten() for p in vae.parameters()])
        results[compile] = (torch.tensor([row["loss"] for row in history]), weights)
    report: dict[str, Any] = {}
    for compile in ("graph", "inductor"):
        for i, what in enumerate(("losses", "weights")):
            gap = (results[compile][i] - results["eager"][i]).abs().max() / results["eager"][i].abs().max()
            report[f"{compile}: relative gap of {what}"] = gap.item()
            assert gap < 2e-3, f"{compile}: {what} differ from eager ones by {gap:.2g}"
    return report


def check_drop_in(device: str) -> dict[str, Any]:
    """The drop-in SVI against Pyro's on one seed."""
    x, losses = images(128, device), {}
    for name in ("pyro", "graph", "inductor"):
        torch.manual_seed(0)
        pair = Tutorial().to(device)
        step = pyro_step(pair) if name == "pyro" else drop_in(pair, name).step
        torch.manual_seed(1)
        losses[name] = torch.tensor([float(step(x)) for _ in range(30)], dtype=torch.float64)
    report = {}
    for name in ("graph", "inductor"):
        report[name] = ((losses[name] - losses["pyro"]) / losses["pyro"]).abs().max().item()
        assert report[name] < 1e-4, f"{name}: losses differ from Pyro's by {report[name]:.2g}"
    return report


def check_precision(device: str) -> dict[str, Any]:
    """bf16 and TF32 against float32: the trained bound."""
    x, report = images(4_096, device), {}
    for precision in ("float32", "tf32", "bf16"):
        vae = make_vae(device)
        result = fit(
            vae,
            x,
            epochs=6,
            batch_size=128,
            seed=0,
            compile="graph",
            precision=precision,
            device=device,
            progress=False,
        )
        report[precision] = result.history[-1]["loss"]
    for precision in ("tf32", "bf16"):
        assert abs(report[precision] / report["float32"] - 1) < 0.01, f"{precision} ends at {report[precision]}"
    return report


def check_no_waiting(device: str) -> dict[str, Any]:
    """Steps under torch's alarm for synchronisation."""
    x = images(512, device)
    index = torch.arange(128, device=device)
    torch.manual_seed(0)
    step, svi = whole_step(Tutorial().to(device), x, "graph"), drop_in(Tutorial().to(device), "graph")
    for _ in range(8):
        step(index)
        svi.step(x[:128])
    if device != "cuda":
        return {"skipped": "no card"}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            step(index)
            svi.step(x[:128])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps": 20}


def check_memory(device: str) -> dict[str, Any]:
    """Allocated bytes before and after a thousand steps."""
    x = images(1_024, device)
    step = whole_step(Tutorial().to(device), x, "graph")
    order = torch.arange(1_024, device=device).split(128)
    for i in range(10):
        step(order[i % 8])
    wait(device)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    for i in range(1_000 if device == "cuda" else 20):
        step(order[i % 8])
    wait(device)
    after = torch.cuda.memory_allocated() if device == "cuda" else 0
    assert after <= before + 2**16, f"memory grew from {before} to {after} bytes in 1,000 steps"
    return {"before": before, "after": after}


def check_divergence(device: str) -> dict[str, Any]:
    """A run that diverges says so and keeps finite weights."""
    torch.manual_seed(0)
    likelihood = likelihoods.Normal(scale=0.1)
    vae = VAE((784,), 5, likelihood=likelihood, encoder=networks.MLP([20]), decoder=networks.MLP([20])).to(device)
    try:
        fit(vae, images(1_024, device), epochs=150, lr=1e18, seed=0, compile="graph", device=device, progress=False)
    except TrainingDiverged as error:
        assert all(p.isfinite().all() for p in vae.parameters()), "weights are not finite"
        return {"said": str(error)}
    raise AssertionError("it did not diverge, or was not noticed")


# --- timings --------------------------------------------------------------------------------------------------------


def time_steps(device: str, quick: bool) -> dict[str, Any]:
    """A step of the tutorial VAE at batch 128."""
    x = images(128, device)
    index = torch.arange(128, device=device)

    def fresh() -> Any:
        torch.manual_seed(0)
        return Tutorial().to(device)

    ours, compiled = whole_step(fresh(), x, "graph"), whole_step(fresh(), x, "inductor")
    pyros, by_hand, recorded = pyro_step(fresh()), hand_written_step(fresh()), recorded_by_hand(fresh(), x, 128)
    drop_ins = {mode: drop_in(fresh(), mode) for mode in ("graph", "inductor")}
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "pyro.infer.SVI": (lambda: pyros(x), 50),
        "PyTorch by hand": (lambda: by_hand(x), 200),
        "PyTorch by hand, CUDA graph": (recorded, 2_000),
        "pyro_vae SVI, graph": (lambda: drop_ins["graph"].step(x), 500),
        "pyro_vae SVI, inductor": (lambda: drop_ins["inductor"].step(x), 500),
        "pyro_vae fit's step, graph": (lambda: ours(index), 2_000),
        "pyro_vae fit's step, inductor": (lambda: compiled(index), 2_000),
    }

    def turn(work: Callable[[], Any], count: int) -> float:
        count = 5 if quick else count
        wait(device)
        start = time.perf_counter()
        for _ in range(count):
            work()
        wait(device)
        return (time.perf_counter() - start) / count

    for work, _ in works.values():
        for _ in range(8):
            work()
    turns = {name: (lambda work=work, count=count: turn(work, count)) for name, (work, count) in works.items()}
    figures = interleave(turns, 2 if quick else 7)
    return {row.contender: row.as_dict() for row in rows("gpu", "step, batch 128", figures, "pyro.infer.SVI")}


def time_iwae(device: str, quick: bool) -> dict[str, Any]:
    """The IWAE paper's MNIST setting: K = 50, batch 20, 3,280 passes over 50,000 images (Burda et al. 2016)."""
    x = images(5_000, device)
    report = {}
    for compile in ("graph", "inductor"):
        torch.manual_seed(0)
        step = whole_step(ImportanceWeighted().to(device), x, compile)
        order = torch.randperm(5_000).to(device).split(20)
        for i in range(10):
            step(order[i])
        wait(device)
        start, count = time.perf_counter(), 20 if quick else 5_000
        for i in range(count):
            step(order[i % len(order)])
        wait(device)
        each = (time.perf_counter() - start) / count
        report[compile] = {"seconds per step": each, "minutes for the full schedule": each * 3_280 * 2_500 / 60}
    return report


def time_fit(device: str, quick: bool) -> dict[str, Any]:
    """Samples per second and peak memory of `fit`, 60,000 images binarised anew in each epoch."""
    x, report = images(2_000 if quick else 60_000, device) * 0.8 + 0.1, {}
    for precision in ("float32", "tf32", "bf16"):
        vae = make_vae(device)
        result = fit(
            vae, x, epochs=4, batch_size=128, seed=0, binarize="dynamic", compile="inductor", precision=precision,
            device=device, progress=False,
        )  # fmt: skip
        last = result.history[-1]
        report[precision] = {key: last.get(key) for key in ("seconds", "samples_per_second", "peak_memory", "loss")}
    return report


def time_importance(device: str, quick: bool) -> dict[str, Any]:
    """Samples per second of log p(x), beside the products of matrices that it can't do without."""
    vae = make_vae(device)
    data, samples = images(200 if quick else 10_000, device), 50 if quick else 5_000
    log_likelihood(vae, data[:50], samples, compile="inductor")
    wait(device)
    start = time.perf_counter()
    score = log_likelihood(vae, data, samples, compile="inductor")
    wait(device)
    ours = len(data) * samples / (time.perf_counter() - start)
    rows_at_once = 2_000 if quick else 200_000
    z, first = torch.randn(rows_at_once, 50, device=device), torch.randn(50, 400, device=device)
    hidden, second = torch.randn(rows_at_once, 400, device=device), torch.randn(400, 784, device=device)
    for _ in range(3):
        z @ first, hidden @ second
    wait(device)
    start = time.perf_counter()
    for _ in range(5 if quick else 50):
        z @ first, hidden @ second
    wait(device)
    bound = rows_at_once * (5 if quick else 50) / (time.perf_counter() - start)
    return {"samples per second": ours, "products alone": bound, "times the bound": bound / ours, "mean": score.mean}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "check: recorded epochs equal eager ones": lambda d, q: check_fit(d),
    "check: the drop-in SVI equals Pyro's": lambda d, q: check_drop_in(d),
    "check: no step waits for the card": lambda d, q: check_no_waiting(d),
    "check: memory is flat": lambda d, q: check_memory(d),
    "check: divergence is told": lambda d, q: check_divergence(d),
    "time: a step at batch 128": time_steps,
    "time: IWAE": time_iwae,
    "time: importance sampling": time_importance,
    "time: fit": time_fit,
    "check: bf16 and TF32 are near": lambda d, q: check_precision(d),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs all parts; a part that fails is reported and the others go on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu rehearses the code.")
    report: dict[str, Any] = environment()
    if options.device == "cuda":
        report["machine"]["gpu"] = torch.cuda.get_device_name()
    begun, failed = time.perf_counter(), False
    for name, part in PARTS.items():
        if time.perf_counter() - begun > BUDGET:
            report[name] = "left out: no time"
            continue
        pyro.clear_param_store()
        start = time.perf_counter()
        try:
            report[name] = part(options.device, options.quick)
            outcome = "done"
        except Exception as error:  # one part's failure must not cost the others' figures
            failed, outcome = True, f"FAILED: {type(error).__name__}: {error}"
            report[name] = {"failed": traceback.format_exc()}
        say(f"{name}: {outcome} ({time.perf_counter() - start:.1f} s)")
        if options.json:
            options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(json.dumps(report, indent=1, default=str))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
