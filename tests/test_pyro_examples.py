"""Pyro's own examples as users type them: the drop-in SVI gives their losses, step by step, on one seed."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyro_vae.svi import SVI

COMPILED = [
    ("graph", "captured"),
    pytest.param("inductor", "captured, Inductor", marks=pytest.mark.slow),
]


def compare(train, compile):
    """Losses of Pyro's SVI and of ours, and ours; `train(make_svi)` returns losses and the last SVI."""
    results = []
    for make in (pyro.infer.SVI, lambda *args, **kwargs: SVI(*args, **kwargs, compile=compile)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        losses, svis = train(make)
        results.append(torch.tensor(losses, dtype=torch.float64))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=0)
    return svis


# --- the tutorial's VAE (pyro examples/vae/vae.py) --------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, z_dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Linear(64, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)
        self.softplus = nn.Softplus()

    def forward(self, x):
        x = x.reshape(-1, 64)
        hidden = self.softplus(self.fc1(x))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class Decoder(nn.Module):
    def __init__(self, z_dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, 64)
        self.softplus = nn.Softplus()

    def forward(self, z):
        return torch.sigmoid(self.fc21(self.softplus(self.fc1(z))))


class TutorialVAE(nn.Module):
    def __init__(self, z_dim=5, hidden_dim=40):
        super().__init__()
        self.encoder = Encoder(z_dim, hidden_dim)
        self.decoder = Decoder(z_dim, hidden_dim)
        self.z_dim = z_dim

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder.forward(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, 64))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


@pytest.mark.parametrize(("compile", "how"), COMPILED)
def test_tutorial_vae(compile, how):
    def train(make_svi):
        vae = TutorialVAE()
        svi = make_svi(vae.model, vae.guide, pyro.optim.Adam({"lr": 1.0e-3}), loss=Trace_ELBO())
        grey = torch.rand(20, 32, 1, 8, 8)  # greys under a Bernoulli, as the tutorial has them
        return [svi.step(x) for x in grey], [svi]

    (svi,) = compare(train, compile)
    assert svi.how == how


# --- semi-supervised (pyro examples/vae/ss_vae_M2.py) -----------------------------------------------------------------


