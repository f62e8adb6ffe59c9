"""Reduced temperature: latents drawn closer to their centre than the model says, for any pair."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import distributions as torch_dist

from pyro_vae.distributions.flows import Pushed
from pyro_vae.errors import InputError, positive


class Tempered(Messenger):
    """Draws latents with their scale multiplied by `temperature` (Kingma & Dhariwal 2018, section 6; Child 2020, figure 1).

    Sites whose value is given, and those that were observed, stay as they are. Densities under it are not the model's.

    Args:
        temperature: 1 leaves the model as it is; smaller gives likelier and less varied data.
    """

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def _pyro_sample(self, msg: Any) -> None:
        given = msg["value"] is not None or msg["is_observed"] or msg["infer"].get("was_observed")
        if self.temperature != 1 and not given and not poutine.util.site_is_subsample(msg):
            msg["fn"] = tempered(msg["fn"], self.temperature, msg["name"])


def tempered(fn: TorchDistribution, temperature: float, name: str = "z") -> TorchDistribution:
    """The distribution with its scale, or that of what it is made of, multiplied by `temperature`.

    Raises:
        InputError: naming the site, if the distribution has no scale.
    """
    if isinstance(fn, torch_dist.MixtureSameFamily):
        return dist.MixtureSameFamily(
            fn.mixture_distribution, tempered(fn.component_distribution, temperature, name), validate_args=False
        )
    inner = {torch_dist.Independent: "base_dist", torch_dist.TransformedDistribution: "base_dist", Pushed: "base"}
    for kind, part in {**inner, dist.MaskedDistribution: "base_dist"}.items():
        if isinstance(fn, kind):
            outer = copy.copy(fn)
            setattr(outer, part, tempered(getattr(fn, part), temperature, name))
            return outer
    twin: Any = copy.copy(fn)
    if isinstance(fn, torch_dist.MultivariateNormal):
        twin._unbroadcasted_scale_tril = fn._unbroadcasted_scale_tril * temperature
        for derived in ("scale_tril", "covariance_matrix", "precision_matrix"):
            twin.__dict__.pop(derived, None)
    elif isinstance(fn, (torch_dist.Normal, torch_dist.Laplace, torch_dist.StudentT)):
        twin.scale = fn.scale * temperature
    else:
        raise InputError(
            f"temperature={temperature:g} scales latents that have a scale, but site {name!r} is drawn from "
            f"{type(fn).__name__}; use temperature=1."
        )
    return twin
