"""Imputation on the four tables of HI-VAE (Nazabal et al. 2020, section 5), beside scikit-learn: errors by kind.

    python examples/reproduce/hi_vae.py FOLDER [--tables Wine Breast] [--rates 20 50] [--masks 1] [--methods mean bayes ours]

FOLDER holds a folder for each table, with data.csv, data_types.csv and MissingXX_k.csv (row and column of the cells to hide,
counted from 1), from https://github.com/probabilistic-learning/HI-VAE. Models are trained on the visible cells of all rows.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyro

from pyro_vae import VAE, data, fit, impute, objectives, priors

KINDS = {"real": "real", "pos": "positive", "count": "count", "cat": "categorical", "ordinal": "ordinal"}


def read(folder: Path, rate: int, mask: int) -> tuple[pd.DataFrame, dict[str, str], np.ndarray, np.ndarray]:
    """A table, its kinds, the cells to hide, and those of them whose value is known."""
    frame = pd.read_csv(folder / "data.csv", header=None).astype(float)
    frame.columns = [f"column {j}" for j in range(1, frame.shape[1] + 1)]
    kinds = dict(zip(frame.columns, map(KINDS.get, pd.read_csv(folder / "data_types.csv")["type"]), strict=True))
    hidden, never = np.zeros(frame.shape, bool), np.zeros(frame.shape, bool)
    for cells, name in ((hidden, f"Missing{rate}_{mask}.csv"), (never, "MissingTrue.csv")):
        if (folder / name).exists():
            cells[tuple(pd.read_csv(folder / name, header=None).to_numpy().T - 1)] = True
    kinds = {n: "binary" if k == "categorical" and frame[n].nunique() == 2 else k for n, k in kinds.items()}
    return frame, kinds, hidden | never, hidden & ~never


def by_mean(frame, kinds, hidden):
    """Each column's mean, or its most frequent value."""
    holed = frame.mask(hidden)
    numbers = [name for name, kind in kinds.items() if kind in ("real", "positive", "count")]
    return holed.fillna({n: holed[n].mean() if n in numbers else holed[n].mode()[0] for n in holed})


def by_bayesian_ridge(frame, kinds, hidden):
    """scikit-learn's IterativeImputer on standardised columns; categories as 0/1 columns, all but the first."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer
    from sklearn.linear_model import BayesianRidge

    holed, blocks = frame.mask(hidden), {}
    for name, kind in kinds.items():
        x = holed[name]
        if kind in ("categorical", "binary"):
            levels = np.sort(x.dropna().unique())
            blocks[name] = np.where(x.isna().to_numpy()[:, None], np.nan, x.to_numpy()[:, None] == levels[1:])
        else:
            blocks[name] = ((x - x.mean()) / x.std()).to_numpy()[:, None]
    wide = IterativeImputer(BayesianRidge(), random_state=0).fit_transform(
        np.concatenate(list(blocks.values()), axis=1)
    )
    filled, at = holed.copy(), 0
    for j, (name, kind) in enumerate(kinds.items()):
        part, at = wide[:, at : at + blocks[name].shape[1]], at + blocks[name].shape[1]
        levels, gone = np.sort(holed[name].dropna().unique()), hidden[:, j]
        if kind in ("categorical", "binary"):
            guess = levels[np.column_stack([1 - part.sum(1), part]).argmax(1)]
        else:
            guess = part[:, 0] * holed[name].std() + holed[name].mean()
            guess = levels[np.abs(guess[:, None] - levels).argmin(1)] if kind == "ordinal" else guess
        filled.loc[gone, name] = guess[gone]
    return filled


def by_forests(frame, kinds, hidden, trees=50, rounds=4):
    """missForest (Stekhoven & Bühlmann 2012): a random forest per column, in rounds, from the mean on."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    filled = by_mean(frame, kinds, hidden)
    for seed in range(rounds):
        for j in hidden.sum(0).argsort():
            gone, name = hidden[:, j], frame.columns[j]
            kind = RandomForestRegressor if kinds[name] in ("real", "positive", "count") else RandomForestClassifier
            rest = filled.drop(columns=name).to_numpy()
            forest = kind(trees, max_features="sqrt", random_state=seed).fit(rest[~gone], frame[name].to_numpy()[~gone])
            filled.loc[gone, name] = forest.predict(rest[gone])
    return filled