class SSVAE(nn.Module):
    def __init__(self, output_size=10, input_size=64, z_dim=5, hidden=30, aux_loss_multiplier=46):
        super().__init__()
        self.output_size, self.input_size, self.z_dim = output_size, input_size, z_dim
        self.aux_loss_multiplier = aux_loss_multiplier
        self.encoder_y = nn.Sequential(
            nn.Linear(input_size, hidden), nn.Softplus(), nn.Linear(hidden, output_size), nn.Softmax(dim=-1)
        )
        self.encoder_z = nn.Sequential(nn.Linear(input_size + output_size, hidden), nn.Softplus())
        self.z_loc, self.z_log_scale = nn.Linear(hidden, z_dim), nn.Linear(hidden, z_dim)
        self.decoder = nn.Sequential(
            nn.Linear(z_dim + output_size, hidden), nn.Softplus(), nn.Linear(hidden, input_size), nn.Sigmoid()
        )

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        options = {"dtype": xs.dtype, "device": xs.device}
        with pyro.plate("data"):
            prior_loc = torch.zeros(batch_size, self.z_dim, **options)
            prior_scale = torch.ones(batch_size, self.z_dim, **options)
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            alpha_prior = torch.ones(batch_size, self.output_size, **options) / (1.0 * self.output_size)
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            shape = torch.broadcast_shapes(zs.shape[:-1], ys.shape[:-1])
            joined = torch.cat([zs.expand(*shape, -1), ys.expand(*shape, -1)], -1)
            loc = self.decoder(joined)
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                alpha = self.encoder_y(xs)
                ys = pyro.sample("y", dist.OneHotCategorical(alpha))
            shape = torch.broadcast_shapes(xs.shape[:-1], ys.shape[:-1])
            hidden = self.encoder_z(torch.cat([xs.expand(*shape, -1), ys.expand(*shape, -1)], -1))
            pyro.sample("z", dist.Normal(self.z_loc(hidden), self.z_log_scale(hidden).exp()).to_event(1))

    def model_classify(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            if ys is not None:
                alpha = self.encoder_y(xs)
                with pyro.poutine.scale(scale=self.aux_loss_multiplier):
                    pyro.sample("y_aux", dist.OneHotCategorical(alpha), obs=ys)

    def guide_classify(self, xs, ys=None):
        pass


@pytest.mark.parametrize(("compile", "how"), COMPILED)
def test_semi_supervised_vae(compile, how):
    def train(make_svi):
        ss_vae = SSVAE()
        optimizer = pyro.optim.Adam({"lr": 4.2e-4, "betas": (0.9, 0.999)})
        guide = config_enumerate(ss_vae.guide, "parallel", expand=True)
        # With labels nothing is left to enumerate, of which Pyro warns.
        elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        loss_basic = make_svi(ss_vae.model, guide, optimizer, loss=elbo)
        loss_aux = make_svi(ss_vae.model_classify, ss_vae.guide_classify, optimizer, loss=Trace_ELBO())
        losses = []
        for i in range(20):
            xs = (torch.rand(24, 64) < 0.4).float()
            ys = torch.eye(10)[torch.randint(10, (24,))]
            args = (xs, ys) if i % 2 else (xs,)
            losses += [svi.step(*args) for svi in ((loss_basic, loss_aux) if i % 2 else (loss_basic,))]
        return losses, [loss_basic, loss_aux]

    basic, auxiliary = compare(train, compile)
    assert basic.how == how
    assert auxiliary.how == how


# --- the deep Markov model (pyro examples/dmm.py) ---------------------------------------------------------------------


class Emitter(nn.Module):
    def __init__(self, input_dim, z_dim, emission_dim):
        super().__init__()
        self.lin_z_to_hidden = nn.Linear(z_dim, emission_dim)
        self.lin_hidden_to_hidden = nn.Linear(emission_dim, emission_dim)
        self.lin_hidden_to_input = nn.Linear(emission_dim, input_dim)

    def forward(self, z_t):
        h1 = torch.relu(self.lin_z_to_hidden(z_t))
        h2 = torch.relu(self.lin_hidden_to_hidden(h1))
        return torch.sigmoid(self.lin_hidden_to_input(h2))


class GatedTransition(nn.Module):
    def __init__(self, z_dim, transition_dim):
        super().__init__()
        self.lin_gate_z_to_hidden = nn.Linear(z_dim, transition_dim)
        self.lin_gate_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_proposed_mean_z_to_hidden = nn.Linear(z_dim, transition_dim)
        self.lin_proposed_mean_hidden_to_z = nn.Linear(transition_dim, z_dim)
        self.lin_sig = nn.Linear(z_dim, z_dim)
        self.lin_z_to_loc = nn.Linear(z_dim, z_dim)
        self.lin_z_to_loc.weight.data = torch.eye(z_dim)
        self.lin_z_to_loc.bias.data = torch.zeros(z_dim)

    def forward(self, z_t_1):
        gate = torch.sigmoid(self.lin_gate_hidden_to_z(torch.relu(self.lin_gate_z_to_hidden(z_t_1))))
        proposed = self.lin_proposed_mean_hidden_to_z(torch.relu(self.lin_proposed_mean_z_to_hidden(z_t_1)))
        loc = (1 - gate) * self.lin_z_to_loc(z_t_1) + gate * proposed
        return loc, nn.functional.softplus(self.lin_sig(torch.relu(proposed)))


class Combiner(nn.Module):
    def __init__(self, z_dim, rnn_dim):
        super().__init__()
        self.lin_z_to_hidden = nn.Linear(z_dim, rnn_dim)
        self.lin_hidden_to_loc = nn.Linear(rnn_dim, z_dim)
        self.lin_hidden_to_scale = nn.Linear(rnn_dim, z_dim)

    def forward(self, z_t_1, h_rnn):
        h_combined = 0.5 * (torch.tanh(self.lin_z_to_hidden(z_t_1)) + h_rnn)
        return self.lin_hidden_to_loc(h_combined), nn.functional.softplus(self.lin_hidden_to_scale(h_combined))


def reverse_sequences(mini_batch, seq_lengths):
    reversed_mini_batch = torch.zeros_like(mini_batch)
    for b in range(mini_batch.size(0)):
        length = seq_lengths[b]
        time_slice = torch.arange(length - 1, -1, -1)
        reversed_mini_batch[b, 0:length, :] = torch.index_select(mini_batch[b, :, :], 0, time_slice)
    return reversed_mini_batch


def pad_and_reverse(rnn_output, seq_lengths):
    rnn_output, _ = pad_packed_sequence(rnn_output, batch_first=True)
    return reverse_sequences(rnn_output, seq_lengths)


class DMM(nn.Module):
    """With packed sequences of unequal length, or (`packed=False`) with sequences of one length as they are."""

    def __init__(self, input_dim=12, z_dim=4, emission_dim=8, transition_dim=8, rnn_dim=10, packed=True):
        super().__init__()
        self.emitter = Emitter(input_dim, z_dim, emission_dim)
        self.trans = GatedTransition(z_dim, transition_dim)
        self.combiner = Combiner(z_dim, rnn_dim)
        self.rnn = nn.RNN(input_size=input_dim, hidden_size=rnn_dim, nonlinearity="relu", batch_first=True)
        self.z_0 = nn.Parameter(torch.zeros(z_dim))
        self.z_q_0 = nn.Parameter(torch.zeros(z_dim))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, rnn_dim))
        self.packed = packed

    def model(self, mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=1.0):
        t_max = mini_batch.size(1)
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(mini_batch.size(0), self.z_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, t_max + 1)):
                z_loc, z_scale = self.trans(z_prev)
                with poutine.scale(scale=annealing_factor):
                    z_t = pyro.sample(
                        f"z_{t}",
                        dist.Normal(z_loc, z_scale).mask(mini_batch_mask[:, t - 1 : t].bool()).to_event(1),
                    )
                emission_probs_t = self.emitter(z_t)
                pyro.sample(
                    f"obs_x_{t}",
                    dist.Bernoulli(emission_probs_t).mask(mini_batch_mask[:, t - 1 : t].bool()).to_event(1),
                    obs=mini_batch[:, t - 1, :],
                )
                z_prev = z_t

    def guide(self, mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=1.0):
        t_max = mini_batch.size(1)
        pyro.module("dmm", self)
        h_0_contig = self.h_0.expand(1, mini_batch.size(0), self.rnn.hidden_size).contiguous()
        rnn_output, _ = self.rnn(mini_batch_reversed, h_0_contig)
        rnn_output = pad_and_reverse(rnn_output, mini_batch_seq_lengths) if self.packed else rnn_output.flip(1)
        z_prev = self.z_q_0.expand(mini_batch.size(0), self.z_q_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, t_max + 1)):
                z_loc, z_scale = self.combiner(z_prev, rnn_output[:, t - 1, :])
                with poutine.scale(scale=annealing_factor):
                    z_t = pyro.sample(
                        f"z_{t}",
                        dist.Normal(z_loc, z_scale).mask(mini_batch_mask[:, t - 1 : t].bool()).to_event(1),
                    )
                z_prev = z_t


