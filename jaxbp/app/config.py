"""A run as one frozen struct: from a TOML file and flags, to a TOML file.

Six sections and a sweep. `data`, `model` and `optimizer` are one struct a kind, chosen by their `name`
out of a registry (`DATA`, `MODELS`, `OPTIMIZERS`), so that each kind has its own fields and no others.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from jaxbp.app.data import DATA, Data, Digits
from jaxbp.app.networks import MLP, MODELS, Model
from jaxbp.app.optimizers import OPTIMIZERS, SGD, Optimizer
from jaxbp.app.schema import (
    Count,
    NotNegative,
    Origin,
    Rate,
    Section,
    Share,
    Whole,
    build,
    choose,
    commented_toml,
    to_toml,
    unknown,
)
from jaxbp.layer import InputError
from jaxbp.losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy, SquaredError

REGISTRIES: dict[str, Mapping[str, type[Any]]] = {"data": DATA, "model": MODELS, "optimizer": OPTIMIZERS}
DEFAULT = "digits_mlp"
LOSSES: dict[str, Loss] = {
    "cross_entropy": SoftmaxCrossEntropy(),
    "sigmoid_cross_entropy": SigmoidCrossEntropy(),
    "squared_error": SquaredError(),
}


class TrainConfig(Section, frozen=True, kw_only=True):
    """The loop."""

    loss: Literal["cross_entropy", "sigmoid_cross_entropy", "squared_error"] = "cross_entropy"
    """what is made small"""
    label_smoothing: Share = 0.0
    """share of every target that cross_entropy spreads evenly over all classes, held-out ones too"""
    epochs: Count = 40
    """stop after this many passes over the data"""
    batch_size: Count = 32
    """examples a step"""
    drop_last: bool = False
    """leave those out that are left over, which else make a last, smaller step"""
    stop_below: NotNegative = 0.0
    """ε: stop when the loss of an epoch is below this; 0 for never"""
    validation_share: Share = 0.0
    """share of the examples to train on that is set apart to choose the epoch whose parameters are kept,
    that with the lowest loss on it; 0 for none: those of the last epoch are kept"""
    patience: Whole = 0
    """stop after so many epochs without a lower validation loss; 0 for never"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """dtype of activations and errors; parameters, optimizer and loss are float32 all the same"""
    shuffle: bool = True
    """take the examples in a new order every epoch"""
    shift: Whole = 0
    """move every training image by up to so many pixels, another way each time"""
    flip: bool = False
    """mirror every other training image left to right"""
    seed: Whole = 0
    """of initial weights, order and dropout"""
    prove: bool = True
    """first compare the gradient by hand with jax.grad on the first batch"""
    checkpoint_every: Whole = 10
    """epochs between checkpoints; 0 for only the last"""
    checkpoint_minutes: NotNegative = 5.0
    """minutes between checkpoints inside a long epoch; 0 for none"""
    accumulate: Count = 1
    """go over each batch in so many pieces, to hold less; one update a batch all the same"""
    steps_per_call: Count = 50
    """a longer epoch takes several calls: it shows progress, stops and resumes between them"""
    devices: Whole = 0
    """share each batch out among so many devices; 0 for all that divide it"""


class Private(Section, frozen=True, kw_only=True):
    """DP-SGD: parameters from which no single example can be told."""

    clip_examples: NotNegative = 0.0
    """C: the largest norm of one example's gradient; 0 for no limit, and nothing private"""
    noise: NotNegative = 0.0
    """σ: standard deviation of the noise on the sum of a batch's gradients, in units of C"""
    epsilon: NotNegative = 0.0
    """the budget ε that all epochs together may spend, in place of noise, which is then found for it"""
    delta: Share = 1e-5
    """δ at which ε holds; below one over the number of examples"""
    sampling: Literal["poisson", "shuffle"] = "poisson"
    """poisson: each example joins a batch by a draw of its own; shuffle: costs far more ε"""


