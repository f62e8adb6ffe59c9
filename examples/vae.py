"""The declarative VAE: says its parts, trains, scores the test set, and draws digits.

Prints a score with its standard error and writes `samples.png` and `reconstructions.png` into a run folder.

    python examples/vae.py                                    # 8×8 scans that come with scikit-learn, half a minute
    python examples/vae.py --data mnist --data-root ~/data    # the real thing
"""

import argparse

import pyro

from pyro_vae import VAE, data, fit, guides, likelihoods, log_likelihood, networks, priors

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="name of a data set, a file, or a folder of images")
parser.add_argument("--data-root", default=None, help="folder of the named data set")
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--latent-dim", type=int, default=10)
parser.add_argument("--out", default=None, help="run folder for weights, metrics and figures")
args = parser.parse_args()

pyro.set_rng_seed(0)
digits = data.load(args.data, root=args.data_root)

vae = VAE(
    event_shape=digits.event_shape,
    latent_dim=args.latent_dim,
    prior=priors.Mixture(components=10),
    likelihood=likelihoods.Bernoulli(),
    guide=guides.MeanField(),
    encoder=networks.MLP([200, 200], activation="tanh"),
    decoder=networks.MLP([200, 200], activation="tanh"),
)
print(vae)

result = fit(
    vae,
    digits.train,
    validation=digits.validation,
    epochs=args.epochs,
    schedule="cosine",
    binarize="dynamic",
    seed=0,
    out=args.out,
)
score = log_likelihood(vae, digits.test, num_samples=500, binarize="static", seed=0)
print(f"{len(result.history)} epochs in {sum(row['seconds'] for row in result.history):.1f} s on {result.device}")
print(f"test log p(x): {score}")
if result.out:
    print(f"figures: {result.out}/figures")