def sequences(step, packed, size=6, longest=7):
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(2, longest + 1, (size,), generator=generator).sort(descending=True).values
    lengths[0] = longest
    if not packed:
        lengths[:] = longest
    batch = (torch.rand(size, longest, 12, generator=generator) < 0.3).float()
    mask = (torch.arange(longest) < lengths[:, None]).float()
    batch = batch * mask[..., None]
    turned = reverse_sequences(batch, lengths)
    if packed:
        turned = pack_padded_sequence(turned, lengths, batch_first=True)
    return batch, turned, mask, lengths


def train_dmm(packed):
    def train(make_svi):
        dmm = DMM(packed=packed)
        adam_params = {"lr": 3e-4, "betas": (0.96, 0.999), "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 2.0}
        svi = make_svi(dmm.model, dmm.guide, pyro.optim.ClippedAdam(adam_params), loss=Trace_ELBO())
        factors = [0.2 + 0.8 * i / 19 for i in range(20)]  # the KL annealed step by step
        return [svi.step(*sequences(i, packed), factor) for i, factor in enumerate(factors)], [svi]

    return train


def test_deep_markov_model_on_packed_sequences_runs_eagerly_and_says_why(caplog):
    """Lengths are values of a tensor, from which shapes and loops follow."""
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        (svi,) = compare(train_dmm(packed=True), "auto")
    assert svi.how in ("eager", "eager (not captured)")


@pytest.mark.parametrize(("compile", "how"), COMPILED)
def test_deep_markov_model_on_sequences_of_one_length(compile, how):
    (svi,) = compare(train_dmm(packed=False), compile)
    assert svi.how == how
