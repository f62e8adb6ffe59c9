"""The command line: `pyro-vae train`, `grid`, `evaluate` and `sample`.

Options of models and of `fit` are read off their signatures and docstrings by jsonargparse; torch is imported only
once a command is chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

USAGE = """usage: pyro-vae COMMAND [options]

Variational autoencoders as Pyro model/guide pairs.

commands:
  train         train a VAE, score the test set, write a run folder
                (with no option: on 1,797 scanned digits that need no download)
  grid FILE     train and score all combinations of a YAML file's lists, in one table
  evaluate RUN  score a run's test set again: log p(x), ELBO, diagnostics
  sample RUN    draw new data from a trained run

pyro-vae COMMAND --help explains a command's options; pyro-vae --version prints the version.
Exit status: 0 done, 2 bad input, 1 training that diverged.
"""


class CommandError(Exception):
    """The command line can't be understood; the message is one for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from pyro_vae.saving import package_version

        print(f"pyro-vae {package_version()}")
        return 0
    return _guarded(arguments[0], arguments[1:])


def _guarded(command: str, arguments: list[str]) -> int:
    """Runs a command; what the user got wrong becomes one message and status 2."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": train,
        "grid": grid,
        "evaluate": evaluate,
        "sample": sample,
    }
    from pyro_vae.checks import InputError, nearest
    from pyro_vae.divergence import TrainingDiverged

    sys.path.insert(0, os.getcwd())  # so that a class in a file of the user's can be named
    try:
        if command not in commands:
            raise CommandError(f"there is no command {command!r}.{nearest(command, commands)} See pyro-vae --help.")
        commands[command](arguments)
    except (CommandError, InputError) as error:
        print(f"pyro-vae {command}: {error}" if command in commands else f"pyro-vae: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        print(f"pyro-vae {command}: training stopped. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\npyro-vae {command}: interrupted; the same command with --resume goes on.", file=sys.stderr)
        return 130
    except SystemExit as error:  # --help
        return int(error.code or 0)
    finally:
        sys.path.remove(os.getcwd())
    return 0


# --- train ------------------------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    """`pyro-vae train`: from data and a spec to a scored run folder."""
    config = _train_parser().parse_args(_with_inline_config(arguments))
    from pyro_vae.checks import positive_int, whole_seed

    whole_seed("--seed", config.seed)
    if config.samples != 0:
        positive_int("--samples", config.samples)
    from pyro_vae import data, saving
    from pyro_vae.runs import claim
    from pyro_vae.training import fit

    out = claim(config.out or _default_folder(config.data, config.resume), config.resume)
    splits = data.load(
        config.data, root=config.data_root, pixels=config.pixels, size=config.size, binarize="none", seed=config.seed
    )
    if config.epochs is None:
        config.epochs = max(20, 3000 * config.fit.batch_size // len(splits.train))
    import pyro

    pyro.set_rng_seed(config.seed)
    spec = _model_spec(config, splits)
    pair = saving.build(spec, allow=list(_modules_named(spec)))
    wanted = _plain(config.objective)
    objective = wanted and saving.build(wanted, allow=list(_modules_named(wanted)), name="objective")
    splits = _labelled(splits, pair, config.labels)
    binarize = _binarisation(config.binarize, pair, splits.train)
    if hasattr(pair, "start_at"):
        pair.start_at(_mean(splits.train, pair))
    kept = _kept(config, binarize)
    print(
        f"data {splits.name}: {len(splits.train)} to train, {len(splits.validation)} to validate, "
        f"{len(splits.test)} to test, binarize={binarize}, seed {config.seed}\n{pair!r}",
    )
    result = fit(
        pair,
        splits.train,
        validation=splits.validation,
        objective=objective,
        epochs=config.epochs,
        seed=config.seed,
        binarize=binarize,
        device=config.device,
        progress=not config.quiet,
        out=out,
        resume=config.resume,
        config=kept,
        **config.fit.as_dict(),
    )
    _score_and_show(pair, splits, kept, config.samples, out, not config.quiet, out / "test.json", result)


def _train_parser() -> Any:
    from pyro_vae.data import NAMES
    from pyro_vae.models import ComposedPair
    from pyro_vae.objectives import Objective
    from pyro_vae.training import fit

    parser = _parser(
        "train",
        "Trains a VAE, scores the test set and writes a run folder: config.yaml, model.safetensors, metrics.csv, "
        "test.json, figures/ and a checkpoint. Options may also stand in a YAML file (--config); later ones win. "
        "Components are named by class: --model.prior Mixture --model.prior.components 20; "
        "--model.prior.help Mixture explains one.",
    )
    add = parser.add_argument
    add("--config", type=str, default=None, help="YAML file with these options; a run's config.yaml is one")
    add("--data", type=str, default="digits", help=f"a file, a folder of images, or one of {', '.join(NAMES)}")
    add("--data_root", "--data-root", type=str, default=None, help="folder that holds (or gets) the named data set")
    add("--pixels", type=str, default="unit", help="'unit' scales greys to [0, 1], 'integer' keeps the counts")
    add("--size", type=int, default=None, help="side to which a folder's images are resized")
    add(
        "--binarize",
        type=str,
        default="auto",
        help="none, threshold, static (once, seeded), dynamic (anew each time); auto: dynamic for greys under a Bernoulli",
    )
    add(
        "--labels",
        type=int,
        default=None,
        help="how many training labels a semi-supervised model is shown, as many of each class; all by default",
    )
    add("--out", type=str, default=None, help="run folder; by default a new one under runs/, or with --resume the last")
    add(
        "--epochs",
        type=int,
        default=None,
        help="passes over the training data; by default 3,000 steps, at least 20 passes",
    )
    add("--seed", type=int, default=0, help="of initial weights, batches, noise and the test set's binarisation")
    add("--samples", type=int, default=500, help="importance samples per test datum; 0 leaves the scoring out")
    add("--device", type=str, default=None, help="cpu, cuda or mps; the fastest that is there by default")
    add("--resume", action="store_true", help="go on with an interrupted run")
    add("--quiet", action="store_true", help="no progress bars")
    parser.add_subclass_arguments(ComposedPair, "model", skip={"event_shape"}, instantiate=False, required=False)
    parser.set_defaults({"model": {"class_path": "pyro_vae.models.vae.VAE"}})
    parser.add_subclass_arguments(Objective, "objective", instantiate=False, required=False)
    for action in parser._actions:
        if action.dest in ("model", "objective"):  # jsonargparse's own placeholder takes three lines of the usage
            action.metavar = "CLASS"
    skip = {
        "pair",
        "x",
        "epochs",
        "validation",
        "seed",
        "objective",
        "optimizer",
        "binarize",
        "device",
        "progress",
        "out",
        "resume",
        "config",
    }
    parser.add_function_arguments(fit, "fit", skip=skip)
    return parser


def _with_inline_config(arguments: list[str]) -> list[str]:
    """The arguments with the YAML of `--config FILE` put in their place, less what a run folder adds to it."""
    import yaml

    result = list(arguments)
    for at, word in enumerate(arguments):
        if word != "--config" and not word.startswith("--config="):
            continue
        name = word.partition("=")[2] or (arguments[at + 1] if at + 1 < len(arguments) else "")
        try:
            content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise CommandError(f"--config {name!r} can't be read: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise CommandError(f"--config {name} is not YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(content, dict):
            raise CommandError(f"--config {name} must hold options as 'name: value' lines.")
        content.pop("pyro_vae", None)
        model = content.get("model")
        if isinstance(model, dict) and isinstance(model.get("init_args"), dict):
            model["init_args"].pop("event_shape", None)
        width = 1 if "=" in word else 2
        result[at : at + width] = ["--config_text", yaml.safe_dump(content)]
        break
    return result


def _model_spec(config: Any, splits: Any) -> dict[str, Any]:
    """The model's spec with the data's shape, and a likelihood that suits them where none is named."""
    import inspect

    from pyro_vae import saving

    spec = config.model.as_dict()
    arguments = dict(spec.get("init_args") or {})
    accepted = inspect.signature(saving.named_class(spec["class_path"], list(_modules_named(spec)), "model")).parameters
    if "likelihood" in accepted and arguments.get("likelihood") is None:
        arguments["likelihood"] = {"class_path": f"pyro_vae.likelihoods.{_fitting_likelihood(splits.train)}"}
    return {"class_path": spec["class_path"], "init_args": {"event_shape": list(splits.train.event_shape), **arguments}}


def _labelled(splits: Any, pair: Any, kept: int | None) -> Any:
    """The data with the labels that the pair reads: all for p(x | y); some for training alone where they may be missing."""
    from dataclasses import replace

    from pyro_vae.checks import InputError

    if not getattr(pair, "takes_labels", False):
        if kept is not None:
            raise InputError(f"--labels {kept} has no use: {type(pair).__name__} as it is declared reads no labels.")
        return splits
    hidden = 0 if getattr(pair, "labels_may_miss", False) else None
    if hidden is None and kept is not None:
        raise InputError(f"--labels {kept} hides labels, but {type(pair).__name__} wants one for each datum.")
    return replace(
        splits,
        train=splits.train.with_labels(kept),
        validation=splits.validation.with_labels(hidden),
        test=splits.test.with_labels(hidden),
    )


def _mean(examples: Any, pair: Any) -> Any:
    """The mean of x over up to 16,384 data, missing values and what is beyond a sequence's end left out."""
    import torch

    rows = []
    for _, (x, *further) in examples.batches(1024):
        rows.append(pair.ended(x, *further, beyond=torch.nan) if hasattr(pair, "ended") and further else x)
        if len(rows) == 16:
            break
    return torch.cat(rows).nanmean(0)


