"""The semi-supervised VAE: a label beside the latent vector, known for some data and inferred for the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution

from pyro_vae import data
from pyro_vae.errors import InputError, one_of, positive, positive_int
from pyro_vae.guides import Guide, MeanField
from pyro_vae.likelihoods import Bernoulli, Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.models.matching import refuse_strangers, wanted_by
from pyro_vae.networks import MLP, Network, as_network
from pyro_vae.objectives import EnumeratedELBO, Objective
from pyro_vae.objectives.labels import Classified, LeaveOneOut
from pyro_vae.pair import PairLike, as_pair, device_of, evaluating, kept_random_state, sample_sites
from pyro_vae.priors import Prior, StandardNormal

# The logit of a label that is known not to be: exp(-1e4) is 0 in float64 too, and 0 · 1e4 is still a number.
NEVER = -1e4


class SemiSupervisedVAE(ComposedPair):
    """p(x, y, z) = p(y) p(z) p(x | y, z) with guide q(y | x) q(z | x, y), y a class (Kingma et al. 2014, M2, eq. 2 and 4).

    A batch is (x, y) with y of shape (N,), whole numbers from 0, −1 where the label is not known; or x alone, with no
    label known. The ELBO of a datum is a bound on log p(x, y) where its label is known (eq. 6), on log p(x) where not
    (eq. 7), and so is what `log_likelihood` estimates. M1+M2 (eq. 3) is this pair on another VAE's codes.

    Args:
        event_shape: shape of one datum, such as (784,) or (1, 28, 28).
        latent_dim: number of latent dimensions D beside the label.
        num_classes: number of classes C, each as likely as any other.
        marginalize: whether training sums over unknown labels, at C times the cost of a known one, or draws two of them
            and follows the score function, with the mean of the other draw as its baseline (objectives.LeaveOneOut).
        label_weight: nats lost in training per nat of −log q(y | x) of a known label (eq. 9); the paper's α = 0.1 · N is
            0.1 · N / N_labelled here (see objectives.Classified).
        prior: p(z); StandardNormal() by default.
        likelihood: p(x | params); Bernoulli() by default.
        guide: family of q(z | params); MeanField() by default.
        encoder: network from x and y, one-hot, side by side, to the guide's params; MLP([400]) by default.
        decoder: network from z and y, likewise, to the likelihood's params; MLP([400]) by default.
        classifier: network from x to the C logits of q(y | x); MLP([400]) by default.

    Raises:
        InputError: if sizes are not positive, a component is of the wrong kind or built already, or the guide or the
            prior can't be had given y.
    """

    takes_labels = True  # a batch is (x, y)
    labels_may_miss = True  # y may be −1, and is where labels are what is to be found

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 50,
        num_classes: int = 10,
        marginalize: bool = True,
        label_weight: float = 50.0,
        prior: Prior | None = None,
        likelihood: Likelihood | None = None,
        guide: Guide | None = None,
        encoder: Network | None = None,
        decoder: Network | None = None,
        classifier: Network | None = None,
    ):
        super().__init__(event_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.num_classes = positive_int("num_classes", num_classes)
        self.marginalize = one_of("marginalize", marginalize, [False, True])
        self.label_weight = positive("label_weight", label_weight)
        likelihood = self.place(likelihood or Bernoulli(), Likelihood, "likelihood")
        prior = self.place(prior or StandardNormal(), Prior, "prior")
        family = self.place(guide or MeanField(), Guide, "guide")
        networks = {"encoder": encoder, "decoder": decoder, "classifier": classifier}
        networks = {name: self.place(as_network(part or MLP()), Network, name) for name, part in networks.items()}
        if len({id(part) for part in networks.values()}) < 3:
            raise InputError("encoder, decoder and classifier must be three instances; give each place its own.")
        self._refuse_unfit(prior, family)
        self._assemble(prior, likelihood, family, **networks)

    def _refuse_unfit(self, prior: Prior, family: Guide) -> None:
        if not family.evaluable or type(family).refine is not Guide.refine:
            raise InputError(
                f"guide={family!r} seeks z for each x anew, or knows log q at its own draws alone, which can't be had "
                "for each label; use guides.MeanField() or guides.InverseAutoregressive()."
            )
        if prior.needs_posterior:
            raise InputError(
                f"prior={prior!r} looks through q(z | x), but here it is q(z | x, y); use priors.Mixture()."
            )
        refuse_strangers(prior, family)

    def _assemble(
        self,
        prior: Prior,
        likelihood: Likelihood,
        guide: Guide,
        encoder: Network,
        decoder: Network,
        classifier: Network,
    ) -> None:
        latent, labels = torch.Size([self.latent_dim]), torch.Size([self.num_classes])
        self.likelihood = likelihood.build(event_shape=self.event_shape)
        self.guide_family = guide.build(latent_shape=latent)
        reads = encoder.with_context(likelihood.input_shape, self.num_classes)
        self.encoder = encoder.build(in_shape=reads, out_shape=guide.params_shape)
        self.decoder = decoder.build(
            in_shape=decoder.with_context(latent, self.num_classes),
            out_shape=likelihood.params_shape,
            event_shape=likelihood.event_shape,
            input_shape=likelihood.input_shape,
        )
        self.classifier = classifier.build(in_shape=likelihood.input_shape, out_shape=labels)
        offered = {"latent_shape": latent, "condition_shape": None, "relaxation": guide.relaxation}
        self.prior = prior.build(**wanted_by(prior, offered))
        self.register_buffer("even", torch.zeros(self.num_classes), persistent=False)
        self.register_buffer("classes", torch.arange(self.num_classes), persistent=False)

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """p(x, y, z), x of shape (N, *event_shape), y of shape (N,), −1 where the label is not known."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            label = pyro.sample("y", self.p_y(y))
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.p_x(label, z), obs=x)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """q(y | x) q(z | x, y), where q(y | x) is sure of a label that is known."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x), dim=-1):
            label = pyro.sample("y", self.q_y(x, y), infer=self.enumeration)
            pyro.sample("z", self.q_z(x, label))

    def classification(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """q(y | x) at the labels that are known, for the added term of eq. 9."""
        pyro.module(self.name, self)
        if y is None:
            return
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=y >= 0):
            pyro.sample("label", self.q_y(x), obs=self.one_hot(y.clamp(min=0)))

    def p_y(self, y: torch.Tensor | None = None) -> TorchDistribution:
        """p(y) = 1/C over one-hot vectors; where the label is known, the part of it that lies there, (N,)."""
        if y is None:
            return OneHot(logits=self.even)
        return Cut(self.sure(self.even, y), -math.log(self.num_classes) * (y >= 0).to(self.even))

    def p_x(self, label: torch.Tensor, z: torch.Tensor) -> TorchDistribution:
        """p(x | y, z), batch shape (..., N) for a one-hot label (..., N, C) and z (..., N, latent_dim)."""
        inputs = self.joined(self.decoder, z, torch.Size([self.latent_dim]), label)
        return self.decoder.distribution(inputs, self.likelihood)

    def q_y(self, x: torch.Tensor, y: torch.Tensor | None = None) -> OneHot:
        """q(y | x) over one-hot vectors: the classifier's, or all on the label where it is known, (N,)."""
        logits = self.classifier(self.likelihood.as_input(x))
        return OneHot(logits=logits) if y is None else self.sure(logits, y)

    def q_z(self, x: torch.Tensor, label: torch.Tensor) -> TorchDistribution:
        """q(z | x, y), batch shape (..., N) for a one-hot label (..., N, C)."""
        inputs = self.joined(self.encoder, self.likelihood.as_input(x), self.likelihood.input_shape, label)
        return self.guide_family(self.encoder(inputs))

    def sure(self, logits: torch.Tensor, y: torch.Tensor) -> OneHot:
        """The classes by `logits` (..., C), but the label alone where it is known, (N,)."""
        elsewhere = NEVER * (1 - self.one_hot(y))
        return OneHot(logits=torch.where((y >= 0)[..., None], elsewhere, logits))

    def one_hot(self, y: torch.Tensor) -> torch.Tensor:
        """(N, C), zeros where the label is not known."""
        return (y[..., None] == self.classes).to(self.even)

    @property
    def enumeration(self) -> dict[str, str]:
        """What Pyro is told of y: whether an objective that can sum over it is to do so."""
        return {"enumerate": "parallel"} if self.marginalize else {}

    def default_objective(self) -> Objective:
        """What `fit` minimises: the bound, summed over labels or at draws of them, and the classification term."""
        return Classified(
            self.classification, EnumeratedELBO() if self.marginalize else LeaveOneOut(), self.label_weight
        )

    def check(self, x: torch.Tensor, *further: torch.Tensor) -> None:
        if len(further) > 1:
            raise InputError(f"SemiSupervisedVAE takes x, or x and y, but the batch holds {1 + len(further)} tensors.")
        super().check(x)
        for y in further:
            if y.shape != x.shape[:1]:
                raise InputError(f"y has shape {tuple(y.shape)}, but wanted is one label a datum, ({len(x)},).")
        self.check_condition(*further)

    def check_condition(self, *further: torch.Tensor) -> None:
        for y in further:
            known = (y[:, None] == self.classes).any(-1) | (y == -1)
            if (wrong := (~known).nonzero()).numel():
                at = int(wrong[0])
                raise InputError(
                    f"y[{at}] = {y[at].item()} is no class: wanted are whole numbers from 0 to {self.num_classes - 1}, "
                    "or -1 where the label is not known."
                )


