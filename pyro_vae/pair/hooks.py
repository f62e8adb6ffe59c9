"""Hooks: what pairs, objectives and modules may offer, beyond what they must, to whoever trains, scores or draws from them.

A hook is an attribute or a method that is found by its name: no class need be inherited from. Each protocol below
documents one; `docs/hooks.md` shows them in use. The functions at the end look hooks up and say what holds without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.infer import ELBO

# --- of a pair --------------------------------------------------------------------------------------------------------


@runtime_checkable
class ChecksBatches(Protocol):
    """A pair that refuses data which its model cannot have made. Called before training and scoring."""

    def check(self, *batch: torch.Tensor) -> None:
        """Raises an InputError that names the first offending entry of the batch."""


@runtime_checkable
class ChecksConditions(Protocol):
    """A pair of p(x | y) that refuses values of y. Called by `generate`, `reconstruct` and `encode`."""

    def check_condition(self, *further: torch.Tensor) -> None:
        """Raises an InputError that names the first offending entry of the tensors after x."""


@runtime_checkable
class HasDefaultObjective(Protocol):
    """A pair with an objective of its own, which `fit` minimises unless it is given another."""

    def default_objective(self) -> ELBO:
        """A new objective."""


@runtime_checkable
class RecomputesActivations(Protocol):
    """A pair that computes activations again for the gradient, to save memory.

    Attributes:
        recomputes: if true, `fit` runs steps eagerly, since a captured graph would keep the activations.
    """

    recomputes: bool


@runtime_checkable
class FreezesParts(Protocol):
    """A pair with parts that belong to another pair. `fit` leaves them as they are, and says so.

    Attributes:
        frozen: their names; empty if all parts are the pair's own.
    """

    frozen: Sequence[str]


@runtime_checkable
class OptimisesInGuide(Protocol):
    """A pair whose guide takes gradient steps on the model for each datum. Scoring runs it once for a batch, eagerly.

    Attributes:
        optimises: whether it does.
    """

    optimises: bool


@runtime_checkable
class TakesLabels(Protocol):
    """A pair whose batches are (x, y) with y the label of each datum. Read by the command line.

    Attributes:
        takes_labels: whether they are.
    """

    takes_labels: bool


@runtime_checkable
class AllowsMissingLabels(Protocol):
    """A pair that is trained with some labels missing, given as −1, and scored without any. Read by the command line.

    Attributes:
        labels_may_miss: whether labels may be −1.
    """

    labels_may_miss: bool


@runtime_checkable
class KnowsItsData(Protocol):
    """A pair that knows the shape of its data, so that `generate` works before the pair has been fitted.

    Attributes:
        event_shape: shape of one datum.
    """

    event_shape: Sequence[int]


@runtime_checkable
class TakesConditions(Protocol):
    """A pair of p(x | y). Read where a batch is made up.

    Attributes:
        num_conditions: how many tensors follow x in a batch.
    """

    num_conditions: int


@runtime_checkable
class EndsSequences(Protocol):
    """A pair of padded sequences. The command line leaves padding out of the data's mean by it."""

    def ended(self, x: torch.Tensor, lengths: torch.Tensor, beyond: float = 0.0) -> torch.Tensor:
        """x, (N, T, ...), with the value `beyond` at all steps beyond each sequence's length, (N,)."""


@runtime_checkable
class JoinsOutputs(Protocol):
    """A pair whose model observes x at several sites. `generate` and `reconstruct` return what it makes of them."""

    def joined_outputs(self, outputs: dict[str, torch.Tensor], *batch: torch.Tensor) -> torch.Tensor:
        """One tensor in the shape of x, from the values by site."""


@runtime_checkable
class StartsAtMean(Protocol):
    """A pair that can start with the data's mean as its output. Called by `pyro-vae train`."""

    def start_at(self, mean: torch.Tensor) -> bool:
        """Sets the biases; returns whether it did."""


@runtime_checkable
class ModelsTable(Protocol):
    """A pair whose x are rows of a table. Rows come in as DataFrames, and go out as such.

    Attributes:
        table_columns: name, kind and dtype of each column, as `data.kinds.Column.plain` gives them; none for no table.
    """

    table_columns: Sequence[Mapping[str, Any]]


# --- of an objective --------------------------------------------------------------------------------------------------


@runtime_checkable
class WantsNumData(Protocol):
    """An objective that depends on the size of the data set. `fit` sets `num_data` where it is None.

    Attributes:
        num_data: number of data in the set, or None.
    """

    num_data: int | None


@runtime_checkable
class EndsAtWeight(Protocol):
    """An objective with annealed terms. `fit` warns if they do not end at weight 1.

    Attributes:
        final_weight: weight of the annealed terms at the end of the run.
    """

    @property
    def final_weight(self) -> float: ...


# --- of an objective, or of any module of a pair ----------------------------------------------------------------------


@runtime_checkable
class FollowsProgress(Protocol):
    """A schedule: an objective, or any module of a pair, that depends on how much of the run is done."""

    def progress(self, done: float) -> None:
        """Called by `fit` before each step with the fraction of the run that is done, from 0 to 1."""


# --- looked up --------------------------------------------------------------------------------------------------------


def offers(thing: Any, hook: type, method: str) -> bool:
    """Whether `thing` has a hook's method; an attribute of that name that cannot be called is something else."""
    return isinstance(thing, hook) and callable(getattr(thing, method))


def check_batch(pair: Any, *batch: torch.Tensor) -> None:
    """Lets the pair refuse a batch, if it has a `check`."""
    if offers(pair, ChecksBatches, "check"):
        pair.check(*batch)


def check_conditions(pair: Any, *further: torch.Tensor) -> None:
    """Lets the pair refuse what follows x in a batch, if it has a `check_condition`."""
    if offers(pair, ChecksConditions, "check_condition"):
        pair.check_condition(*further)


def takes_labels(pair: Any) -> bool:
    """Whether batches are (x, y) with y a label; false if the pair does not say."""
    return isinstance(pair, TakesLabels) and bool(pair.takes_labels)


def labels_may_miss(pair: Any) -> bool:
    """Whether labels may be −1; false if the pair does not say."""
    return isinstance(pair, AllowsMissingLabels) and bool(pair.labels_may_miss)


def recomputes(pair: Any) -> bool:
    """Whether activations are computed again for the gradient; false if the pair does not say."""
    return isinstance(pair, RecomputesActivations) and bool(pair.recomputes)


def optimises(pair: Any) -> bool:
    """Whether the guide takes gradient steps on the model for each datum; false if the pair does not say."""
    return isinstance(pair, OptimisesInGuide) and bool(pair.optimises)


def frozen_parts(pair: Any) -> Sequence[str]:
    """Names of the parts that `fit` leaves as they are; none if the pair does not say."""
    return pair.frozen if isinstance(pair, FreezesParts) else ()


def num_conditions(pair: Any) -> int:
    """How many tensors follow x in a batch; 0 if the pair does not say."""
    return pair.num_conditions if isinstance(pair, TakesConditions) else 0


def table_columns(pair: Any) -> Sequence[Mapping[str, Any]]:
    """The columns of the table that x is; none if the pair does not say."""
    return pair.table_columns if isinstance(pair, ModelsTable) else ()


def final_weight(objective: Any) -> float:
    """The weight of the annealed terms at the end of the run; 1 if the objective does not say."""
    return objective.final_weight if isinstance(objective, EndsAtWeight) else 1.0


def tell_progress(thing: Any, done: float) -> None:
    """Tells a schedule the fraction of the run that is done; nothing happens to what is none."""
    if offers(thing, FollowsProgress, "progress"):
        thing.progress(done)
