"""One network, several priors and likelihoods: a table of test log-likelihoods, in nats per image.

Scores under one likelihood compare priors. Scores under different likelihoods compare nothing where their data
differ: greys as counts 0..16 (Binomial, Categorical), greys as real numbers (Normal: a density), or 0/1 pixels (Bernoulli).
"""

import argparse

import pyro

from pyro_vae import VAE, data, fit, likelihoods, log_likelihood, networks, priors

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--samples", type=int, default=200)
args = parser.parse_args()

PRIORS = {
    "StandardNormal": priors.StandardNormal,
    "Mixture(10)": lambda: priors.Mixture(components=10),
    "Vamp(50)": lambda: priors.Vamp(pseudo_inputs=50),
}
# A likelihood, and the form of the data that it is a density of.
LIKELIHOODS = {
    "Bernoulli": (likelihoods.Bernoulli, {"binarize": "static"}),
    "Binomial(16)": (lambda: likelihoods.Binomial(total_count=16), {"pixels": "integer"}),
    "Categorical(17)": (lambda: likelihoods.Categorical(categories=17), {"pixels": "integer"}),
    "Normal": (likelihoods.Normal, {}),
}


def score(prior, likelihood, form):
    """Test log p(x) of one combination, trained from the same seed."""
    pyro.set_rng_seed(0)
    digits = data.load("digits", **form)
    network = {"encoder": networks.MLP([200], "tanh"), "decoder": networks.MLP([200], "tanh")}
    vae = VAE(digits.event_shape, latent_dim=8, prior=prior(), likelihood=likelihood(), **network)
    fit(vae, digits.train, epochs=args.epochs, lr=2e-3, schedule="cosine", seed=0, progress=False)
    return log_likelihood(vae, digits.test, num_samples=args.samples)


print(f"{'test log p(x), nats per image':32}" + "".join(f"{name:>20}" for name in LIKELIHOODS))
for prior_name, prior in PRIORS.items():
    cells = []
    for likelihood, form in LIKELIHOODS.values():
        result = score(prior, likelihood, form)
        cells.append(f"{result.mean:.2f} ± {result.stderr:.2f}")
    print(f"{prior_name:32}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