class Run(Section, frozen=True, kw_only=True):
    """Where the results go."""

    folder: str = "runs"
    """the folder of all runs"""
    name: str = ""
    """the run's own folder in it; by default the name of the config"""
    overwrite: bool = False
    """replace a run that is already there"""
    cache: bool = True
    """keep compiled programs in the user's cache folder, so that the next run starts sooner"""
    attributions: bool = False
    """of images: draw what in some held-out ones speaks for their class; a second or two to compile"""


class Sweep(Section, frozen=True, kw_only=True):
    """Train every seed with every learning rate at once; both lists empty for no sweep."""

    seeds: tuple[Whole, ...] = ()
    """one member each; empty for train.seed alone"""
    learning_rates: tuple[Rate, ...] = ()
    """one member each; empty for optimizer.learning_rate alone"""


class Config(Section, frozen=True, kw_only=True):
    """Train a network and write a run folder. CONFIG is a TOML file; every field of it is a flag."""

    data: Data = Digits()
    model: Model = MLP()
    optimizer: Optimizer = SGD()
    train: TrainConfig = TrainConfig()
    private: Private = Private()
    run: Run = Run()
    sweep: Sweep = Sweep()

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self.run.folder) / self.run.name

    @property
    def is_sweep(self) -> bool:
        return bool(self.sweep.seeds or self.sweep.learning_rates)

    def sections(self) -> dict[str, dict[str, Any]]:
        """Plain values, section by section."""
        return {name: msgspec.structs.asdict(getattr(self, name)) for name in SECTIONS}

    def to_toml(self) -> str:
        return to_toml(self.sections())

    def to_commented_toml(self) -> str:
        """The same, every field with its meaning, its choices and its default."""
        return commented_toml({name: getattr(self, name) for name in SECTIONS}, REGISTRIES)


# What `jaxbp train` trains without a CONFIG; the same as configs/digits_mlp.toml, which may not be there.
DIGITS_MLP = Config(
    model=MLP(dropout=0.4),
    optimizer=SGD(learning_rate=0.3),
    train=TrainConfig(epochs=100),
    run=Run(name=DEFAULT),
)

SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "model": Model,
    "optimizer": Optimizer,
    "train": TrainConfig,
    "private": Private,
    "run": Run,
    "sweep": Sweep,
}


def from_sections(raw: Mapping[str, Any], origin: Origin) -> Config:
    """A config from plain values, checked field by field and then as a whole."""
    for key in raw:
        if key not in SECTIONS:
            raise InputError(unknown(origin(key), "section", key, SECTIONS))
    parts = {}
    for section, cls in SECTIONS.items():
        values = raw.get(section, {})
        if section in REGISTRIES and isinstance(values, Mapping):
            cls = choose(REGISTRIES[section], values, origin(f"{section}.name"))
        parts[section] = build(cls, values, origin, section)
    config = Config(**parts)
    _check(config, origin)
    return config


def _check(config: Config, origin: Origin) -> None:
    """What no single field can say."""
    output, loss = getattr(config.model, "output", "logits"), config.train.loss
    if output != "logits" and loss != "squared_error":
        raise InputError(
            f'{origin("model.output")}: expected "logits", since train.loss = "{loss}" applies its own, '
            f'got "{output}"'
        )
    if config.train.label_smoothing and loss != "cross_entropy":
        raise InputError(
            f'{origin("train.label_smoothing")}: expected 0, since train.loss is "{loss}" and not '
            f'"cross_entropy", got {config.train.label_smoothing:g}'
        )
    train = config.train
    if train.patience and not train.validation_share:
        raise InputError(
            f"{origin('train.patience')}: expected train.validation_share above 0, since what is held "
            "out is no judge of when to stop: the result on it would be too good"
        )
    if train.validation_share and config.is_sweep:
        raise InputError(f"{origin('train.validation_share')}: expected 0 for a sweep")
    if config.optimizer.warmup > config.train.epochs:
        raise InputError(
            f"{origin('optimizer.warmup')}: expected at most train.epochs = {config.train.epochs}, "
            f"got {config.optimizer.warmup}"
        )
    _check_private(config, origin)
    if config.run.name in (".", "..") or "/" in config.run.name:
        raise InputError(f'{origin("run.name")}: expected the name of a folder, got "{config.run.name}"')


