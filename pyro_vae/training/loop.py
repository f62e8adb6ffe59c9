"""The loop over epochs and steps, and its state: all that a checkpoint holds."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.infer import ELBO

from pyro_vae import data
from pyro_vae.data import Binarization
from pyro_vae.engine.replay import Compile
from pyro_vae.engine.step.gradients import clear, give
from pyro_vae.engine.step.update import Update
from pyro_vae.engine.step.whole import Tally, WholeStep, can_take
from pyro_vae.inference import check_data, elbo_terms
from pyro_vae.pair import Batch, ModelAndGuide, explained_support_errors, modules, remember
from pyro_vae.pair.hooks import check_batch
from pyro_vae.runs.log import CHECKPOINT, RunLog
from pyro_vae.runs.weights import load_state, state
from pyro_vae.training.averaging import Average
from pyro_vae.training.checkpoint import checkpoint, rest_of_epoch, save_inside
from pyro_vae.training.faults import WorkerKilled, explained
from pyro_vae.training.nonfinite import TrainingDiverged, explain, told_if_not_finite
from pyro_vae.training.place import Intervals, Place, random_states
from pyro_vae.training.processes import Processes
from pyro_vae.training.progress import Progress, bar_over
from pyro_vae.training.settings import Settings, make_optimizer
from pyro_vae.training.setup import captured_step, followers_of, sized, trained_parameters, whole_step
from pyro_vae.training.stopping import Signals, Stopped, noted_signals


@dataclass
class Trainer:
    """A run: the pair, its optimizer, and what has happened so far."""

    pair: ModelAndGuide
    settings: Settings
    objective: ELBO
    wanted_device: str | torch.device | None
    compile: Compile = "auto"
    precision: str = "float32"
    intervals: Intervals = field(default_factory=Intervals)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_because: str = ""

    def __post_init__(self) -> None:
        self.processes = Processes(self.wanted_device)
        self.device = self.processes.device
        self.is_main = self.processes.is_main
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.skipped = self.left_out = 0  # steps, and data whose loss was not finite, of this epoch
        self.place: Place | None = None  # inside an epoch
        self.resumed: Place | None = None  # where the next epoch starts, if not at its beginning
        self.tallying = False
        self.log, self.signals = RunLog(None, self.pair), Signals()
        for module in modules(self.pair):
            module.to(self.device)

    def rank_seed(self) -> int:
        """A seed of this process's own, so that processes draw different noise."""
        return (self.settings.seed or 0) + 1_000_003 * self.processes.index

    # --- setting up -----------------------------------------------------------------------------------------------

    def prepare(self, x: Any, validation: Any, optimizer: Any, binarize: Binarization | None) -> None:
        """Looks at the data, finds the parameters and makes the optimizer; no step is taken."""
        seed = self.settings.seed or 0
        self.examples = self._checked(x, binarize, seed)
        # Data that are held were looked at above; those that stream past are looked at on their first pass.
        self.unchecked = not isinstance(self.examples, data.Examples)
        frozen: Binarization | None = "static" if binarize == "dynamic" else binarize
        self.validation = None if validation is None else self._checked(validation, frozen, seed)
        self.settings.num_data = len(self.examples)
        _, first = next(iter(self.examples.batches(min(self.settings.batch_size, len(self.examples)))))
        remember(self.pair, first)
        self.moved = trained_parameters(self.pair, first)
        self.processes.check_batch_size(self.settings.batch_size)
        self.objective = sized(self.objective, len(self.examples))
        self.followers = followers_of(self.objective, self.pair)
        self.gradients, self.step = captured_step(self, first)
        self.optimizer = make_optimizer(optimizer, list(self.moved.values()), self.settings.lr)
        self.update = Update(self.optimizer, leaves_zeros=False)
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.average = None if self.settings.ema is None else Average(self.moved, self.settings.ema)
        self.whole: WholeStep | None = None
        held = isinstance(self.examples, data.Examples) and self.processes.count == 1
        # A last batch that is short runs as it comes, so the graph belongs to one size.
        if self.device.type == "cuda" and held and self.compile != "eager" and can_take(self.optimizer):
            self.tally = Tally(self.device)
            self.whole = whole_step(self, self.tally)
        self.order_seed = seed if self.settings.seed is not None else int(torch.randint(2**31, ()))
        if self.processes.count > 1:
            buffers = [buffer for module in modules(self.pair) for buffer in module.buffers()]
            self.order_seed = self.processes.agree(self.order_seed, [*self.moved.values(), *buffers])

    def _checked(self, x: Any, binarize: Binarization | None, seed: int) -> Any:
        examples = data.as_examples(x, binarize=binarize, seed=seed, device=self.device)
        check_data(self.pair, examples)
        return examples

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, log: RunLog, progress: bool) -> None:
        """Epochs until they are done, patience ends, the user interrupts, or SIGTERM comes."""
        self.log = log
        saves = log.folder is not None and self.processes.count == 1
        with (
            bar_over(self.settings.epochs, len(self.history), progress) as bar,
            warnings.catch_warnings(),
            noted_signals(saves) as self.signals,
        ):
            warnings.filterwarnings("ignore", "Encountered NaN")  # what Pyro says of it; _step says more
            for epoch in range(len(self.history) + 1, self.settings.epochs + 1):
                if self.stopped_because == "patience":
                    break
                row = self._guarded_epoch(epoch, bar)
                self.history.append(row)
                if self._out_of_patience(row):
                    self.stopped_because = "patience"
                log.epoch(self.history, checkpoint(self))
                self.intervals.written()
                bar.epoch(row, self.step.how)
                if self.signals.wanted:
                    self.signals.obey(f"after epoch {epoch}")
        self.stopped_because = self.stopped_because or "epochs"
        if self.average is not None:
            self.average.take()
        if self.stopped_because == "patience" and self.best_weights is not None:
            load_state(self.pair, self.best_weights)

    def _guarded_epoch(self, epoch: int, bar: Progress) -> dict[str, float]:
        """An epoch; what breaks it off leaves a checkpoint where one can be written, and is told in a sentence."""
        try:
            return self._epoch(epoch, bar)
        except Stopped:
            save_inside(self, epoch)
            self.stopped_because = "interrupted"
            self.signals.obey(f"in epoch {epoch}, {CHECKPOINT},")
            raise
        except KeyboardInterrupt:
            self.stopped_because = "interrupted"
            raise
        except TrainingDiverged:
            self.log.keep_good_weights()
            raise
        except (RuntimeError, MemoryError, OSError, EOFError) as error:
            at = 0 if self.place is None else self.place.step + 1
            if (fault := explained(error, epoch, at, self.settings.batch_size, self.device)) is None:
                raise
            if isinstance(fault, WorkerKilled):
                error.__traceback__ = None  # which holds the DataLoader, whose handler would raise once more, later
            raise fault from error
        finally:
            self.place = None

    def _epoch(self, epoch: int, bar: Progress) -> dict[str, float]:
        for module in modules(self.pair):
            module.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device if self.device.type != "mps" else "cpu")
        if (place := self.resumed) is None:
            place = Place(total, random_states(self.device))
            self.skipped = self.left_out = 0
        self.place, self.resumed = place, None
        self.tallying = self.whole is not None and self.step.how.startswith("captured")
        (self._whole_epoch if self.tallying else self._steps)(epoch, place, bar)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.processes.count > 1:
            self.processes.share_buffers(modules(self.pair))
        seconds = place.elapsed()
        with self.signals.between_steps():
            return self._row(epoch, place.total, place.norm, seconds)

    def _steps(self, epoch: int, place: Place, bar: Progress) -> None:
        """The rest of an epoch step by step; adds up in `place`."""
        seen = place.step * self.settings.batch_size
        for index, batch, weight in rest_of_epoch(self, self._order(epoch), place):
            self._progress((epoch - 1 + seen / len(self.examples)) / self.settings.epochs)
            if epoch == 1 and self.unchecked:
                check_batch(self.pair, *batch)
            if epoch == 1 and place.step == 0:  # eager, so that Pyro validates it if the user has not switched that off
                loss, norm = self._step(index, batch, weight, epoch, self.gradients)
            else:
                with pyro.validation_enabled(False):
                    loss, norm = self._step(index, batch, weight, epoch, self.step)
            if math.isfinite(loss):
                place.total += loss.to(place.total) * len(batch[0])
            else:
                self.left_out += len(batch[0])
            seen += len(batch[0]) * self.processes.count
            place.step, place.norm = place.step + 1, norm
            bar.step(loss, len(batch[0]), self.step.how)
            self._after_step(epoch, place)

    def _after_step(self, epoch: int, place: Place) -> None:
        """Leaves if a signal came; writes a checkpoint if one is due."""
        self.signals.check()
        if self.log.folder is not None and self.intervals.due(place.step):
            save_inside(self, epoch)

    def _row(self, epoch: int, total: torch.Tensor, norm: torch.Tensor | float, seconds: float) -> dict[str, float]:
        """The epoch's entry in the history.

        Raises:
            TrainingDiverged: if every step of the epoch was skipped.
        """
        row = {"epoch": epoch, "loss": self._mean(total)}
        if self.settings.skip_gradient_above is not None:
            row["skipped"] = self.skipped
            if self.skipped == -(-len(self.examples) // self.settings.batch_size):
                raise TrainingDiverged(
                    f"Epoch {epoch}: all {self.skipped} gradients had a norm above skip_gradient_above="
                    f"{self.settings.skip_gradient_above:g} or were not finite; the last norm is {float(norm):g}."
                )
        if self.validation is not None:
            terms = self._validated(epoch)
            row |= {"validation_elbo": terms.elbo, "validation_stderr": terms.stderr}
        rate = len(self.examples) / seconds
        lr = float(self.optimizer.param_groups[0]["lr"])
        if self.device.type == "cuda":
            row["peak_memory"] = torch.cuda.max_memory_allocated(self.device)
        return row | {"lr": lr, "grad_norm": float(norm), "seconds": seconds, "samples_per_second": rate}

    def _validated(self, epoch: int) -> Any:
        """The ELBO of the validation data, under the average if one is kept."""
        with self.averaged(), told_if_not_finite(f"Epoch {epoch}: after its last step", self.moved):
            return elbo_terms(self.pair, self.validation, seed=self.order_seed)

    def _whole_epoch(self, epoch: int, place: Place, bar: Progress) -> None:
        """The rest of an epoch of steps that the host launches and does not wait for.

        Raises:
            TrainingDiverged: at its end, if a step was not finite; that and all later ones have changed nothing.
        """
        assert self.whole is not None
        self.tally.reset()
        for tensor, before in ((self.tally.loss, place.total), (self.tally.skipped, self.skipped)):
            tensor += before
        self.tally.left_out += self.left_out
        begun, size = place.step, self.settings.batch_size
        seen, order = begun * size, self._order(epoch)[begun * size :]
        there = order.to(self.device, non_blocking=True)
        for index in there.split(size) if len(order) else ():
            self._progress((epoch - 1 + seen / len(self.examples)) / self.settings.epochs)
            if len(index) == size:
                self.whole(index)
            else:
                self.whole.run(index)
            seen += len(index)
            place.step += 1
            bar.step(self.tally.loss / seen, len(index), f"{self.step.how}, CUDA graph")
            self._after_step(epoch, place)
        self.read_tally(place)
        if (bad := self.tally.bad.item()) >= 0:
            index = order.split(size)[bad]
            batch = self.examples.batch(index)
            self._step(
                index, batch, 1.0, epoch, self.step
            )  # says what is the matter, unless other noise makes it finite
            raise TrainingDiverged(f"Epoch {epoch}: at step {begun + bad} the loss or its gradient was not finite.")

    def read_tally(self, place: Place) -> None:
        """What the device has added up, for the history or a checkpoint."""
        place.total.copy_(self.tally.loss)
        place.norm = self.tally.norm
        self.skipped, self.left_out = int(self.tally.skipped), int(self.tally.left_out)

    def _step(
        self,
        index: torch.Tensor,
        batch: Batch,
        weight: float,
        epoch: int,
        losses: Callable[..., tuple[Any, dict[str, torch.Tensor]]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes a step with the loss and the gradients that `losses` gives; returns the loss and the gradient's norm."""
        before = torch.get_rng_state()
        clear(list(self.moved.values()))
        try:
            with explained_support_errors():
                loss, gradients = losses(*batch)
        except ValueError as error:  # Pyro's validation, on in the first step, met a number that is not finite
            torch.set_rng_state(before)
            if (reason := explain(self.pair, index, batch, self.moved)) is None:
                raise
            raise TrainingDiverged(f"Epoch {epoch}: {reason}") from error
        if self.processes.count > 1:
            gradients = self.processes.averaged(gradients, weight)
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        if (bound := self.settings.skip_gradient_above) is not None and not norm.item() <= bound:
            self.skipped += 1
            return torch.as_tensor(loss), norm
        if not math.isfinite(float(loss) + norm.item()):
            torch.set_rng_state(before)
            give(self.moved, gradients)
            reason = explain(self.pair, index, batch, self.moved)
            raise TrainingDiverged(
                f"Epoch {epoch}: the loss is {float(loss)}, the gradient's norm {norm.item()}. {reason}"
            )
        if self.settings.clip is not None:
            factor = (self.settings.clip / (norm + 1e-6)).clamp(max=1.0)
            gradients = {name: gradient * factor for name, gradient in gradients.items()}
        self.update(self.moved, gradients)
        if self.average is not None:
            self.average.update()
        return torch.as_tensor(loss), norm

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

    def _mean(self, total: torch.Tensor) -> float:
        left_out = torch.tensor(float(self.left_out), device=total.device, dtype=total.dtype)
        total, left_out = self.processes.sum(total), self.processes.sum(left_out)
        return total.item() / max(1, len(self.examples) - int(left_out))

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The parameters' average in their place, if one is kept."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def _out_of_patience(self, row: dict[str, float]) -> bool:
        if self.validation is None:
            return False
        best = None if self.best_epoch is None else self.history[self.best_epoch - 1]["validation_elbo"]
        if best is None or self.best_epoch is None or row["validation_elbo"] > best:
            self.best_epoch = int(row["epoch"])
            if self.settings.patience is not None:
                with self.averaged():
                    self.best_weights = {n: t.detach().clone() for n, t in state(self.pair).items()}
        return self.settings.patience is not None and row["epoch"] - self.best_epoch >= self.settings.patience
