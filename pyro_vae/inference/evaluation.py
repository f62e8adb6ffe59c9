"""One report of a pair on data: what applies is run, and what does not is named with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from pyro_vae import data
from pyro_vae.data import Binarization
from pyro_vae.errors import InputError, first_sentence, one_of, positive_int
from pyro_vae.inference.calibration import calibrate
from pyro_vae.inference.checked import scored_data
from pyro_vae.inference.disentanglement import Factors, disentanglement
from pyro_vae.inference.latents import latent_use
from pyro_vae.inference.likelihood import log_likelihood
from pyro_vae.inference.predictive import posterior_predictive
from pyro_vae.inference.results import Result, Rows
from pyro_vae.inference.terms import elbo_terms
from pyro_vae.pair import ModelAndGuide, PairLike, as_pair


@dataclass(frozen=True)
class Asked:
    """What each part of a report is given.

    Attributes:
        pair: model and guide.
        examples: the data, checked, binarised once, on the pair's device.
        num_samples: importance samples per datum.
        factors: known factors of the data, if any.
        seed: of all draws.
    """

    pair: ModelAndGuide
    examples: Any
    num_samples: int
    factors: Factors | None
    seed: int


def _log_likelihood(asked: Asked) -> Any:
    return log_likelihood(asked.pair, asked.examples, asked.num_samples, seed=asked.seed)


def _elbo_terms(asked: Asked) -> Any:
    return elbo_terms(asked.pair, asked.examples, num_samples=10, seed=asked.seed)


def _latent_use(asked: Asked) -> Any:
    return latent_use(asked.pair, asked.examples, seed=asked.seed)


def _calibrate(asked: Asked) -> Any:
    return calibrate(asked.pair, like=_some(asked, 500), seed=asked.seed)


def _posterior_predictive(asked: Asked) -> Any:
    return posterior_predictive(asked.pair, _some(asked, 1000), seed=asked.seed)


def _disentanglement(asked: Asked) -> Any:
    if asked.factors is None:
        raise InputError("no factors were given")
    return disentanglement(asked.pair, _some(asked, len(asked.examples)), asked.factors, seed=asked.seed)


#: The parts of a report in order, by name. Each is called with what was asked; an InputError says why it does not apply.
PARTS: dict[str, Callable[[Asked], Any]] = {
    "log_likelihood": _log_likelihood,
    "elbo_terms": _elbo_terms,
    "latent_use": _latent_use,
    "calibration": _calibrate,
    "posterior_predictive": _posterior_predictive,
    "disentanglement": _disentanglement,
}


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """All that was found out of a pair on data.

    Attributes:
        parts: the results by the name of the part; each prints, shows and saves by itself.
        left_out: why a part is missing, by its name.
        seconds: how long each part took.
        num_data: N.
    """

    title: ClassVar[str] = "evaluation"

    parts: dict[str, Any]
    left_out: dict[str, str]
    seconds: dict[str, float]
    num_data: int
    notes: tuple[str, ...] = field(default=())

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self.__dict__.get("parts", {}):
            return self.parts[name]
        reason = self.__dict__.get("left_out", {}).get(name)
        raise AttributeError(f"{name} was left out: {reason}" if reason else name)

    def rows(self) -> Rows:
        """Every part's rows under its name, then what was left out and why."""
        rows: Rows = []
        for name, part in self.parts.items():
            rows.append((name, f"({self.seconds[name]:.1f} s)"))
            rows += [(f"  {label}", value) for label, value in part.rows()]
            rows += [("  note", note) for note in part.notes]
        return rows + [(f"left out: {name}", reason) for name, reason in self.left_out.items()]


def evaluate(
    pair: PairLike,
    x: Any,
    num_samples: int = 1000,
    *,
    factors: Factors | None = None,
    parts: Iterable[str] | None = None,
    binarize: Binarization | None = None,
    seed: int = 0,
    on_part: Callable[[str], None] | None = None,
) -> Evaluation:
    """Everything that applies to this pair and these data, in one report.

    A part that does not apply, or fails, is left out, and the report says why. The predictive check uses at most 1,000 of
    the data, and calibration simulates its own.

    Args:
        pair: model and guide.
        x: data in any form that `fit` takes; best data that the pair was not trained on.
        num_samples: importance samples per datum of the likelihood.
        factors: known factors of the data, as `disentanglement` takes them.
        parts: names of the parts to run; all by default.
        binarize: as in `log_likelihood`.
        seed: of all draws; torch's random state is left as it was.
        on_part: called with the name of each part before it is run.

    Raises:
        InputError: on bad data, or a part that is not known.
    """
    pair = as_pair(pair)
    positive_int("num_samples", num_samples)
    names = list(PARTS) if parts is None else [one_of("parts", name, PARTS) for name in parts]
    asked = Asked(pair, scored_data(pair, x, binarize, seed), num_samples, factors, seed)
    results: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in names:
        if on_part is not None:
            on_part(name)
        start = time.perf_counter()
        try:
            results[name] = PARTS[name](asked)
        except InputError as error:
            left_out[name] = " ".join(str(error).split())
        except Exception as error:  # a fault in one part is no reason to lose the others; it is named
            left_out[name] = f"it failed with {type(error).__name__}: {first_sentence(error)}"
        seconds[name] = time.perf_counter() - start
    return Evaluation(results, left_out, seconds, len(asked.examples))


def _some(asked: Asked, most: int) -> Any:
    """At most so many of the data, drawn at random under the seed, as a batch."""
    if not isinstance(asked.examples, data.Examples):
        raise InputError("x is streamed; this part takes data that are held in memory")
    generator = torch.Generator().manual_seed(asked.seed)
    chosen = torch.randperm(len(asked.examples), generator=generator)[:most].sort().values
    return asked.examples.batch(chosen)
