"""Whether latent dimensions stand for known factors of the data: MIG, DCI, SAP, modularity, and linear probes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from pyro_vae.errors import InputError, positive_int, whole_seed
from pyro_vae.inference.results import Result, Rows
from pyro_vae.inference.sampling import Posterior, encode
from pyro_vae.pair import PairLike, as_batch

Factors = Mapping[str, torch.Tensor] | torch.Tensor
NUM_DRAWS = 16  # of z per datum where the posterior's mean has no closed form


@dataclass(frozen=True, repr=False)
class Disentanglement(Result):
    """Scores of codes (N, D) against F factors; each is 1 at best and about 0 for codes that mix all factors.

    Attributes:
        mig: mutual information gap, mean over factors (Chen et al. 2018, eq. 6), on binned codes.
        sap: separated attribute predictability, mean over factors (Kumar et al. 2018, section 3).
        modularity: mean over informative dimensions (Ridgeway & Mozer 2018, section 3); NaN for one factor.
        disentanglement, completeness, informativeness: DCI (Eastwood & Williams 2018, section 2), from the importances of
            forests; informativeness is their held-out score, the share of right answers or R². With one factor all
            dimensions are disentangled by definition; with one code all factors are complete.
        probes: held-out score of a linear predictor from all codes, by factor: share of right answers or R².
        probe_stderr: its standard error over the held-out data, by factor.
        chance: the same score of a guess that ignores the codes, by factor.
        mutual_information: I(z_d; factor), in nats, (D, F); less its bias, 0 if not told from chance.
        importance: (D, F), each factor's column sums to 1.
        num_data, num_held_out: how many data there are, and how many of those scores are computed on.
    """

    title: ClassVar[str] = "codes against known factors"

    mig: float
    sap: float
    modularity: float
    disentanglement: float
    completeness: float
    informativeness: float
    probes: dict[str, float]
    probe_stderr: dict[str, float]
    chance: dict[str, float]
    mutual_information: torch.Tensor
    importance: torch.Tensor
    num_data: int
    num_held_out: int
    notes: tuple[str, ...] = ()

    def rows(self) -> Rows:
        """All scores, and the probes by factor."""
        dci = f"{self.disentanglement:.3f} / {self.completeness:.3f} / {self.informativeness:.3f}"
        rows = [
            (
                "MIG",
                f"{self.mig:.3f} ({self.num_data} data, {len(self.mutual_information)} codes, {len(self.probes)} factors)",
            ),
            ("SAP", f"{self.sap:.3f}"),
            ("modularity", f"{self.modularity:.3f}"),
            ("DCI", f"{dci} (disentanglement / completeness / informativeness)"),
        ]
        for name, score in self.probes.items():
            rows.append(
                (
                    f"linear probe, {name}",
                    f"{score:.3f} ± {self.probe_stderr[name]:.3f} (without codes {self.chance[name]:.3f})",
                )
            )
        return rows


def disentanglement(
    pair: PairLike | None, x: Any, factors: Factors, *, bins: int = 20, seed: int = 0, held_out: float = 0.25
) -> Disentanglement:
    """Scores the posterior means of a pair against known factors of the data.

    Args:
        pair: model and guide; None if `x` are codes already.
        x: a batch of N data, or a tuple of tensors; or codes, (N, D).
        factors: (N,) or (N, F), or by name (N,): whole numbers for classes, floating-point numbers for quantities.
        bins: of equal width that codes and quantities are cut into for mutual information (Locatello et al. 2019).
        seed: of the split, the forests and draws.
        held_out: share of the data that predictors are scored on.

    Raises:
        InputError: if factors and data do not match, a factor does not vary, or there are too few data.
    """
    if positive_int("bins", bins) < 2:
        raise InputError(f"bins={bins} must be at least 2.")
    whole_seed("seed", seed)
    if not 0 < held_out < 1:
        raise InputError(f"held_out={held_out!r} must lie between 0 and 1.")
    codes = _codes(pair, x, seed)
    named = _named(factors, len(codes))
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    cut = max(1, int(held_out * len(codes)))
    split = (order[cut:].numpy(), order[:cut].numpy())
    scale = codes.std(0).clamp_min(1e-12)
    z = ((codes - codes.mean(0)) / scale).numpy()
    information = torch.stack([_information(codes, factor, bins) for factor in named.values()], 1)
    entropies = [_entropy(_binned(factor, bins)) for factor in named.values()]
    forests = [_forest(z, factor, split, seed) for factor in named.values()]
    probes = {name: _probe(z, factor, split) for name, factor in named.items()}
    separated = [_gap(_alone(z, factor, split)) for factor in named.values()]
    importance = torch.stack([weights for weights, _ in forests], 1)
    gaps = [_gap(column) / entropy for column, entropy in zip(information.unbind(1), entropies, strict=True)]
    return Disentanglement(
        sum(gaps) / len(gaps),
        sum(separated) / len(separated),
        _modularity(information),
        *_dci(importance),
        sum(score for _, score in forests) / len(forests),
        {name: score for name, (score, _, _) in probes.items()},
        {name: stderr for name, (_, stderr, _) in probes.items()},
        {name: chance for name, (_, _, chance) in probes.items()},
        information,
        importance,
        len(codes),
        cut,
    )


def _codes(pair: PairLike | None, x: Any, seed: int) -> torch.Tensor:
    """Posterior means of all latents side by side, (N, D), in float64 on the CPU."""
    if pair is None:
        if not isinstance(x, torch.Tensor) or x.dim() != 2:
            raise InputError("Without a pair, x must be codes, a tensor of shape (N, D).")
        return x.detach().double().cpu()
    batch = as_batch(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        posterior: Any = encode(pair, batch)
        if isinstance(posterior, Posterior):
            means = [draws.double().mean(0) for draws in posterior.sample((NUM_DRAWS,)).values()]
            at = [mean.shape.index(len(batch[0])) for mean in means]  # behind the plates inside that over the data
            means = [mean.movedim(place, 0) for mean, place in zip(means, at, strict=True)]
        else:
            means = [_mean(posterior)]
    return torch.cat([mean.detach().double().cpu().reshape(len(batch[0]), -1) for mean in means], 1)


def _mean(posterior: Any) -> torch.Tensor:
    try:
        mean: torch.Tensor = posterior.mean
        if mean.isfinite().all():
            return mean
    except NotImplementedError:
        pass
    draws: torch.Tensor = posterior.sample((NUM_DRAWS,))
    return draws.double().mean(0)


def _named(factors: Factors, num: int) -> dict[str, torch.Tensor]:
    if isinstance(factors, torch.Tensor):
        columns: Sequence[torch.Tensor] = factors.unbind(1) if factors.dim() == 2 else [factors]
        factors = {f"factor {i}": column for i, column in enumerate(columns)}
    named = {name: factor.detach().cpu() for name, factor in factors.items()}
    if not named:
        raise InputError("factors is empty: there is nothing to score codes against.")
    if num < 40:
        raise InputError(f"x holds {num} data; at least 40 are needed, since predictors are scored on held-out ones.")
    for name, factor in named.items():
        if tuple(factor.shape) != (num,):
            raise InputError(
                f"factor {name!r} has shape {tuple(factor.shape)}; ({num},) is wanted, one value for each datum."
            )
        if factor.is_floating_point() and not factor.isfinite().all():
            raise InputError(f"factor {name!r} holds values that are not finite.")
        if (factor == factor[0]).all():
            raise InputError(f"factor {name!r} has one value for all data: there is nothing to predict.")
    return named


# --- mutual information -------------------------------------------------------------------------------------------------


def _binned(values: torch.Tensor, bins: int) -> torch.Tensor:
    """Classes as they are; quantities in bins of equal width over their range."""
    if not values.is_floating_point():
        return values.unique(return_inverse=True)[1]
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp_min(1e-300) * bins).long().clamp(0, bins - 1)


def _entropy(classes: torch.Tensor) -> float:
    share = torch.bincount(classes).double() / len(classes)
    return -torch.special.xlogy(share, share).sum().item()


def _information(codes: torch.Tensor, factor: torch.Tensor, bins: int) -> torch.Tensor:
    """I(z_d; factor) of binned values, (D,), less its mean under independence, df / 2N with df = (rows − 1)(columns − 1).

    What remains counts as 0 if it is within four of the standard deviations under independence, √(2 df) / 2N: 2N times
    the information is about chi-squared there (Miller 1955).
    """
    wanted = _binned(factor, bins)
    size = int(wanted.max()) + 1
    found = []
    for code in codes.unbind(1):
        mine = _binned(code, bins)
        joint = _entropy(mine * size + wanted)
        df = (len(mine.unique()) - 1) * (len(wanted.unique()) - 1)
        told = _entropy(mine) + _entropy(wanted) - joint - df / (2 * len(mine))
        found.append(told if told > 4 * math.sqrt(2 * df) / (2 * len(mine)) else 0.0)
    return torch.tensor(found, dtype=torch.float64)


def _gap(scores: torch.Tensor) -> float:
    """The best less the second best; of one score, the score."""
    top = scores.topk(min(2, len(scores))).values
    return (top[0] - (top[1] if len(top) > 1 else 0.0)).item()


def _modularity(information: torch.Tensor) -> float:
    """1 − Σ_{f not best} I_df² / (I_d best² (F − 1)), mean over dimensions that tell of any factor."""
    if information.shape[1] < 2:
        return math.nan
    squares = information.square()
    best = squares.max(1).values
    told = best > 0
    if not told.any():
        return 0.0
    rest = (squares.sum(1) - best)[told] / (best[told] * (information.shape[1] - 1))
    return (1 - rest).mean().item()


def _dci(importance: torch.Tensor) -> tuple[float, float]:
    """Disentanglement and completeness from importances (D, F)."""

    def one_minus_entropy(rows: torch.Tensor) -> torch.Tensor:
        if rows.shape[1] < 2:
            return torch.ones(len(rows), dtype=rows.dtype)
        share = rows / rows.sum(1, keepdim=True).clamp_min(1e-300)
        return 1 + torch.special.xlogy(share, share).sum(1) / math.log(rows.shape[1])

    weights = importance.sum(1) / importance.sum()
    return (one_minus_entropy(importance) * weights).sum().item(), one_minus_entropy(importance.T).mean().item()


# --- predictors ----------------------------------------------------------------------------------------------------------


def _forest(z: Any, factor: torch.Tensor, split: Any, seed: int) -> tuple[torch.Tensor, float]:
    """Importances of the codes for a factor, (D,), and the held-out score."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    train, test = split
    kind = RandomForestRegressor if factor.is_floating_point() else RandomForestClassifier
    forest = kind(n_estimators=50, min_samples_leaf=2, random_state=seed).fit(z[train], factor.numpy()[train])
    weights = torch.from_numpy(forest.feature_importances_).double()
    if weights.sum() == 0:  # no split helped: no code is more important than another
        weights = torch.full_like(weights, 1 / len(weights))
    return weights, float(forest.score(z[test], factor.numpy()[test]))