def by_vae(frame, kinds, hidden, style="ours"):
    """This package; numbers by E[x | visible], classes by their mode."""
    table = data.Table(frame.mask(hidden), kinds=kinds)
    pyro.set_rng_seed(0)
    options, objective = {}, None
    if style == "miwae":  # Mattei & Frellsen 2019, section 4.2: Student's t, an importance-weighted bound
        options = {"real": "StudentT", "positive": "StudentT"}
        objective = objectives.IWAE(num_samples=10)
    elif style == "hivae":  # Nazabal et al. 2020, section 3: a Gaussian for each of ten categories above
        options = {"prior": priors.Mixture(components=10), "positive": "LogNormal", "count": "Poisson"}
        objective = objectives.ELBO()
    vae = VAE.for_table(table, latent_dim=10, **options)
    batch_size = 256 if len(table) > 2000 else 64
    epochs = max(25, min(150, 1_000_000 // len(table)))
    fit(
        vae,
        table,
        epochs=epochs,
        batch_size=batch_size,
        lr=2e-3,
        schedule="cosine",
        objective=objective,
        seed=0,
        progress=False,
    )
    found = impute(vae, table, 300).imputation
    filled, mean, centre = frame.copy(), found.mean.double().numpy(), found.values.double().numpy()
    for j, column in enumerate(table.columns):
        guess = (
            np.array(column.categories)[centre[:, j].astype(int)] if column.categories else mean[:, j] + column.origin
        )
        filled.loc[hidden[:, j], column.name] = guess[hidden[:, j]]
    inside = []
    low, high = (end.double().numpy() for end in found.interval(0.9))
    for j, column in enumerate(table.columns):
        if not column.categories:
            x, slack = frame[column.name].to_numpy() - column.origin, 1e-5 * frame[column.name].abs().to_numpy()
            inside.append(((low[:, j] - slack <= x) & (x <= high[:, j] + slack))[hidden[:, j]].mean())
    filled.attrs["coverage"] = np.mean(inside) if inside else np.nan
    return filled


METHODS = {
    "mean": by_mean,
    "bayes": by_bayesian_ridge,
    "forests": by_forests,
    "miwae": lambda *a: by_vae(*a, style="miwae"),
    "hivae": lambda *a: by_vae(*a, style="hivae"),
    "ours": by_vae,
}


def errors(frame, filled, kinds, scored) -> dict[str, float]:
    """NRMSE of numbers (over the column's standard deviation), accuracy of classes and levels, distance of levels."""
    found: dict[str, list[float]] = {"nrmse": [], "classes": [], "levels": [], "distance": []}
    for j, (name, kind) in enumerate(kinds.items()):
        x, guess = (t.loc[scored[:, j], name].to_numpy() for t in (frame, filled))
        if kind in ("real", "positive", "count"):
            found["nrmse"].append(np.sqrt(np.mean((x - guess) ** 2)) / frame[name].std(ddof=0))
        else:
            found["levels" if kind == "ordinal" else "classes"].append(np.mean(x == guess))
        if kind == "ordinal":
            levels = np.sort(frame[name].unique())
            steps = np.abs(np.searchsorted(levels, x) - np.searchsorted(levels, guess))
            found["distance"].append(steps.mean() / (len(levels) - 1))
    return {name: float(np.mean(values)) if values else np.nan for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", nargs="+", default=["Wine", "Breast", "Adult", "defaultCredit"])
    parser.add_argument("--rates", nargs="+", type=int, default=[20, 50])
    parser.add_argument("--masks", nargs="+", type=int, default=[1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rows", type=int, default=None, help="take so many rows alone, for a quick look")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", message="Early stopping criterion not reached")
    print("table hidden mask method   nrmse  classes levels distance coverage_90 seconds")
    for table in options.tables:
        for rate in options.rates:
            for mask in options.masks:
                frame, kinds, hidden, scored = read(options.folder / table, rate, mask)
                if options.rows:
                    few = np.arange(len(frame))[:: max(1, len(frame) // options.rows)]
                    frame, hidden, scored = frame.iloc[few], hidden[few], scored[few]
                for name in options.methods:
                    start = time.perf_counter()
                    filled = METHODS[name](frame, kinds, hidden)
                    figures = [*errors(frame, filled, kinds, scored).values(), filled.attrs.get("coverage", np.nan)]
                    shown = " ".join("      " if np.isnan(figure) else f"{figure:.4f}" for figure in figures)
                    print(f"{table} {rate} {mask} {name:8s} {shown} {time.perf_counter() - start:.0f}", flush=True)


if __name__ == "__main__":
    main()
