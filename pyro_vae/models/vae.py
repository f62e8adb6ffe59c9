"""The variational autoencoder, put together from a prior, a likelihood, a guide family and two networks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO, Trace_ELBO

from pyro_vae.data.tables import Table
from pyro_vae.errors import InputError, one_of, positive_int
from pyro_vae.guides import Guide, MeanField, Refining
from pyro_vae.likelihoods import Bernoulli, Likelihood
from pyro_vae.models.base import ComposedPair
from pyro_vae.models.found import Found
from pyro_vae.models.matching import built_to, refuse_strangers, wanted_by
from pyro_vae.models.tables import BOUND_SAMPLES, columns_for, table_network
from pyro_vae.networks import MLP, Condition, DeepSets, Network, as_network
from pyro_vae.objectives import IWAE
from pyro_vae.priors import Prior, StandardNormal


class VAE(ComposedPair):
    """p(x, z) = p(z) p(x | decoder(z)) with guide q(z | encoder(x)) (Kingma & Welling 2014).

    Sizes are said once, here; the components are built to them.

    Args:
        event_shape: shape of one datum, such as (784,) or (1, 28, 28).
        latent_dim: number of latent dimensions D.
        prior: p(z); StandardNormal() by default.
        likelihood: p(x | params); Bernoulli() by default.
        guide: family of q(z | params); MeanField() by default.
        encoder: network from data to the guide's params; in Python any torch.nn.Module will do; MLP([400]) by default.
            For a guide that seeks its params for each datum, where it starts; none by default.
        decoder: network from latents to the likelihood's params, likewise; MLP([400]) by default.
        condition: network of y, such as networks.Labels(10), for p(x, z | y) = p(z) p(x | decoder(z, y)) with guide
            q(z | encoder(x, y)) (Kingma et al. 2014, section 2; Sohn et al. 2015); batches are (x, y) then.
        conditional_prior: whether the prior is given y too, p(z | y).

    Raises:
        InputError: if sizes are not positive, a component is of the wrong kind or built already, or a module does not
            map the shapes it should.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int = 20,
        prior: Prior | None = None,
        likelihood: Likelihood | None = None,
        guide: Guide | None = None,
        encoder: Network | None = None,
        decoder: Network | None = None,
        condition: Condition | None = None,
        conditional_prior: bool = False,
    ):
        super().__init__(event_shape)
        self._found = Found()
        self.frozen: tuple[str, ...] = ()
        self.condition_on(condition, conditional_prior)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        likelihood = self.place(likelihood or Bernoulli(), Likelihood, "likelihood")
        family = self.place(guide or MeanField(), Guide, "guide")
        prior = self.place(prior or StandardNormal(), Prior, "prior")
        decoder = self.place(as_network(decoder or MLP()), Network, "decoder")
        if family.amortized or encoder is not None:
            encoder = self.place(as_network(encoder or MLP()), Network, "encoder")
        if encoder is decoder:
            raise InputError("encoder and decoder are one instance; give each place its own.")
        self._assemble(prior, likelihood, family, encoder, decoder)

    def _assemble(self, prior: Prior, likelihood: Likelihood, guide: Guide, encoder: Any, decoder: Network) -> None:
        """Builds what is not built yet to the sizes that all agree on."""
        refuse_strangers(prior, guide)
        latent_shape = torch.Size([self.latent_dim])
        self.likelihood = built_to(likelihood, event_shape=self.event_shape)
        self.guide_family = built_to(guide, latent_shape=latent_shape)
        self.encoder = None
        if not guide.amortized and getattr(encoder, "out_shape", None) not in (None, self.guide_family.params_shape):
            encoder = None  # of another family, whose params say nothing to this one
        if encoder is not None:
            reads = self.joined_shape(encoder, likelihood.input_shape)
            self.encoder = built_to(encoder, "encoder", in_shape=reads, out_shape=guide.params_shape)
        self.decoder = built_to(
            decoder,
            "decoder",
            in_shape=self.joined_shape(decoder, latent_shape),
            out_shape=likelihood.params_shape,
            event_shape=likelihood.event_shape,
            input_shape=likelihood.input_shape,
        )
        if prior.built:  # one that is shared keeps its parameters, and looks through this VAE's guide
            prior = copy.copy(prior)
        offered = {
            "latent_shape": latent_shape,
            "input_shape": likelihood.input_shape if self.encoder is None else self.encoder.in_shape,
            "pseudo_input": self.pseudo_input,
            "posterior": self.encode_input,
            "relaxation": self.guide_family.relaxation,
            "condition_shape": torch.Size([self.condition.num_features])
            if self.conditional_prior and self.condition
            else None,
        }
        self.prior = built_to(prior, **wanted_by(prior, offered))

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """p(x, z) or p(x, z | y), x of shape (N, *event_shape)."""
        self._register()
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.p_z(y))
            pyro.sample("x", self.p_x(z, y), obs=x)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """q(z | x) or q(z | x, y)."""
        self._register()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.q_z(x, y))

    def _register(self) -> None:
        """Tells Pyro of the parameters to train: all, or those of the parts that are not another VAE's."""
        if not self.frozen:
            pyro.module(self.name, self)
            return
        for name, part in self.named_children():
            if name not in {self.kept_as.get(frozen, frozen) for frozen in self.frozen}:
                pyro.module(f"{self.name}.{name}", part)

    def p_z(self, y: torch.Tensor | None = None) -> TorchDistribution:
        """p(z), or p(z | y) where the prior is given y."""
        c = self.context(y)
        return self.prior(c) if self.conditional_prior else self.prior()

    def p_x(self, z: torch.Tensor, y: torch.Tensor | None = None) -> TorchDistribution:
        """p(x | z) or p(x | z, y), batch shape (..., N) for z of shape (..., N, latent_dim)."""
        inputs = self.joined(self.decoder, z, torch.Size([self.latent_dim]), self.context(y))
        return self.decoder.distribution(inputs, self.likelihood)

    def q_z(self, x: torch.Tensor, y: torch.Tensor | None = None) -> TorchDistribution:
        """q(z | x) or q(z | x, y), batch shape (N,)."""
        family, log_joint = self.guide_family, functools.partial(self.log_joint, x, y)
        if not isinstance(family, Refining) or family.amortized or self.training or torch.is_grad_enabled():
            return family.refine(self.params_of(self.encoder_input(x, y)), log_joint)
        search = lambda: family.find(self.params_of(self.encoder_input(x, y)), log_joint)  # noqa: E731
        return family.guide(self._found.of((x, y), self.parameters(), search))

    @property
    def optimises(self) -> bool:
        """Whether the guide takes gradient steps on the model for each datum."""
        return self.guide_family.optimises

    def encoder_input(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """What the encoder reads of x and y."""
        c, inputs = self.context(y), self.likelihood.as_input(x)
        return inputs if self.encoder is None else self.joined(self.encoder, inputs, self.likelihood.input_shape, c)

    def params_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the encoder says of what it reads, (..., *params_shape); zeros where no encoder is wanted."""
        if self.encoder is not None:
            return self.encoder(inputs)
        leading = inputs.shape[: inputs.dim() - len(self.likelihood.input_shape)]
        return inputs.new_zeros(*leading, *self.guide_family.params_shape, dtype=self.guide_family.zero.dtype)

    def encode_input(self, inputs: torch.Tensor) -> TorchDistribution:
        """q(z | x) as the encoder alone sets it; `inputs` is what it reads of x (and y), shape (..., *its in_shape)."""
        return self.guide_family(self.params_of(inputs))

    def pseudo_input(self, free: torch.Tensor) -> torch.Tensor:
        """Real numbers of the shape that the encoder reads, those that stand for x squeezed to where x lies."""
        if self.condition is None:
            return self.likelihood.pseudo_input(free)
        shape, features = self.likelihood.input_shape, self.condition.num_features
        at = -len(free.shape[1:]) if free.dim() == 4 else -1
        x, rest = free.split([free.shape[at] - features, features], dim=at)
        squeezed = self.likelihood.pseudo_input(x.reshape(*free.shape[:1], *shape)).reshape(x.shape)
        return torch.cat([squeezed, rest], dim=at)

    def log_joint(self, x: torch.Tensor, y: torch.Tensor | None, z: torch.Tensor) -> torch.Tensor:
        """log p(x, z) or log p(x, z | y) in nats, (..., N), for z of shape (..., N, latent_dim)."""
        return self.p_z(y).log_prob(z) + self.p_x(z, y).log_prob(x)

    @classmethod
    def for_table(
        cls,
        table: Table,
        latent_dim: int = 10,
        *,
        real: str = "Normal",
        positive: str = "auto",
        count: str = "RoundedLogistic",
        ordinal: str = "Ordinal",
        date: str = "Normal",
        columns: Mapping[Any, str | Likelihood] | None = None,
        hide: float | None = None,
        **parts: Any,
    ) -> VAE:
        """A VAE of a table's rows: a likelihood for each column, standardised by these rows, and networks to match.

        Args:
            table: the training rows, a `data.Table`, or what makes one.
            latent_dim: number of latent dimensions D.
            real, positive, count, ordinal, date: likelihood of the columns of that kind. real and date: Normal, StudentT or
                Laplace; positive: those, LogNormal, SoftplusNormal, Gamma, or "auto", the one of the second and third that
                the column looks like; count: RoundedLogistic, Poisson, NegativeBinomial, or the zero-inflated forms of the
                last two; ordinal: Ordinal or Categorical.
            columns: likelihoods of single columns by name, by word or as an object.
            hide: share of the cells that the encoder is not shown in training, so that it learns to read rows with holes; by
                default 0.2 where under 2 % of the cells are missing, else 0.
            **parts: prior, guide, encoder, decoder and further arguments of `VAE`.

        Raises:
            InputError: on a word that is not known.

        Example:
            >>> import pandas as pd
            >>> from pyro_vae import VAE, data
            >>> table = data.Table(pd.DataFrame({"size": [1.5, 2.0, None], "kind": ["a", "b", "a"]}))
            >>> VAE.for_table(table, latent_dim=2, positive="Gamma").likelihood.parts[1]
            Bernoulli()
        """
        table = table if isinstance(table, Table) else Table(table)
        words = {"real": real, "positive": positive, "count": count, "ordinal": ordinal, "date": date}
        inputs: Any = "set" if isinstance(parts.get("encoder"), DeepSets) else "vector"
        likelihood = columns_for(table, words, columns or {}, inputs, hide)
        parts.setdefault("decoder", table_network())
        if parts.get("guide") is None or parts["guide"].amortized:
            parts.setdefault("encoder", table_network())
        vae = cls(event_shape=(len(table.columns),), latent_dim=latent_dim, likelihood=likelihood, **parts)
        vae.start_at(table.x.nanmean(0))
        return vae

    def default_objective(self) -> ELBO:
        """What `fit` minimises unless it is told: for a table the importance-weighted bound (Mattei & Frellsen 2019), else
        the ELBO."""
        return IWAE(num_samples=BOUND_SAMPLES) if self.table_columns else Trace_ELBO()

    def replace(self, **parts: Prior | Likelihood | Guide | Network) -> VAE:
        """A new VAE with other parts, which shares all else with this one: the same modules, trained as they are.

        With a guide that seeks its params for each datum, such as guides.PerDatum(), what is shared is frozen: the search
        starts at the encoder's params where these fit the new family, and `fit` trains the guide's own start alone.

        Args:
            **parts: prior, likelihood, guide, encoder or decoder; unbuilt.

        Raises:
            InputError: if there is no such part, or a part that stays does not fit a new one in shape.

        Example:
            >>> from pyro_vae import VAE, priors
            >>> vae = VAE(event_shape=(4,), latent_dim=2)
            >>> vae.replace(prior=priors.Mixture(components=3)).decoder is vae.decoder
            True
        """
        kinds = {"prior": Prior, "likelihood": Likelihood, "guide": Guide, "encoder": Network, "decoder": Network}
        for name, part in parts.items():
            one_of("part", name, kinds)
            parts[name] = self.place(as_network(part) if kinds[name] is Network else part, kinds[name], name)
        if self.encoder is None and parts.get("guide", self.guide_family).amortized:
            parts.setdefault("encoder", MLP())
        twin = copy.copy(self)
        vars(twin).pop("_replays", None)
        twin._found = Found()
        twin._modules = dict(self._modules)
        all_parts: dict[str, Any] = {n: parts.get(n, self._modules[self.kept_as.get(n, n)]) for n in kinds}
        twin._assemble(**all_parts)
        seeks = "guide" in parts and not twin.guide_family.amortized
        twin.frozen = tuple(n for n in kinds if n not in parts and all_parts[n] is not None) if seeks else ()
        for part in parts.values():
            part.to(self.likelihood.zero)  # to the dtype and device of this VAE
        return twin
