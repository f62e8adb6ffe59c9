"""`fit`: stochastic variational inference on any pair, from the data to a run folder."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO

from pyro_vae import data, saving
from pyro_vae.adam import AdamStep, Guard
from pyro_vae.averaging import Average
from pyro_vae.checks import InputError, one_of
from pyro_vae.divergence import TrainingDiverged, explain
from pyro_vae.evaluation import check_data, elbo_terms
from pyro_vae.files import read_tensors
from pyro_vae.gradients import Gradients, clear, give
from pyro_vae.machine import memory_kept
from pyro_vae.pair import (
    as_pair,
    data_plate,
    explained_support_errors,
    kept_random_state,
    modules,
    parameters,
    remember,
    trace_pair,
    unregistered,
)
from pyro_vae.products import float32_products
from pyro_vae.progress import bar_over
from pyro_vae.replay import COMPILE, Compile, Graph, Replay
from pyro_vae.runs import CHECKPOINT, RunLog, claim
from pyro_vae.settings import Schedule, Settings, make_optimizer, pick_device
from pyro_vae.whole_step import Tally, WholeStep, can_take

logger = logging.getLogger("pyro_vae")


@dataclass
class FitResult:
    """What `fit` did.

    Attributes:
        pair: the pair, trained.
        history: one dict per epoch: "epoch", "loss" (negative ELBO, nats per datum), "skipped" (steps, if asked for),
            "validation_elbo" and "validation_stderr" (if there is validation data), "lr", "grad_norm", "seconds" and
            "samples_per_second" (of training alone), and on CUDA "peak_memory" (bytes).
        stopped_because: "epochs", "patience" or "interrupted".
        best_epoch: epoch with the best validation ELBO, if there is validation data.
        out: the run folder, if one was written.
        device: where it ran.
        how: how its steps were run: "eager", "captured", or "captured, Inductor".
    """

    pair: Any
    history: list[dict[str, float]]
    stopped_because: str
    best_epoch: int | None
    out: Path | None
    device: str
    how: str


def fit(
    pair: Any,
    x: Any,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    schedule: Literal["constant", "linear", "cosine"] | Schedule = "constant",
    warmup: float = 0.0,
    clip: float | None = None,
    skip_gradient_above: float | None = None,
    ema: float | None = None,
    validation: Any = None,
    patience: int | None = None,
    seed: int | None = None,
    objective: ELBO | None = None,
    optimizer: Any = None,
    binarize: Literal["none", "threshold", "static", "dynamic"] | None = None,
    device: str | torch.device | None = None,
    compile: Compile = "auto",
    precision: Literal["float32", "tf32", "bf16"] = "float32",
    progress: bool = True,
    out: str | Path | None = None,
    resume: bool = False,
    config: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a pair by stochastic variational inference (Kingma & Welling 2014, algorithm 1).

    Losses are nats per datum, whatever the batch size and however the plate over the data is written.

    Args:
        pair: a VAE, a Pair, a module with `model` and `guide`, or a tuple of the two.
        x: training data: a tensor (N, *event_shape) or a tuple of them, an array, a Dataset, a DataLoader, or the name
            or path of a data set.
        epochs: passes over the data.
        batch_size: data per step, over all processes.
        lr: learning rate at its highest.
        schedule: how the rate falls over the run: a name, or a function of the fraction done that gives a factor.
        warmup: fraction of the run over which the rate rises from zero.
        clip: largest global norm of the gradient.
        skip_gradient_above: steps whose gradient has a larger global norm, or one that is not finite, change nothing; they
            are counted in the history ("skipped") (Child 2020, appendix).
        ema: keeps an exponential moving average of the parameters, of which a step leaves this share, such as 0.999;
            validation and the trained pair have the average.
        validation: data on which the ELBO is taken after each epoch; the set's own for a named data set.
        patience: epochs without a better validation ELBO before training stops and the best weights are put back.
        seed: of initial draws, batches and noise; torch's random state is then left as it was.
        objective: any Pyro ELBO; by default what the pair's `default_objective()` returns if it has one, else Trace_ELBO().
        optimizer: makes a torch optimizer from parameters, such as functools.partial(torch.optim.AdamW, ...), or a
            pyro.optim optimizer; Adam by default.
        binarize: what is done to grey pixels; "dynamic" draws them anew each time.
        device: cpu, cuda or mps; the fastest that is there by default.
        compile: how steps are run: "graph" captures a step once and replays it, "inductor" compiles the graph too, "auto"
            does what repays its time in a run as long as this one, "eager" runs Pyro each time. What can't be captured
            runs eagerly, and a warning says why.
        precision: of matrix products: "float32"; "tf32", on CUDA alone; or "bf16", which rounds their inputs to 8 bits.
            All else, the densities' sums above all, stays in the parameters' own precision.
        progress: show a bar with loss and speed.
        out: run folder for config.yaml, model.safetensors, metrics.csv, figures and the checkpoint.
        resume: go on from the checkpoint in `out`; the result is the same as if the run had not been interrupted.
        config: further entries for the run folder's config.yaml, such as where the data came from.

    Raises:
        InputError: on bad arguments or data, before the first step.
        TrainingDiverged: at the step whose loss or gradient is not finite; `out` then holds the last good weights.
    """
    one_of("compile", compile, COMPILE)
    one_of("precision", precision, ["float32", "tf32", "bf16"])
    if precision == "bf16" and compile == "eager":
        raise InputError("precision='bf16' needs captured steps; take compile='auto', 'graph' or 'inductor'.")
    settings = Settings(epochs, batch_size, lr, schedule, warmup, clip, patience, seed, ema, skip_gradient_above)
    if resume and out is None:
        raise InputError("resume=True needs out=, the run folder with the checkpoint.")
    folder = claim(out, resume)
    training, validation = _sets(x, validation, binarize, seed)
    pair = as_pair(pair)
    objective = objective or getattr(pair, "default_objective", Trace_ELBO)()
    trainer = Trainer(pair, settings, objective, device, compile, precision)
    with kept_random_state(trainer.device):
        trainer.prepare(training, validation, optimizer, binarize)
    with kept_random_state(trainer.device, trainer.rank_seed()) if seed is not None else contextlib.nullcontext():
        log = RunLog(folder if trainer.is_main else None, trainer.pair)
        if resume and (folder / CHECKPOINT).exists():
            trainer.restore(read_tensors(folder / CHECKPOINT))
        else:
            log.start(config)
        with float32_products(precision), memory_kept():
            trainer.run(log, progress and trainer.is_main)
    log.finish(trainer.history, trainer.examples if trainer.validation is None else trainer.validation)
    return FitResult(
        trainer.pair,
        trainer.history,
        trainer.stopped_because,
        trainer.best_epoch,
        folder,
        str(trainer.device),
        trainer.step.how,
    )


