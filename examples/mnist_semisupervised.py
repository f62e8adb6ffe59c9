"""MNIST with 100 labels: the test error of M2 and of M1+M2 (Kingma et al. 2014, table 1: 11.97 ± 1.71 and 3.33 ± 0.14 %).

M2 is the semi-supervised VAE on pixels; M1+M2 is the same on the codes of a VAE, M1, that is trained without labels. Of
60,000 labels ten of each class are kept, others for each seed; test labels are looked at when training is over. Prints the
error of each seed, their mean and range, and the time taken.

    python examples/mnist_semisupervised.py --data-root ~/data                      # M1+M2
    python examples/mnist_semisupervised.py --data-root ~/data --model m2
"""

import argparse
import time

import pyro
import torch

from pyro_vae import VAE, data, encode, fit, likelihoods, networks
from pyro_vae.models.semisupervised import SemiSupervisedVAE, classify

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data-root", default=None, help="folder of MNIST in torchvision's layout")
parser.add_argument("--model", choices=["m2", "m1+m2"], default="m1+m2")
parser.add_argument("--labels", type=int, default=10, help="labels known of each class")
parser.add_argument("--seeds", type=int, default=1, help="how many draws of the labels")
parser.add_argument("--m1-epochs", type=int, default=20)
parser.add_argument("--epochs", type=int, default=30)
args = parser.parse_args()


def flat(examples):
    """Images as rows of 784 bytes, shown as numbers from 0 to 1."""
    return data.Examples(examples.x.reshape(len(examples), -1), levels=255)


def hidden_labels(y, seed):
    """The labels with -1 for all but a few of each class, and where those are."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    known = torch.cat([order[y[order] == digit][: args.labels] for digit in range(10)])
    return torch.full_like(y, -1).index_copy(0, known, y[known]), known


def error(x, y, x_test, likelihood, settings, seed):
    """Per cent of test data misread by the classifier of a semi-supervised VAE of x."""
    pyro.set_rng_seed(seed)
    labels, known = hidden_labels(y, seed)
    # Each batch should hold some labelled data, so they stand in the training set many times.
    rows = torch.cat([torch.arange(len(x)), known.repeat(50)])
    parts = {name: networks.MLP([500]) for name in ("encoder", "decoder", "classifier")}
    # The paper's α = 0.1 · N is 60 nats for each known label, here spread over the 50 places where it stands.
    vae = SemiSupervisedVAE(x.shape[1:], latent_dim=50, label_weight=60 / 50, likelihood=likelihood, **parts)
    training = data.Examples(x[rows], levels=255 if x.dtype == torch.uint8 else 1, extras=[labels[rows]])
    fit(vae, training, epochs=args.epochs, batch_size=200, schedule="cosine", seed=seed, **settings)
    return 100 * (classify(vae, x_test).argmax(1) != y_test).float().mean().item()


mnist = data.load("mnist", root=args.data_root)
x, x_test, y, y_test = flat(mnist.train), flat(mnist.test), mnist.train.y.long(), mnist.test.y
start, busy = time.perf_counter(), time.process_time()
if args.model == "m2":
    inputs, test_inputs, likelihood, settings = x.x, x_test, likelihoods.Bernoulli, {"binarize": "dynamic"}
else:
    pyro.set_rng_seed(0)
    m1 = VAE((784,), latent_dim=50, encoder=networks.MLP([500]), decoder=networks.MLP([500]))
    fit(m1, x, epochs=args.m1_epochs, schedule="cosine", binarize="dynamic", seed=0)
    print(f"M1: {time.perf_counter() - start:.0f} s")
    inputs = encode(m1, x.batch(slice(None))[0]).sample()
    test_inputs = encode(m1, x_test.batch(slice(None))[0]).mean
    likelihood, settings = (lambda: likelihoods.Normal(scale="per datum")), {}

errors = []
for seed in range(args.seeds):
    errors.append(error(inputs, y, test_inputs, likelihood(), settings, seed))
    took, worked = time.perf_counter() - start, time.process_time() - busy
    print(
        f"labels drawn with seed {seed}: {errors[-1]:.2f} % test error, {took:.0f} s ({worked:.0f} CPU seconds) so far"
    )
mean = sum(errors) / len(errors)
print(f"{args.model} with {10 * args.labels} labels: {mean:.2f} % test error, {min(errors):.2f} to {max(errors):.2f}")
