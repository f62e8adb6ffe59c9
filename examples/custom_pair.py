"""Pyro's VAE tutorial, written by hand: a module with `model` and `guide`, trained and scored by the library.

Nothing in the class knows of pyro_vae. Prints the test log-likelihood with its diagnostics, and the ELBO's terms.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import data, elbo_terms, encode, fit, generate, log_likelihood, reconstruct

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="name of a data set, a file, or a folder of images")
parser.add_argument("--data-root", default=None, help="folder of the named data set")
parser.add_argument("--epochs", type=int, default=60)
args = parser.parse_args()


class Encoder(nn.Module):
    def __init__(self, pixels, z_dim, hidden_dim):
        super().__init__()
        self.pixels = pixels
        self.fc1 = nn.Linear(pixels, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)
        self.softplus = nn.Softplus()

    def forward(self, x):
        hidden = self.softplus(self.fc1(x.reshape(-1, self.pixels)))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class Decoder(nn.Module):
    def __init__(self, pixels, z_dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, pixels)
        self.softplus = nn.Softplus()
        self.sigmoid = nn.Sigmoid()

    def forward(self, z):
        return self.sigmoid(self.fc21(self.softplus(self.fc1(z))))


class TutorialVAE(nn.Module):
    def __init__(self, pixels, z_dim=20, hidden_dim=200):
        super().__init__()
        self.pixels, self.z_dim = pixels, z_dim
        self.encoder = Encoder(pixels, z_dim, hidden_dim)
        self.decoder = Decoder(pixels, z_dim, hidden_dim)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img).to_event(1), obs=x.reshape(-1, self.pixels))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


pyro.set_rng_seed(0)
digits = data.load(args.data, root=args.data_root)
vae = TutorialVAE(pixels=digits.event_shape.numel())
fit(vae, digits.train, epochs=args.epochs, binarize="dynamic", seed=0)

test = digits.test.with_binarize("static", seed=0)
print(f"test log p(x): {log_likelihood(vae, test, num_samples=500)}")
print(f"test {elbo_terms(vae, test, num_samples=10)}")

(x,) = test.batch(torch.arange(8))
print(f"generate:    {tuple(generate(vae, 16).shape)}")
print(f"reconstruct: {tuple(reconstruct(vae, x).shape)}")
print(f"encode:      {tuple(encode(vae, x).sample((100,)).shape)} for 100 posterior draws of 8 digits")