def _sets(x: Any, validation: Any, binarize: str | None, seed: int | None) -> tuple[Any, Any]:
    """Training and validation data; a named set brings its own validation part."""
    if isinstance(x, str):
        splits = data.load(x)
        x, validation = splits.train, splits.validation if validation is None else validation
    if isinstance(validation, str):
        validation = data.load(validation).validation
    return x, validation


@dataclass
class Trainer:
    """The loop and its state: all that a checkpoint holds."""

    pair: Any
    settings: Settings
    objective: ELBO
    wanted_device: str | torch.device | None
    compile: Compile = "auto"
    precision: str = "float32"
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_because: str = ""

    def __post_init__(self) -> None:
        from accelerate import Accelerator

        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1  # by torchrun or accelerate launch
        on_cpu = pick_device(self.wanted_device).type == "cpu"
        # Accelerate forms no group of CPU processes unless it is told that they are to use the CPU.
        self.accelerator = Accelerator(device_placement=False, cpu=launched and on_cpu)
        spread = launched and not on_cpu and self.wanted_device is None
        self.device = self.accelerator.device if spread else pick_device(self.wanted_device)
        self.is_main = self.accelerator.is_main_process
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.skipped = self.left_out = 0  # steps, and data whose loss was not finite, of this epoch
        for module in modules(self.pair):
            module.to(self.device)

    # --- setting up -----------------------------------------------------------------------------------------------

    def prepare(self, x: Any, validation: Any, optimizer: Any, binarize: str | None) -> None:
        """Looks at the data, finds the parameters and makes the optimizer; no step is taken."""
        seed = self.settings.seed or 0
        self.examples = data.as_examples(x, binarize=binarize, seed=seed, device=self.device)
        check_data(self.pair, self.examples)
        # Data that are held were looked at above; those that stream past are looked at on their first pass.
        self.check = None if isinstance(self.examples, data.Examples) else getattr(self.pair, "check", None)
        self.validation = None
        if validation is not None:
            frozen = "static" if binarize == "dynamic" else binarize
            self.validation = data.as_examples(validation, binarize=frozen, seed=seed, device=self.device)
            check_data(self.pair, self.validation)
        self.settings.num_data = len(self.examples)
        _, first = next(iter(self.examples.batches(min(self.settings.batch_size, len(self.examples)))))
        remember(self.pair, first)
        self.moved = parameters(self.pair, first)
        if not self.moved:
            raise InputError(
                "The pair has no parameters: neither pyro.param nor pyro.module was met in model or guide."
            )
        if lost := unregistered(self.pair, self.moved):
            shown = ", ".join(lost[:4]) + (", ..." if len(lost) > 4 else "")
            logger.warning(
                "%d parameters are not known to Pyro and stay as they are (%s): call pyro.module.", len(lost), shown
            )
        if self.settings.batch_size % self.accelerator.num_processes:
            processes = self.accelerator.num_processes
            raise InputError(f"batch_size={self.settings.batch_size} must be a multiple of the {processes} processes.")
        if getattr(self.objective, "num_data", 0) is None:  # as BetaTC's, which wants the size of the whole set
            self.objective = copy.copy(self.objective)
            self.objective.num_data = len(self.examples)
        if getattr(self.objective, "final_weight", 1.0) != 1.0:
            logger.warning(
                "%r ends with weight %g and not 1: what is trained is not the bound.",
                self.objective,
                self.objective.final_weight,
            )
        everything = [self.objective, *(part for module in modules(self.pair) for part in module.modules())]
        self.followers = [thing for thing in everything if callable(getattr(thing, "progress", None))]
        self.step = self._captured(first)
        self.optimizer = make_optimizer(optimizer, list(self.moved.values()), self.settings.lr)
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.average = None if self.settings.ema is None else Average(self.moved, self.settings.ema)
        self.whole: WholeStep | None = None
        settings, held = self.settings, isinstance(self.examples, data.Examples) and self.accelerator.num_processes == 1
        # A last batch that is short runs as it comes, so the graph belongs to one size.
        if self.device.type == "cuda" and held and self.compile != "eager" and can_take(self.optimizer):
            self.tally = Tally(self.device)
            batch = self.examples.batch
            self.whole = WholeStep(
                batch,
                self.step,
                self.moved,
                self.optimizer,
                settings.clip,
                self.tally,
                skip_above=settings.skip_gradient_above,
                after=self.average.update if self.average is not None else None,
            )
        self.order_seed = seed if self.settings.seed is not None else int(torch.randint(2**31, ()))
        if self.accelerator.num_processes > 1:
            self._agree()

    def _captured(self, first: tuple[torch.Tensor, ...]) -> Replay:
        """(loss, gradients), both per datum, as a function of the batch."""
        population = self._population(first)
        self.gradients = Gradients(
            _loss_and_grads(self.objective),
            self.pair.model,
            self.pair.guide,
            size=lambda *batch: population or len(batch[0]),
        )
        self.gradients.params = dict(self.moved)
        whole, _rest = divmod(len(self.examples), self.settings.batch_size)

        def calls(*batch: torch.Tensor) -> int:
            if self.accelerator.num_processes > 1:
                return self.settings.epochs * max(whole, 1)
            return self.settings.epochs * (whole if len(batch[0]) == self.settings.batch_size else 1)

        programs = (self.pair.model, self.pair.guide, self.objective)
        # A captured graph computes everything once, and so holds what the pair would rather compute again.
        recomputes = getattr(self.pair, "recomputes", False)
        if recomputes and self.compile in ("graph", "inductor"):
            logger.warning("Steps run eagerly: a captured graph would keep the activations that are to be recomputed.")
        return Replay(
            self.gradients,
            programs,
            compile="eager" if recomputes else self.compile,
            precision=self.precision,
            calls=calls,
            what="training's step",
            follow=self._follow if self.accelerator.num_processes == 1 else None,
        )

    def _follow(self, graph: Graph) -> AdamStep:
        """The optimizer's step, to be compiled with the gradients."""
        guard = Guard(self.settings.clip, self.settings.skip_gradient_above)
        return AdamStep(graph.captured, graph.params, lambda: self.optimizer, guard)

    def _agree(self) -> None:
        """All processes take the first one's order of the data, and its start."""
        from accelerate.utils import broadcast

        self.order_seed = int(broadcast(torch.tensor(self.order_seed, device=self.device)))
        buffers = [buffer for module in modules(self.pair) for buffer in module.buffers()]
        with torch.no_grad():
            for tensor in (*self.moved.values(), *buffers):
                tensor.copy_(broadcast(tensor.detach().clone()))

    def _population(self, batch: tuple[torch.Tensor, ...]) -> int | None:
        with kept_random_state(self.device), torch.no_grad():
            plate = data_plate(trace_pair(self.pair, batch)[1], len(batch[0]))
        return plate.full_size if plate is not None and plate.full_size != len(batch[0]) else None

    def rank_seed(self) -> int:
        """A seed of this process's own, so that processes draw different noise."""
        return self.settings.seed + 1_000_003 * self.accelerator.process_index

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, log: RunLog, progress: bool) -> None:
        """Epochs until they are done, patience ends, or the user interrupts."""
        with bar_over(self.settings.epochs, len(self.history), progress) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN")  # what Pyro says of it; _step says more
            for epoch in range(len(self.history) + 1, self.settings.epochs + 1):
                if self.stopped_because == "patience":
                    break
                try:
                    row = self._epoch(epoch, bar)
                except KeyboardInterrupt:
                    self.stopped_because = "interrupted"
                    raise
                except TrainingDiverged:
                    log.keep_good_weights()
                    raise
                self.history.append(row)
                if self._out_of_patience(row):
                    self.stopped_because = "patience"
                log.epoch(self.history, self.checkpoint())
                bar.epoch(row, self.step.how)
        self.stopped_because = self.stopped_because or "epochs"
        if self.average is not None:
            self.average.take()
        if self.stopped_because == "patience":
            saving.load_state(self.pair, self.best_weights)

    def _epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        for module in modules(self.pair):
            module.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device if self.device.type != "mps" else "cpu")
        norm, seen, start = 0.0, 0, time.perf_counter()
        self.skipped = self.left_out = 0
        if self.whole is not None and self.step.how.startswith("captured"):
            norm = self._whole_epoch(epoch, total, bar)
        else:
            for step, (index, batch, weight) in enumerate(self._batches(epoch)):
                self._progress((epoch - 1 + seen / len(self.examples)) / self.settings.epochs)
                if epoch == 1 and self.check is not None:
                    self.check(*batch)
                # The first step is validated if the user has not switched that off; later ones save its time.
                with contextlib.nullcontext() if epoch == 1 and step == 0 else pyro.validation_enabled(False):
                    loss, norm = self._step(index, batch, weight, epoch)
                if math.isfinite(loss):
                    total += loss.to(total) * len(batch[0])
                else:
                    self.left_out += len(batch[0])
                seen += len(batch[0]) * self.accelerator.num_processes
                bar.step(loss, len(batch[0]), self.step.how)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.accelerator.num_processes > 1:
            self._share_buffers()
        seconds = time.perf_counter() - start
        row = {"epoch": epoch, "loss": self._mean(total)}
        if self.settings.skip_gradient_above is not None:
            row["skipped"] = self.skipped
            if self.skipped == -(-len(self.examples) // self.settings.batch_size):
                raise TrainingDiverged(
                    f"Epoch {epoch}: all {self.skipped} gradients had a norm above skip_gradient_above="
                    f"{self.settings.skip_gradient_above:g} or were not finite; the last norm is {float(norm):g}."
                )
        if self.validation is not None:
            with self.averaged():
                terms = elbo_terms(self.pair, self.validation, seed=self.order_seed)
            row |= {"validation_elbo": terms.elbo, "validation_stderr": terms.stderr}
        rate = len(self.examples) / seconds
        lr = float(self.optimizer.param_groups[0]["lr"])
        if self.device.type == "cuda":
            row["peak_memory"] = torch.cuda.max_memory_allocated(self.device)
        return row | {"lr": lr, "grad_norm": float(norm), "seconds": seconds, "samples_per_second": rate}

    def _whole_epoch(self, epoch: int, total: torch.Tensor, bar: Any) -> torch.Tensor:
        """An epoch of steps that the host launches and does not wait for.

        Raises:
            TrainingDiverged: at its end, if a step was not finite; that and all later ones have changed nothing.
        """
        self.tally.reset()
        seen, order = 0, self._order(epoch)
        there = order.to(self.device, non_blocking=True)
        for index in there.split(self.settings.batch_size):
            self._progress((epoch - 1 + seen / len(self.examples)) / self.settings.epochs)
            if len(index) == self.settings.batch_size:
                self.whole(index)
            else:
                self.whole.run(index)
            seen += len(index)
            bar.step(self.tally.loss / seen, len(index), f"{self.step.how}, CUDA graph")
        total += self.tally.loss
        self.skipped, self.left_out = int(self.tally.skipped), int(self.tally.left_out)
        if (bad := self.tally.bad.item()) >= 0:
            index = order.split(self.settings.batch_size)[bad]
            batch = self.examples.batch(index)
            self._step(index, batch, 1.0, epoch)  # says what is the matter, unless other noise makes it finite
            raise TrainingDiverged(f"Epoch {epoch}: at step {bad} the loss or its gradient was not finite.")
        return self.tally.norm

    def _step(
        self, index: torch.Tensor, batch: tuple[torch.Tensor, ...], weight: float, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        before = torch.get_rng_state()
        clear(list(self.moved.values()))
        try:
            with explained_support_errors():
                loss, gradients, norm = self.step.step(*batch)
        except ValueError as error:  # Pyro's validation, on in the first step, met a number that is not finite
            torch.set_rng_state(before)
            if (reason := explain(self.pair, index, batch, self.moved)) is None:
                raise
            raise TrainingDiverged(f"Epoch {epoch}: {reason}") from error
        if gradients is not None:
            if self.accelerator.num_processes > 1:
                gradients = self._averaged(gradients, weight)
            norm = torch.nn.utils.get_total_norm(list(gradients.values()))
            give(self.moved, gradients)
        if (bound := self.settings.skip_gradient_above) is not None and not norm.item() <= bound:
            self.skipped += 1
            return torch.as_tensor(loss), norm
        if not math.isfinite(float(loss) + norm.item()):
            torch.set_rng_state(before)
            if gradients is None:  # which are to say where it is
                with pyro.validation_enabled(False):
                    give(self.moved, self.gradients(*batch)[1])
                torch.set_rng_state(before)
            reason = explain(self.pair, index, batch, self.moved)
            raise TrainingDiverged(
                f"Epoch {epoch}: the loss is {float(loss)}, the gradient's norm {norm.item()}. {reason}"
            )
        if gradients is not None:
            if self.settings.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(list(self.moved.values()), self.settings.clip, norm)
            self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return torch.as_tensor(loss), norm

    def _averaged(self, gradients: dict[str, torch.Tensor], weight: float) -> dict[str, torch.Tensor]:
        """The mean over the processes of their weighted gradients, in one message."""
        flat = torch.cat([gradient.flatten() for gradient in gradients.values()]) * weight
        flat = self.accelerator.reduce(flat, "mean")
        parts = flat.split([gradient.numel() for gradient in gradients.values()])
        return {name: part.view_as(g) for (name, g), part in zip(gradients.items(), parts, strict=True)}

    def _batches(self, epoch: int) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, ...], float]]:
        """This process's share of every batch, each datum once, in an order that epoch and seed alone decide.

        The weight makes the mean over processes of the shares' mean losses the mean over the batch, also where
        shares differ in size.
        """
        size, processes = self.settings.batch_size, self.accelerator.num_processes
        order = self._order(epoch)
        if processes == 1:
            yield from ((index, batch, 1.0) for index, batch in self.examples.batches(size, order=order))
            return
        whole = [part for part in order.split(size) if len(part) >= processes]
        shares = [part[self.accelerator.process_index :: processes] for part in whole]
        batches = self.examples.batches(size // processes, order=torch.cat(shares))
        for (index, batch), part in zip(batches, whole, strict=True):
            yield index, batch, len(batch[0]) * processes / len(part)

    def _order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.order_seed * 1_000_003 + epoch)
        return torch.randperm(len(self.examples), generator=generator)

    def _progress(self, done: float) -> None:
        """Tells whatever follows a schedule (the learning rate, objectives, components) how much of the run is behind."""
        for follower in self.followers:
            follower.progress(done)
        factor = self.settings.lr_factor(done)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor

    def _share_buffers(self) -> None:
        """Running statistics are the first process's, which is the one that is saved."""
        from accelerate.utils import broadcast

        for module in modules(self.pair):
            for buffer in module.buffers():
                buffer.copy_(broadcast(buffer.detach().clone()))

    def _mean(self, total: torch.Tensor) -> float:
        if self.accelerator.num_processes > 1:
            left_out = torch.tensor(float(self.left_out), device=total.device, dtype=total.dtype)
            total, left_out = (self.accelerator.reduce(number, "sum") for number in (total, left_out))
            return total.item() / max(1, len(self.examples) - int(left_out))
        return total.item() / max(1, len(self.examples) - self.left_out)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The parameters' average in their place, if one is kept."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _out_of_patience(self, row: dict[str, float]) -> bool:
        if self.validation is None:
            return False
        best = None if self.best_epoch is None else self.history[self.best_epoch - 1]["validation_elbo"]
        if best is None or row["validation_elbo"] > best:
            self.best_epoch = int(row["epoch"])
            if self.settings.patience is not None:
                with self.averaged():
                    self.best_weights = {n: t.detach().clone() for n, t in saving.state(self.pair).items()}
        return self.settings.patience is not None and row["epoch"] - self.best_epoch >= self.settings.patience

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        kind, internal, gauss = random.getstate()
        return {
            "settings": self.settings.as_dict(),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "stopped_because": self.stopped_because,
            "order_seed": self.order_seed,
            "weights": saving.state(self.pair),
            "average": None if self.average is None else self.average.state(),
            "optimizer": _plain_rates(self.optimizer.state_dict()),
            "random": {
                "torch": torch.get_rng_state(),
                "device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "python": [kind, list(internal), gauss],
            },
        }

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Puts a checkpoint back.

        Raises:
            InputError: if it belongs to a run with other settings.
        """
        free = {"epochs"} if self.settings.schedule == "constant" and not self.settings.warmup else set()
        before, now = checkpoint["settings"], self.settings.as_dict()
        for name in before.keys() - free:
            if before[name] != now[name]:
                raise InputError(
                    f"resume=True: the checkpoint was made with {name}={before[name]!r}, not {now[name]!r}."
                )
        saving.load_state(self.pair, checkpoint["weights"])
        if self.average is not None:
            self.average.load(checkpoint["average"])
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(_full_optimizer_state(checkpoint["optimizer"]))
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # set at each step; on a GPU it must stay the tensor that it is
        self.history, self.best_epoch = checkpoint["history"], checkpoint["best_epoch"]
        self.best_weights, self.order_seed = checkpoint["best_weights"], checkpoint["order_seed"]
        self.stopped_because = checkpoint["stopped_because"]
        states = checkpoint["random"]
        torch.set_rng_state(states["torch"])
        if states["device"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["device"], self.device)
        kind, internal, gauss = states["python"]
        random.setstate((kind, tuple(internal), gauss))


def _loss_and_grads(objective: Any) -> Callable[..., Any]:
    """The objective's own, or one made of its differentiable loss."""
    if hasattr(objective, "loss_and_grads"):
        return objective.loss_and_grads

    def loss_and_grads(model: Any, guide: Any, *batch: torch.Tensor) -> torch.Tensor:
        loss = objective.differentiable_loss(model, guide, *batch)
        loss.backward()
        return loss.detach()

    return loss_and_grads


def _plain_rates(state: dict[str, Any]) -> dict[str, Any]:
    """Learning rates as numbers, for the checkpoint."""
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}


def _full_optimizer_state(state: dict[str, Any]) -> dict[str, Any]:
    """Undoes what a file with string keys does to torch's integer keys and tuples."""
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in state["param_groups"]]
    return {"state": {int(k): v for k, v in state["state"].items()}, "param_groups": groups}
