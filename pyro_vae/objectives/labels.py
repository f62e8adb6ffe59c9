"""Learning where labels are part of the story: a classification term beside a bound, and draws of what can't be moved."""

from __future__ import annotations

from typing import Any

import pyro.infer
import torch
from pyro import poutine

from pyro_vae.errors import InputError, positive_int
from pyro_vae.inference.importance import Draws, summed
from pyro_vae.objectives.base import Objective, Program, not_negative, positional
from pyro_vae.objectives.elbo import ELBO
from pyro_vae.objectives.weights import scale_of, scored
from pyro_vae.pair import Pair, log_prob
from pyro_vae.pair.hooks import final_weight, tell_progress


class Classified(Objective):
    """Another objective's loss − weight · Σ_n log q(y_n | x_n) over the data whose label is known.

    This is the added term of Kingma et al. 2014, eq. 9: without it a classifier that is the guide of y learns from
    unlabelled data alone. Their α = 0.1 · N, which multiplies a mean over the labelled data, is here
    weight = 0.1 · N / N_labelled, as each labelled datum counts by itself: 50 where 100 labels are known of N = 50,000.
    Labelled data that stand r times in the training set want a weight r times smaller.

    Args:
        program: a Pyro program of the batch that observes the known labels, such as `SemiSupervisedVAE.classification`.
        base: the objective that the term is added to; ELBO() by default.
        weight: nats lost per nat of −log q(y | x).
    """

    def __init__(self, program: Program, base: Objective | None = None, weight: float = 1.0):
        super().__init__()
        if not callable(program):
            raise InputError(f"program={program!r} must be a Pyro program of the batch that observes the labels.")
        if base is not None and not isinstance(base, pyro.infer.ELBO):
            raise InputError(f"base={base!r} must be an objective, such as objectives.EnumeratedELBO().")
        self.program = program
        self.base = base or ELBO()
        self.weight = not_negative("weight", weight)

    @property
    def final_weight(self) -> float:
        return final_weight(self.base)

    def progress(self, done: float) -> None:
        tell_progress(self.base, done)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = self.base.differentiable_loss(model, guide, *args, **kwargs)
        return loss - self.weight * poutine.trace(self.program).get_trace(*args, **kwargs).log_prob_sum()


class LeaveOneOut(Objective):
    """The ELBO at K draws, with a gradient for latents of any kind (Kool, van Hoof & Welling 2019, eq. 8).

    What can be reparameterised has that gradient. Of the others, y, it is
    1/K Σ_k (log w_k − 1/(K−1) Σ_{j≠k} log w_j) ∇ log q(y_k | x): each draw is compared with the others of its datum.

    Args:
        num_samples: K, at least 2.

    Raises:
        InputError: if a site lies outside the plate over the data.
    """

    is_bound = True

    def __init__(self, num_samples: int = 2):
        super().__init__()
        self.num_samples = positive_int("num_samples", num_samples)
        if num_samples < 2:
            raise InputError("num_samples=1 leaves LeaveOneOut no other draw to compare with; use at least 2.")

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> torch.Tensor:
        batch = positional(args, kwargs)
        layout = self.layout(model, guide, batch)
        draws = Draws(Pair(model, guide), batch, layout)
        drawn, of_guide = draws.sample(self.num_samples)
        of_model = draws.model_sites(drawn, self.num_samples)
        size = (layout, self.num_samples, len(batch[0]))
        scale = scale_of(next(s for n, s in of_model.items() if n not in drawn), *size, layout.fold_model)
        log_p, _ = scored(of_model, *size, layout.fold_model, scale)
        log_q, _ = scored(of_guide, *size, draws.fold_guide, scale)
        log_w = log_p - log_q
        score: Any = 0.0  # of what has no differentiable draw: the others' gradient takes the path already
        for name in drawn:
            if not of_guide[name]["fn"].has_rsample:
                score = score + summed(log_prob(of_guide[name]), *size, draws.fold_guide)
        now = log_w.detach()
        signal = now - (now.sum(0) - now) / (self.num_samples - 1)
        score = signal * (score - score.detach()) if isinstance(score, torch.Tensor) else 0.0  # in value 0
        return -(scale * (log_w + score).mean(0)).sum()
