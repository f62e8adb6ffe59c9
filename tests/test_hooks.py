"""Hooks: each is found by its name, and what holds without it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import VAE, HierarchicalVAE, SemiSupervisedVAE, VeryDeepVAE, guides, networks, objectives, priors
from pyro_vae.pair import hooks

PROTOCOLS = [
    thing
    for thing in vars(hooks).values()
    if inspect.isclass(thing) and thing.__module__ == hooks.__name__ and getattr(thing, "_is_protocol", False)
]
SEMI = SemiSupervisedVAE((4,), 2, 3)
VERY_DEEP = VeryDeepVAE((1, 4, 4), "4x1,4d4,1x1", "1x1,4m1", width=4, latent_channels=1, bottleneck=0.5)


def test_each_protocol_is_in_the_documentation():
    page = (Path(__file__).parents[1] / "docs/hooks.md").read_text()
    assert sorted(re.findall(r"`(\w+)` \| (?=`fit`|`generate`|`log|command)", page)) == sorted(
        p.__name__ for p in PROTOCOLS
    )


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.__name__)
def test_an_object_without_attributes_offers_nothing(protocol):
    assert protocol.__doc__
    assert not isinstance(SimpleNamespace(), protocol)


def test_pairs_of_the_library_offer_what_they_should():
    vae = VAE((4,), 2)
    for protocol in (hooks.ChecksBatches, hooks.ChecksConditions, hooks.KnowsItsData, hooks.StartsAtMean):
        assert isinstance(vae, protocol)
    assert not hooks.takes_labels(vae)
    assert hooks.takes_labels(VAE((4,), 2, condition=networks.Labels(3)))
    assert hooks.num_conditions(HierarchicalVAE((4,), [2], condition=networks.Labels(3))) == 1
    assert hooks.takes_labels(SEMI)
    assert hooks.labels_may_miss(SEMI)
    assert isinstance(SEMI, hooks.HasDefaultObjective)
    assert not hooks.recomputes(VERY_DEEP)


def test_objectives_offer_what_they_should():
    assert hooks.final_weight(objectives.Annealed(end=0.5)) == 0.5
    assert hooks.final_weight(objectives.Beta(inner=objectives.Annealed(end=0.5))) == 0.5
    assert hooks.final_weight(Trace_ELBO()) == 1.0
    assert isinstance(objectives.BetaTC(), hooks.WantsNumData)
    annealed = objectives.Annealed(fraction=1.0)
    hooks.tell_progress(objectives.Beta(inner=annealed), 0.25)
    assert annealed.done == 0.25


def test_what_holds_without_a_hook():
    bare: Any = SimpleNamespace()
    hooks.check_batch(bare, torch.zeros(2))
    hooks.check_conditions(bare, torch.zeros(2))
    hooks.tell_progress(bare, 0.5)
    assert not hooks.takes_labels(bare)
    assert not hooks.labels_may_miss(bare)
    assert not hooks.recomputes(bare)
    assert hooks.num_conditions(bare) == 0


def test_an_attribute_that_cannot_be_called_is_no_method():
    module = torch.nn.Module()
    module.progress = 0.5
    assert not hooks.offers(module, hooks.FollowsProgress, "progress")
    family = VAE((4,), 4, prior=priors.Categorical(2), guide=guides.RelaxedCategorical(2)).guide_family
    assert hooks.offers(family, hooks.FollowsProgress, "progress")
