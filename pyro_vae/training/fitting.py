"""`fit`: stochastic variational inference on any pair, from the data to a run folder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pyro.infer import ELBO, Trace_ELBO

from pyro_vae import data
from pyro_vae.engine.lower.products import float32_products
from pyro_vae.engine.machine import memory_kept
from pyro_vae.engine.replay import COMPILE, Compile
from pyro_vae.errors import InputError, kind_of, one_of
from pyro_vae.inference.rows import rows_for
from pyro_vae.pair import ModelAndGuide, PairLike, as_pair, kept_random_state
from pyro_vae.pair.hooks import HasDefaultObjective, offers
from pyro_vae.runs.lock import locked
from pyro_vae.runs.log import CHECKPOINT, RunLog, claim
from pyro_vae.runs.saving import check_writable
from pyro_vae.training.checkpoint import read_checkpoint, restore
from pyro_vae.training.faults import explained
from pyro_vae.training.loop import Trainer
from pyro_vae.training.place import Intervals
from pyro_vae.training.settings import Schedule, Settings


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

    pair: ModelAndGuide
    history: list[dict[str, float]]
    stopped_because: str
    best_epoch: int | None
    out: Path | None
    device: str
    how: str


def fit(
    pair: PairLike,
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
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = 10.0,
    keep_checkpoints: int = 1,
    config: Mapping[str, Any] | None = None,
) -> FitResult:
    """Trains a pair by stochastic variational inference (Kingma & Welling 2014, algorithm 1).

    Losses are nats per datum, whatever the batch size and however the plate over the data is written.

    Args:
        pair: a VAE, a Pair, a module with `model` and `guide`, or a tuple of the two.
        x: training data: a tensor (N, *event_shape) or a tuple of them, an array, a Dataset, a DataLoader, the name
            or path of a data set; for a pair of a table a `data.Table`, a DataFrame or a file's path.
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
        checkpoint_steps: writes a checkpoint after so many steps of an epoch too, not only after each epoch.
        checkpoint_minutes: writes one after so many minutes too; None writes none.
        keep_checkpoints: how many of the last checkpoints stay, those beyond one under names with epoch and step.
        config: further entries for the run folder's config.yaml, such as where the data came from.

    Raises:
        InputError: on bad arguments or data, before the first step; `runs.InUse` if another process trains in `out`.
        TrainingDiverged: at the step whose loss or gradient is not finite; `out` then holds the last good weights.
        KeyboardInterrupt, Terminated: on SIGINT and SIGTERM; with `out`, after a checkpoint.
        Fault: out of memory, or a data worker was killed; CannotWrite: `out` can't be written, as on a full disk.
    """
    one_of("compile", compile, COMPILE)
    one_of("precision", precision, ["float32", "tf32", "bf16"])
    if precision == "bf16" and compile == "eager":
        raise InputError("precision='bf16' needs captured steps; take compile='auto', 'graph' or 'inductor'.")
    settings = Settings(epochs, batch_size, lr, schedule, warmup, clip, patience, seed, ema, skip_gradient_above)
    intervals = Intervals(checkpoint_steps, checkpoint_minutes, keep_checkpoints)
    objective = _checked_objective(objective)
    if resume and out is None:
        raise InputError("resume=True needs out=, the run folder with the checkpoint.")
    if config is not None:
        check_writable(config)
    folder = claim(out, resume)
    pair = as_pair(pair)
    training, validation = _sets(rows_for(pair, x), rows_for(pair, validation))
    trainer = Trainer(pair, settings, objective or _objective_of(pair), device, compile, precision, intervals)
    written = folder if trainer.is_main else None
    with _one_at_a_time, locked(written):
        claim(written, resume)  # again, now that nobody else can write it
        with kept_random_state(trainer.device):
            _prepared(trainer, training, validation, optimizer, binarize)
        with kept_random_state(trainer.device, trainer.rank_seed()) if seed is not None else contextlib.nullcontext():
            log = RunLog(written, trainer.pair, keep_checkpoints, config)
            if resume and folder is not None and (folder / CHECKPOINT).exists():
                restore(trainer, read_checkpoint(folder / CHECKPOINT))
            else:
                log.start()
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


# Pyro's handlers, its parameter store and torch's random state belong to the process, so runs in threads take turns.
_one_at_a_time = threading.RLock()


def _prepared(trainer: Trainer, training: Any, validation: Any, optimizer: Any, binarize: Any) -> None:
    """What comes before the first step; lack of memory is told in a sentence."""
    try:
        trainer.prepare(training, validation, optimizer, binarize)
    except (RuntimeError, MemoryError) as error:
        if (fault := explained(error, 1, 0, trainer.settings.batch_size, trainer.device)) is None:
            raise
        raise fault from error


def _checked_objective(objective: Any) -> Any:
    if objective is None or (
        not isinstance(objective, type)
        and (hasattr(objective, "differentiable_loss") or hasattr(objective, "loss_and_grads"))
    ):
        return objective
    if isinstance(objective, type):
        raise InputError(f"objective={objective.__name__} is a class; pass one made from it: {objective.__name__}().")
    raise InputError(f"objective is {kind_of(objective)}; wanted: an ELBO, such as objectives.ELBO().")


def _objective_of(pair: Any) -> ELBO:
    return pair.default_objective() if offers(pair, HasDefaultObjective, "default_objective") else Trace_ELBO()


def _sets(x: Any, validation: Any) -> tuple[Any, Any]:
    """Training and validation data; a named set brings its own validation part."""
    if isinstance(x, str):
        splits = data.load(x)
        x, validation = splits.train, splits.validation if validation is None else validation
    if isinstance(validation, str):
        validation = data.load(validation).validation
    return x, validation