def _check_private(config: Config, origin: Origin) -> None:
    wanted = config.private
    if (wanted.noise or wanted.epsilon) and not wanted.clip_examples:
        field = "noise" if wanted.noise else "epsilon"
        raise InputError(
            f"{origin(f'private.{field}')}: expected private.clip_examples too, which says how much one "
            "example may change"
        )
    if wanted.noise and wanted.epsilon:
        raise InputError(
            f"{origin('private.epsilon')}: expected 0, since private.noise is given, "
            f"got {wanted.epsilon:g}"
        )
    if not wanted.delta:
        raise InputError(f"{origin('private.delta')}: expected a positive number, got 0")
    if wanted.clip_examples and config.is_sweep:
        raise InputError(
            f"{origin('private.clip_examples')}: expected 0 in a sweep (the best of several runs cost "
            f"more ε than each of them), got {wanted.clip_examples:g}"
        )
    if wanted.clip_examples and config.train.validation_share:
        raise InputError(
            f"{origin('train.validation_share')}: expected 0 in a private run: which epoch is kept would "
            "tell of the examples that chose it"
        )


def read_toml(path: Path) -> dict[str, Any]:
    """The sections of a TOML file, not yet checked."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def read_config(path: Path) -> Config:
    """The config in a TOML file; the run is named after it unless it says otherwise."""
    config = from_sections(read_toml(path), lambda field: f"{path}: {field}")
    return named(config, path.stem)


def named(config: Config, name: str) -> Config:
    """`config` with its run called `name` unless it has a name."""
    if config.run.name:
        return config
    return msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, name=name))


def listed_configs() -> dict[str, Path]:
    """The TOML files that a name stands for: those in `configs/` here, then those that came with jaxbp.

    A wheel holds them beside the code, as `jaxbp/configs`; a checkout at its top level.
    """
    package = Path(__file__).parents[1]
    shipped = package / "configs"
    folders = Path("configs"), shipped if shipped.is_dir() else package.parent / "configs"
    return {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.toml"))}


def find_config(argument: str | None) -> Path | None:
    """The file of a CONFIG argument: a path, or a name out of `listed_configs`.

    None for the default config where there is no such file: `DIGITS_MLP` is the same.
    """
    listed = listed_configs()
    if argument is None:
        return listed.get(DEFAULT)
    given = Path(argument)
    if given.is_file() or given.suffix == ".toml":
        return given
    if argument in listed:
        return listed[argument]
    if argument == DEFAULT:
        return None
    hint = f" or one of {', '.join(sorted(listed))}" if listed else ""
    raise InputError(f"{argument}: no such config, expected a TOML file{hint}")


def same_run(a: Config, b: Config, may_differ: Collection[str] = ()) -> Sequence[str]:
    """The fields in which a resumed run differs from the one it resumes, other than those it may."""
    free = {
        *may_differ,
        "run.folder",
        "run.name",
        "run.overwrite",
        "run.cache",
        "run.attributions",
        "train.checkpoint_every",
        "train.checkpoint_minutes",
        "train.devices",
        "train.prove",
        "train.patience",
        "train.stop_below",
    }
    found_for = a.private.epsilon or b.private.epsilon  # noise for a number of epochs
    if a.optimizer.schedule == b.optimizer.schedule == "constant" and not found_for:
        free.add("train.epochs")
    found = []
    for section, values in a.sections().items():
        other = b.sections()[section]
        for key in values | other:
            if f"{section}.{key}" not in free and values.get(key) != other.get(key):
                found.append(f"{section}.{key} was {values.get(key)!r}, is {other.get(key)!r}")
    return found