def _fitting_likelihood(examples: Any) -> str:
    """Bernoulli for data in [0, 1], as greys are once binarised; Normal for others."""
    _, (x, *_) = next(iter(examples.batches(1024)))
    return "Bernoulli" if x.min() >= 0 and x.max() <= 1 else "Normal"


def _binarisation(wanted: str, pair: Any, examples: Any) -> str:
    """What `auto` stands for: dynamic where a Bernoulli meets greys."""
    from pyro_vae.checks import one_of
    from pyro_vae.data import BINARIZATIONS
    from pyro_vae.likelihoods import Bernoulli

    one_of("--binarize", wanted, ["auto", *BINARIZATIONS])
    if wanted != "auto":
        return wanted
    likelihood = getattr(pair, "likelihood", None)
    _, (x, *_) = next(iter(examples.batches(1024)))
    grey = bool(((x > 0) & (x < 1)).any()) and bool((x >= 0).all()) and bool((x <= 1).all())
    return "dynamic" if grey and isinstance(likelihood, Bernoulli) and not likelihood.relaxed else "none"


def _modules_named(spec: Any) -> Iterator[str]:
    """Modules of the classes that the user's own command names, which it thereby allows."""
    if isinstance(spec, dict):
        if "class_path" in spec:
            yield spec["class_path"].rpartition(".")[0]
        for value in spec.values():
            yield from _modules_named(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _modules_named(value)


def _kept(config: Any, binarize: str) -> dict[str, Any]:
    """The options that describe the run, for its config.yaml; paths are absolute, so that it can be scored from anywhere."""
    from pyro_vae.data import NAMES

    names = ("data", "data_root", "pixels", "size", "labels", "epochs", "seed", "samples")
    kept = {name: config[name] for name in names}
    if config.data not in NAMES and Path(config.data).exists():
        kept["data"] = str(Path(config.data).resolve())
    if config.data_root:
        kept["data_root"] = str(Path(config.data_root).resolve())
    return {**kept, "binarize": binarize, "objective": _plain(config.objective), "fit": config.fit.as_dict()}


def _plain(part: Any) -> dict[str, Any] | None:
    """A part of the parsed options as nested dicts; None where it was not said."""
    return part and (part.as_dict() if hasattr(part, "as_dict") else dict(part))


def _default_folder(source: str, resume: bool) -> str:
    """The next free folder under runs/, or the last one that is there, to go on with."""
    stem = re.sub(r"\W+", "-", Path(source).stem).strip("-") or "run"
    number = 1
    while Path(f"runs/{stem}-{number}").exists():
        number += 1
    return f"runs/{stem}-{max(1, number - 1) if resume else number}"


# --- grid -------------------------------------------------------------------------------------------------------------


def grid(arguments: list[str]) -> None:
    """`pyro-vae grid`: every combination of the lists in a YAML file, trained, scored and put in one table."""
    parser = _parser(
        "grid",
        "Trains and scores every combination of the lists in a YAML file of `pyro-vae train` options: a list multiplies, "
        "unless the option takes one (hidden: [400]), where a list of lists does. Runs that are scored are not run again, "
        "interrupted ones go on. Prints the table, best test log-likelihood first, and keeps it as grid.csv.",
    )
    parser.add_argument("experiment", type=str, help="YAML file, such as examples/grid.yaml")
    parser.add_argument("--out", type=str, default=None, help="folder of the runs; grids/NAME by default")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    config = parser.parse_args(arguments)
    import contextlib
    import io

    import yaml

    from pyro_vae import grid as grids

    try:
        experiment = yaml.safe_load(Path(config.experiment).read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{config.experiment!r} can't be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise CommandError(f"{config.experiment} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(experiment, dict):
        raise CommandError(f"{config.experiment} must hold options as 'name: value' lines.")
    for _, one in grids.expanded(experiment):  # all are looked at before the first is trained
        _train_parser().parse_args(["--config_text", yaml.safe_dump(one)])
    out = Path(config.out or f"grids/{Path(config.experiment).stem}")
    quiet = ["--quiet"] if config.quiet else []

    def train_one(declared: Path, folder: Path, resume: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train(["--config", str(declared), "--out", str(folder), *quiet, *(["--resume"] if resume else [])])

    print(f"{grids.table(grids.run(experiment, out, train_one))}\n\n{out / grids.TABLE}")


# --- evaluate and sample ------------------------------------------------------------------------------------------------


def evaluate(arguments: list[str]) -> None:
    """`pyro-vae evaluate RUN`: scores a run's test set."""
    parser = _parser(
        "evaluate", "Scores a run's own test set by importance sampling, binarised as when it was trained."
    )
    _add_run_options(parser)
    parser.add_argument("--samples", type=int, default=None, help="importance samples per datum; by default the run's")
    parser.add_argument("--json", type=str, default=None, help="write the scores to this file")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    config = parser.parse_args(arguments)
    from pyro_vae import data, saving
    from pyro_vae.checks import InputError, positive_int

    pair = _loaded(config)
    kept = saving.read_config(config.run)
    if "data" not in kept:
        raise InputError(
            f"{config.run} does not say which data it was trained on; score it with log_likelihood() in Python."
        )
    splits = data.load(
        kept["data"],
        root=config.data_root or kept["data_root"],
        pixels=kept["pixels"],
        size=kept["size"],
        binarize="none",
        seed=kept["seed"],
    )
    splits = _labelled(splits, pair, None)
    samples = positive_int("--samples", (kept["samples"] or 500) if config.samples is None else config.samples)
    target = Path(config.json) if config.json else None
    _score_and_show(pair, splits, kept, samples, Path(config.run), not config.quiet, target)


def sample(arguments: list[str]) -> None:
    """`pyro-vae sample RUN`: draws new data from a trained run."""
    parser = _parser("sample", "Draws new data from a trained run, as a picture (.png) or as numbers (.npy, .pt).")
    _add_run_options(parser)
    parser.add_argument("-n", "--num_samples", "--num-samples", type=int, default=64, help="how many")
    parser.add_argument("--mean", action="store_true", help="E[x | z] in place of a draw of x")
    parser.add_argument(
        "--labels", type=int, nargs="+", default=None, help="of the samples, in turn; each label in turn by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--out", type=str, default=None, help="file to write; RUN/samples.png by default")
    config = parser.parse_args(arguments)
    from pyro_vae.checks import one_of, positive_int
    from pyro_vae.sampling import generate

    positive_int("-n", config.num_samples)
    target = Path(config.out) if config.out else Path(config.run) / "samples.png"
    one_of("the ending of --out", target.suffix, [".png", ".npy", ".pt"])
    pair = _loaded(config)
    output, y = "mean" if config.mean else "sample", _labels_in_turn(pair, config)
    drawn = generate(pair, config.num_samples, output=output, condition=y, seed=config.seed)
    _write_samples(drawn.cpu(), target)
    print(f"{config.num_samples} samples of shape {tuple(drawn.shape[1:])}: {target}")


def _labels_in_turn(pair: Any, config: Any) -> Any:
    """y of each sample, or None for a pair that needs none."""
    needed = getattr(pair, "num_conditions", 0)
    if not getattr(pair, "takes_labels", False):
        if config.labels is not None:
            raise CommandError(f"--labels: {config.run} is no model of x and a label.")
        if needed:
            raise CommandError(
                f"{config.run} is a model of x given y, and y is no label; draw from it in Python, with "
                "generate(load(RUN), num_samples, condition=y)."
            )
    if config.labels is None and not needed:
        return None
    import torch

    labels = torch.tensor(config.labels or range(pair.condition.num_labels))
    return labels[torch.arange(config.num_samples) % len(labels)]


def _add_run_options(parser: Any) -> None:
    parser.add_argument("run", type=str, help="run folder that pyro-vae train or save() wrote")
    parser.add_argument(
        "--allow", type=str, nargs="*", default=[], help="modules outside pyro_vae whose classes may load"
    )
    parser.add_argument(
        "--device", type=str, default=None, help="cpu, cuda or mps; the fastest that is there by default"
    )
    parser.add_argument("--data_root", "--data-root", type=str, default=None, help="where the run's data lie now")


def _loaded(config: Any) -> Any:
    from pyro_vae import saving
    from pyro_vae.settings import pick_device

    return saving.load(config.run, allow=config.allow).to(pick_device(config.device))


def _write_samples(drawn: Any, target: Path) -> None:
    import numpy as np
    import torch

    from pyro_vae.files import replacing

    with replacing(target) as temporary:
        if target.suffix == ".png":
            from pyro_vae.plotting import images

            images(drawn / max(1.0, drawn.max().item())).savefig(temporary, format="png", dpi=150)
        elif target.suffix == ".npy":
            with temporary.open("wb") as file:
                np.save(file, drawn.numpy())
        else:
            torch.save(drawn, temporary)


def _score_and_show(
    pair: Any,
    splits: Any,
    kept: dict[str, Any],
    samples: int,
    out: Path,
    progress: bool,
    target: Path | None,
    result: Any = None,
) -> None:
    """Scores the test set, writes the scores, and prints a short table."""
    rows: list[tuple[str, str]] = []
    if samples:
        from pyro_vae.evaluation import elbo_terms, log_likelihood

        frozen = "static" if kept["binarize"] == "dynamic" else kept["binarize"]
        test = splits.test.with_binarize(frozen, kept["seed"])
        score = log_likelihood(pair, test, samples, seed=kept["seed"], progress=progress)
        terms = elbo_terms(pair, test, num_samples=10, seed=kept["seed"])
        misread = _misread(pair, test)
        _write_scores(score, terms, kept, target, misread)
        rows = _score_rows(score, terms, splits.event_shape, frozen, kept["seed"])
        if misread is not None:
            rows.append(("test error", f"{100 * misread:.2f} % of the labels"))
    if result is not None:
        seconds = sum(row["seconds"] for row in result.history)
        rows.append(
            (
                "training",
                f"{len(result.history)} epochs in {seconds:.1f} s on {result.device} "
                f"(stopped because of {result.stopped_because})",
            )
        )
    rows.append(("run folder", str(out)))
    if (out / "figures").is_dir():
        rows.append(("figures", str(out / "figures")))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def _misread(pair: Any, test: Any) -> float | None:
    """The share of the test set whose label a semi-supervised model gets wrong."""
    if not getattr(pair, "labels_may_miss", False) or test.y is None:
        return None
    from pyro_vae.models import classify

    return (classify(pair, test).argmax(-1).cpu() != test.y.cpu()).double().mean().item()


def _score_rows(score: Any, terms: Any, shape: Any, frozen: str, seed: int) -> list[tuple[str, str]]:
    dims = shape.numel()
    how = f", binarised under seed {seed}" if frozen == "static" else ""
    name = "test score (no likelihood)" if score.notes else "test log p(x)"
    sites = ", ".join(f"{site} {value:.2f}" for site, value in terms.sites.items())
    rows = [
        (name, f"{score.mean:.2f} ± {score.stderr:.2f} nats ({score.num_data} data, {score.num_samples} samples{how})"),
        ("  per dimension", f"{-score.mean / dims / 0.6931471805599453:.4f} bits"),
        (
            "test ELBO",
            f"{terms.elbo:.2f} ± {terms.stderr:.2f} nats = reconstruction {terms.reconstruction:.2f} "
            f"− KL {terms.kl:.2f} ({sites})",
        ),
        (
            "Pareto k-hat",
            f"{score.khat_summary}; median effective sample size {score.ess.median().item():.0f} of {score.num_samples}",
        ),
    ]
    if terms.collapsed:
        rows.append(("collapsed latents", f"{', '.join(terms.collapsed)}: a KL below 0.1 nats"))
    return rows + [("note", note) for note in score.notes]


def _write_scores(
    score: Any, terms: Any, kept: dict[str, Any], target: Path | None, misread: float | None = None
) -> None:
    if target is None:
        return
    from pyro_vae.files import write_text

    content = {
        "log_likelihood": {
            "mean": score.mean,
            "stderr": score.stderr,
            "mc_stderr": score.mean_mc_stderr,
            "num_data": score.num_data,
            "num_samples": score.num_samples,
            "khat_above_0.7": (score.khat > 0.7).double().mean().item(),
            "notes": list(score.notes),
        },
        "elbo": terms.elbo,
        "reconstruction": terms.reconstruction,
        "kl": terms.kl,
        "sites": terms.sites,
        "bits_per_dim": terms.bits_per_dim,
        "collapsed": list(terms.collapsed),
        "data": kept["data"],
        "binarize": kept["binarize"],
        "seed": kept["seed"],
    }
    if misread is not None:
        content["error"] = misread
    write_text(target, json.dumps(content, indent=2) + "\n")


# --- parsing ----------------------------------------------------------------------------------------------------------


def _parser(command: str, description: str) -> Any:
    from jsonargparse import ActionConfigFile, ArgumentParser

    class Parser(ArgumentParser):
        """Says what is wrong in one sentence; jsonargparse makes further ones of this class for nested options."""

        outermost = False

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.outermost:
                raise argparse.ArgumentError(None, message)  # jsonargparse adds which class it was
            raise CommandError(_explained(message, self))

    parser = Parser(prog=f"pyro-vae {command}", description=description, allow_abbrev=False)
    parser.outermost = True
    if command == "train":
        parser.add_argument("--config_text", action=ActionConfigFile, help=argparse.SUPPRESS)
    return parser


def _explained(message: str, parser: Any) -> str:
    """jsonargparse's message as one sentence, with the nearest right name."""
    from pyro_vae.checks import nearest

    text = " ".join(str(message).split())
    where = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', text))) or "the config"
    if found := re.search(r"[Uu]nrecognized arguments: (\S+)", text):
        option = found[1].partition("=")[0]
        known = [word for action in parser._actions for word in action.option_strings]
        return f"there is no option {option}.{nearest(option, known)} See --help."
    if found := re.search(r"Option '(\S+)' is not accepted", text):
        return _unknown_argument(found[1], text, where)
    if found := re.search(r"Expected a typing.Literal\[(.*?)\].*Given value: (\S+)", text):
        choices = [word.strip(" '") for word in found[1].split(",")]
        return f"{where}={found[2]!r} is not known.{nearest(found[2], choices)} Choose one of {', '.join(choices)}."
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        return f"{where}: there is no class {found[1]!r}.{nearest(found[1], _class_names())} See --model.help."
    if found := re.search(r"Expected a <class '(int|float)'>\.? Got value: (.+?)(?: Given|$)", text):
        wanted = {"int": "whole number", "float": "number"}[found[1]]
        return f"{where}={found[2]!r} must be a {wanted}."
    return text


def _class_names() -> list[str]:
    from pyro_vae.component import Component
    from pyro_vae.models import ComposedPair
    from pyro_vae.objectives import Objective

    def below(cls: type) -> Iterator[str]:
        for sub in cls.__subclasses__():
            yield sub.__name__
            yield from below(sub)

    return [*below(Component), *below(ComposedPair), *below(Objective)]


def _unknown_argument(option: str, text: str, where: str) -> str:
    """The class whose argument was misspelt, and the arguments that it takes."""
    import inspect
    from importlib import import_module

    from pyro_vae.checks import nearest

    path = re.findall(r"class_path '([\w.]+)'", text)
    if not path:
        return f"{where}: there is no option {option!r}."
    module, _, name = path[-1].rpartition(".")
    known = [p for p in inspect.signature(getattr(import_module(module), name)).parameters if p != "event_shape"]
    if name in ("Prior", "Likelihood", "Guide", "Network"):
        return f"{where}: name a class before its {option!r}, as in --{where} NAME --{where}.{option} VALUE."
    return f"{where}: {name} takes no {option!r}.{nearest(option, known)} It takes {', '.join(known) or 'nothing'}."
