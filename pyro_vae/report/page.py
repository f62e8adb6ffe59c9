"""A run's page in pictures: how training went, what the model makes up, what it sees again, where data lie in z."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.data.files import replacing
from pyro_vae.data.kinds import Column
from pyro_vae.errors import InputError, positive_int
from pyro_vae.inference.rows import columns_of
from pyro_vae.inference.sampling import Posterior, encode, generated, reconstruct
from pyro_vae.pair import Batch, ModelAndGuide, PairLike, as_pair, device_of, kept_random_state
from pyro_vae.report import plotting, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SAMPLES = 64  # pictures made up
NUM_CODES = 2000  # data shown in latent space, at most
NUM_DRAWS = 8  # z per datum where the posterior's mean has no closed form

logger = logging.getLogger("pyro_vae")


def figures(
    pair: PairLike,
    history: Sequence[dict[str, Any]],
    examples: Any,
    folder: str | Path,
    *,
    num: int = 10,
    seed: int = 0,
) -> dict[str, Path]:
    """Writes curves.png, samples.png, reconstructions.png and latent.png, whole or not at all.

    For a pair of a table, marginals.png and correlations.png stand in the place of the second and third.

    A figure that can't be made for this pair is left out, and the reason is logged. The pair and torch's random state
    are left as they were.

    Args:
        pair: model and guide, trained.
        history: one dict per epoch, as in `fit`'s result.
        examples: the data to show, `data.Examples`; its labels colour the latent space.
        folder: where the figures go; made if missing.
        num: how many data are shown beside their reconstruction.
        seed: of the choice of data and of all draws.

    Returns:
        the files written, by name ("curves", "samples", "reconstructions", "latent").
    """
    pair = as_pair(pair)
    positive_int("num", num)
    page = _Page(pair, history, examples, num, seed)
    draw: dict[str, Callable[[], Figure]] = {
        "curves": page.curves,
        "samples": page.samples,
        "reconstructions": page.reconstructions,
        "latent": page.latent,
    }
    if columns_of(pair):
        draw = {
            "curves": page.curves,
            "marginals": page.marginals,
            "correlations": page.correlations,
            "latent": page.latent,
        }
    written: dict[str, Path] = {}
    for name, make in draw.items():
        path = Path(folder) / f"{name}.png"
        try:
            with kept_random_state(page.device, seed):
                figure = make()
            with replacing(path) as temporary:
                figure.savefig(temporary, format="png", dpi=150)
            written[name] = path
        except Exception as error:  # a picture is never worth losing a trained model for
            reason = " ".join(str(error).split()) or type(error).__name__
            logger.warning("figure %s is left out: %s", path.name, reason)
    return written


class _Page:
    """What the figures share: a choice of the data, and the value that is shown as white."""

    def __init__(self, pair: ModelAndGuide, history: Sequence[dict[str, Any]], examples: Any, num: int, seed: int):
        self.pair, self.history, self.examples, self.num, self.seed = pair, history, examples, num, seed
        self.device = device_of(pair)

    @functools.cached_property
    def index(self) -> torch.Tensor:
        """Which data are shown, in random order."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(self.examples), generator=generator)[: max(self.num, NUM_CODES)]

    @functools.cached_property
    def batch(self) -> Batch:
        return tuple(self.examples.batch(self.index))

    @functools.cached_property
    def labels(self) -> torch.Tensor | None:
        """A class per datum of the batch, if the data have some."""
        labels = getattr(self.examples, "y", None)
        return None if labels is None or labels.dim() != 1 else labels.cpu()[self.index]

    @functools.cached_property
    def vmax(self) -> float:
        """What is shown as white: 1, or the largest value of data such as grey levels 0 to 16."""
        return max(1.0, float(self.batch[0].max()))

    def curves(self) -> Figure:
        return plotting.curves(self.history)

    def samples(self) -> Figure:
        condition = tuple(_repeated(tensor, NUM_SAMPLES) for tensor in self.batch[1:]) or None
        drawn = generated(self.pair, NUM_SAMPLES, "mean", 1.0, condition, self.batch, self.seed)
        return plotting.images(_only(drawn), vmax=self.vmax)

    def reconstructions(self) -> Figure:
        few = tuple(tensor[: self.num] for tensor in self.batch)
        again = _only(reconstruct(self.pair, few, seed=self.seed))
        return plotting.reconstructions(few[0], again, vmax=self.vmax)

    @functools.cached_property
    def rows(self) -> tuple[torch.Tensor, torch.Tensor, tuple[Column, ...]]:
        """Real rows, sampled ones, and their columns."""
        sampled = generated(self.pair, NUM_CODES, "sample", 1.0, None, None, self.seed)
        return self.batch[0], _only(sampled), columns_of(self.pair)

    def marginals(self) -> Figure:
        return tables.marginals(*self.rows)

    def correlations(self) -> Figure:
        return tables.correlations(*self.rows)

    def latent(self) -> Figure:
        codes = posterior_means(self.pair, tuple(tensor[:NUM_CODES] for tensor in self.batch))
        labels = None if self.labels is None else self.labels[: len(codes)]
        if codes.shape[1] <= 2:
            return plotting.latent(codes, labels)
        plane, explained = _principal_plane(codes)
        return plotting.latent(plane, labels, explained=explained, method="pca")


def posterior_means(pair: PairLike, batch: Batch) -> torch.Tensor:
    """E[z | x] of the guide's first latent site as one row per datum, (N, D), on the CPU.

    Where the mean has no closed form, or the guide has several sites, it is estimated from 8 draws.

    Raises:
        InputError: if that site has no row per datum.
    """
    posterior: Any = encode(pair, batch)
    if isinstance(posterior, Posterior):
        means = posterior.sample((NUM_DRAWS,))[posterior.sites[0]].double().mean(0)
    else:
        try:
            means = posterior.mean
        except NotImplementedError:
            means = torch.tensor(torch.nan)
        if not means.isfinite().all():  # torch's way to say that a categorical or a Cauchy has none
            means = posterior.sample((NUM_DRAWS,)).double().mean(0)
    if not means.dim() or len(means) != len(batch[0]):
        raise InputError(f"the guide's first latent has shape {tuple(means.shape)}, not one row for each datum")
    return means.detach().to("cpu", torch.float64).reshape(len(means), -1)


def _principal_plane(codes: torch.Tensor) -> tuple[torch.Tensor, list[float] | None]:
    """Codes on their first two principal components, (N, 2), and each one's share of the variance."""
    import numpy as np
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore", divide="ignore"):  # codes that are all the same have no variance to share
        plane = pca.fit_transform(codes.numpy())
    shares = pca.explained_variance_ratio_
    return torch.from_numpy(plane), shares.tolist() if np.isfinite(shares).all() else None


def _only(outputs: torch.Tensor | dict[str, torch.Tensor]) -> torch.Tensor:
    if isinstance(outputs, dict):
        raise InputError(
            f"the model observes several sites ({', '.join(outputs)}), and which is a picture is not known"
        )
    return outputs


def _repeated(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """The first `size` rows, from the start again where there are fewer."""
    return tensor[torch.arange(size, device=tensor.device) % len(tensor)]