def _linear(factor: torch.Tensor, balanced: bool = False) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if factor.is_floating_point():
        return Ridge(alpha=1e-3)
    return LogisticRegression(max_iter=2000, class_weight="balanced" if balanced else None)


def _probe(z: Any, factor: torch.Tensor, split: Any) -> tuple[float, float, float]:
    """Held-out score of a linear predictor from all codes, its standard error, and the score without codes."""
    train, test = split
    y = factor.numpy()
    said = _linear(factor).fit(z[train], y[train]).predict(z[test])
    if factor.is_floating_point():
        spread = ((y[test] - y[train].mean()) ** 2).mean()
        errors = 1 - (y[test] - said) ** 2 / spread
        return float(errors.mean()), float(errors.std() / math.sqrt(len(test))), 0.0
    right = said == y[test]
    common = torch.from_numpy(y[train]).mode().values.item()
    share = float(right.mean())
    return share, math.sqrt(share * (1 - share) / len(test)), float((y[test] == common).mean())


def _alone(z: Any, factor: torch.Tensor, split: Any) -> torch.Tensor:
    """What each code alone tells of a factor by a linear predictor, held out, (D,): R², or accuracy above chance."""
    from sklearn.metrics import balanced_accuracy_score

    train, test = split
    y = factor.numpy()
    scores = []
    for d in range(z.shape[1]):
        predictor = _linear(factor, balanced=True).fit(z[train, d : d + 1], y[train])
        if factor.is_floating_point():
            scores.append(max(0.0, float(predictor.score(z[test, d : d + 1], y[test]))))
        else:
            least = 1 / len(predictor.classes_)
            right = balanced_accuracy_score(y[test], predictor.predict(z[test, d : d + 1]))
            scores.append(max(0.0, (right - least) / (1 - least)))
    return torch.tensor(scores, dtype=torch.float64)
