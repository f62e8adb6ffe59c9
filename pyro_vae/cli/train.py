"""`pyro-vae train`: from data and a spec to a scored run folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro

from pyro_vae import data
from pyro_vae.cli.choices import binarisation, labelled, mean, model_spec, modules_named
from pyro_vae.cli.naming import allowed, named, users_modules
from pyro_vae.cli.parsing import parser_of, with_inline_config
from pyro_vae.cli.scores import score_and_show
from pyro_vae.cli.tables import kinds_for
from pyro_vae.data.opening import memory_limit
from pyro_vae.errors import positive_int, whole_seed
from pyro_vae.models import ComposedPair
from pyro_vae.objectives import Objective
from pyro_vae.pair.hooks import StartsAtMean
from pyro_vae.runs.budget import bounded
from pyro_vae.runs.log import claim
from pyro_vae.runs.specs import build
from pyro_vae.training import fit


def train(arguments: list[str]) -> None:
    """`pyro-vae train`: from data and a spec to a scored run folder."""
    with users_modules([*named(arguments), *allowed(arguments)]):
        _train(train_parser().parse_args(with_inline_config(arguments)))


def _train(config: Any) -> None:
    whole_seed("--seed", config.seed)
    if config.samples != 0:
        positive_int("--samples", config.samples)
    out: Any = claim(config.out or _default_folder(config.data, config.resume), config.resume)
    splits = _loaded(config)
    if config.epochs is None:
        config.epochs = max(20, 3000 * config.fit.batch_size // len(splits.train))
    pair, objective = _built(config, splits)
    splits = labelled(splits, pair, config.labels)
    binarize: Any = binarisation(config.binarize, pair, splits.train)
    if isinstance(pair, StartsAtMean):
        pair.start_at(mean(splits.train, pair))
    kept = _kept(config, binarize)
    print(
        f"data {splits.name}: {len(splits.train)} to train, {len(splits.validation)} to validate, "
        f"{len(splits.test)} to test, binarize={binarize}, seed {config.seed}\n{pair!r}",
    )
    if isinstance(splits.train, data.Table):
        print(splits.train)
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
    score_and_show(pair, splits, kept, config.samples, out, not config.quiet, out / "test.json", result)


def _loaded(config: Any) -> data.Splits:
    """The data that the options name, in three parts."""
    return data.load(
        config.data,
        root=config.data_root,
        pixels=config.pixels,
        size=config.size,
        binarize="none",
        seed=config.seed,
        kinds=kinds_for(config),
        label=config.label,
    )


def _built(config: Any, splits: data.Splits) -> tuple[Any, Any]:
    """The pair and the objective, None where none is named, that the options describe."""
    pyro.set_rng_seed(config.seed)
    spec = model_spec(config, splits)
    with bounded(memory_limit() // 8, "The model"):  # training takes four times the weights, and more
        pair = build(spec, allow=list(modules_named(spec)))
    wanted = _plain(config.objective)
    return pair, wanted and build(wanted, allow=list(modules_named(wanted)), name="objective")


#: Options that are no arguments of the model, the objective or `fit`: names, type, default, help.
OPTIONS: tuple[tuple[tuple[str, ...], type, Any, str], ...] = (
    (("--config",), str, None, "YAML file with these options; a run's config.yaml is one"),
    (("--data",), str, "digits", f"a file, a folder of images, or one of {', '.join(data.NAMES)}"),
    (("--data_root", "--data-root"), str, None, "folder that holds (or gets) the named data set"),
    (("--pixels",), str, "unit", "'unit' scales greys to [0, 1], 'integer' keeps the counts"),
    (("--size",), int, None, "side to which a folder's images are resized"),
    (
        ("--binarize",),
        str,
        "auto",
        "none, threshold, static (once, seeded), dynamic (anew each time); auto: dynamic for greys under a Bernoulli",
    ),
    (
        ("--labels",),
        int,
        None,
        "how many training labels a semi-supervised model is shown, as many of each class; all by default",
    ),
    (("--label",), str, None, "the column of a table that is its label, and no part of what is modelled"),
    (("--out",), str, None, "run folder; by default a new one under runs/, or with --resume the last"),
    (("--epochs",), int, None, "passes over the training data; by default 3,000 steps, at least 20 passes"),
    (("--seed",), int, 0, "of initial weights, batches, noise and the test set's binarisation"),
    (("--samples",), int, 500, "importance samples per test datum; 0 leaves the scoring out"),
    (("--device",), str, None, "cpu, cuda or mps; the fastest that is there by default"),
)
#: Arguments of `fit` that the command gives itself.
GIVEN = "pair x epochs validation seed objective optimizer binarize device progress out resume config"


def train_parser() -> Any:
    """The parser of `pyro-vae train`."""
    parser = parser_of(
        "train",
        "Trains a VAE, scores the test set and writes a run folder: config.yaml, model.safetensors, metrics.csv, "
        "test.json, figures/ and a checkpoint. Options may also stand in a YAML file (--config); later ones win. "
        "Components are named by class: --model.prior Mixture --model.prior.components 20; "
        "--model.prior.help Mixture explains one.",
    )
    for names, kind, default, text in OPTIONS:
        parser.add_argument(*names, type=kind, default=default, help=text)
    parser.add_argument(
        "--kind",
        type=str,
        nargs="+",
        default=None,
        help="kinds of a table's columns, as in age=real grade=ordinal; others are inferred",
    )
    parser.add_argument(
        "--allow", type=str, nargs="*", default=[], help="modules outside pyro_vae that --config may name"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_subclass_arguments(ComposedPair, "model", skip={"event_shape"}, instantiate=False, required=False)
    parser.set_defaults({"model": {"class_path": "pyro_vae.models.vae.VAE"}})
    parser.add_subclass_arguments(Objective, "objective", instantiate=False, required=False)
    for action in parser._actions:
        if action.dest in ("model", "objective"):
            action.metavar = "CLASS"  # jsonargparse's own placeholder takes three lines of the usage
            action._enable_path = False  # a class is named, and no file of that name opened
    parser.add_function_arguments(fit, "fit", skip=set(GIVEN.split()))
    return parser


def _kept(config: Any, binarize: str) -> dict[str, Any]:
    """The options that describe the run, for its config.yaml; paths are absolute, so that it can be scored from anywhere."""
    names = ("data", "data_root", "pixels", "size", "labels", "label", "kind", "epochs", "seed", "samples")
    kept = {name: config[name] for name in names}
    if config.data not in data.NAMES and Path(config.data).exists():
        kept["data"] = str(Path(config.data).resolve())
    if config.data_root:
        kept["data_root"] = str(Path(config.data_root).resolve())
    fit_arguments = config.fit.as_dict()
    if callable(schedule := fit_arguments["schedule"]):
        fit_arguments["schedule"] = f"{schedule.__module__}.{schedule.__qualname__}"
    return {**kept, "binarize": binarize, "objective": _plain(config.objective), "fit": fit_arguments}


def _plain(part: Any) -> dict[str, Any] | None:
    """A part of the parsed options as nested dicts; None where it was not said."""
    return part and (part.as_dict() if hasattr(part, "as_dict") else dict(part))


def _default_folder(source: str, resume: bool) -> str:
    """The next free folder under runs/, or the last one that is there, to go on with."""
    stem = re.sub(r"\W+", "-", Path(source).stem).strip("-")[:80] or "run"
    number = 1
    while Path(f"runs/{stem}-{number}").exists():
        number += 1
    return f"runs/{stem}-{max(1, number - 1) if resume else number}"