class OneHot(dist.OneHotCategorical):
    """Classes as one-hot vectors, drawn without a look at their values, so that draws can be captured."""

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        drawn = self._categorical.sample(torch.Size(sample_shape))
        return (drawn[..., None] == torch.arange(self.event_shape[0], device=drawn.device)).to(self.logits)


class Cut(TorchDistribution):
    """The part of p(y) that lies where `where` does: log p(y) = log where(y) + log_mass, of which draws are `where`'s.

    It is no normalised density: Σ_y p(y) is exp(log_mass), the probability of what is known of y.

    Args:
        where: where y may lie, normalised.
        log_mass: how much of p(y) that is, in nats, of `where`'s batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, where: OneHot, log_mass: torch.Tensor):
        self.where, self.log_mass = where, log_mass
        super().__init__(where.batch_shape, where.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.where.support

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> Cut:
        return Cut(self.where.expand(batch_shape), self.log_mass.expand(batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> torch.Tensor:
        return self.where.sample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.where.log_prob(value) + self.log_mass


def classify(pair: PairLike, x: Any, *, site: str = "y", batch_size: int = 2048) -> torch.Tensor:
    """q(y | x), the probability of each class, for any pair whose guide draws a class.

    The pair, its modules' modes and torch's random state are left as they were.

    Args:
        pair: model and guide, such as a SemiSupervisedVAE.
        x: N data in any form that `fit` takes; labels beside them are not looked at.
        site: the guide's name for the class.
        batch_size: how many data at once.

    Returns:
        shape (N, C), rows that sum to one.

    Raises:
        InputError: if the guide has no such site, or its distribution is not over classes.
    """
    pair = as_pair(pair)
    positive_int("batch_size", batch_size)
    examples = data.as_examples(x, device=device_of(pair))
    rows = []
    with evaluating(pair), kept_random_state(examples.device):
        for _, batch in examples.batches(batch_size):
            sites = sample_sites(poutine.trace(pair.guide).get_trace(batch[0]), observed=False)
            if site not in sites or not hasattr(sites[site]["fn"], "probs"):
                raise InputError(f"site={site!r} is no class that the guide draws; it draws {', '.join(sites)}.")
            rows.append(sites[site]["fn"].probs)
    return torch.cat(rows)
