"""Recipes: what every stage trains, on which losses, at which rates and for how long. Plain data, read from YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from linmu.errors import InputError

GROUPS = ("flex_new", "flex_inherited", "swin", "alpha", "output", "lora", "mlp", "norms", "embeddings")
MIXER_GROUPS = GROUPS[:5]
LOSSES = ("layer", "hidden", "logits", "ce")
SCHEDULES = ("constant", "linear", "cosine")
LORA_TARGETS = ("mlp", "output")
LOSS_ON = ("answer", "all")
NUMBERS = (1, 2, 3)
BUILT_IN = ("small", "large")
_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: `targets` are "mlp" (gate, up, down projections) and "output" (W_O of the mixer)."""

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ("mlp",)


@dataclass(frozen=True)
class Stop:
    """End a stage early: no `min_improvement` (a share of the loss) in the last `patience` log intervals."""

    patience: int
    min_improvement: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One training run. Several stages may share a `number` (1, 2 or 3), no two a name.

    train: group -> learning rate (groups.py); losses: "layer" (each mixer alone, fed by the teacher), "hidden"
    (after every layer, the student running by itself), "logits" (KL to the teacher), "ce" (the labels) -> weight;
    warmup: a share of the steps; temperature: of the KL; grad_clip: norm, 0 = none; window_dropout: share of samples
    that do without the text window in the first step, falling to none in the last.
    """

    number: int
    name: str
    steps: int
    train: Mapping[str, float]
    losses: Mapping[str, float]
    warmup: float = 0.05
    schedule: str = "cosine"
    temperature: float = 1.0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    window_dropout: float = 0.0
    lora: Lora | None = None
    stop: Stop | None = None

    @property
    def weights(self) -> dict[str, float]:
        """The losses that count: those with a weight above 0."""
        return {name: weight for name, weight in self.losses.items() if weight > 0}


@dataclass(frozen=True)
class Recipe:
    """Stages and what they share.

    batch_size: samples of one optimizer step, over all processes; micro_batch: samples of one pass on one process
    (0 = as many as there are); max_tokens: longer samples are refused; loss_on: "answer" or "all" tokens count;
    log_every, save_every (a multiple of log_every), validate_every: in steps (0 = never, save: at the end only);
    top_k: teacher logits kept per token (0 = all); workers: processes that prepare batches.
    """

    stages: tuple[Stage, ...]
    batch_size: int = 32
    micro_batch: int = 0
    max_tokens: int = 4096
    loss_on: str = "answer"
    log_every: int = 20
    save_every: int = 200
    validate_every: int = 0
    top_k: int = 0
    gradient_checkpointing: bool = False
    workers: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return _plain(asdict(self))

    @classmethod
    def from_json(cls, data: Any, where: str = "recipe") -> Recipe:
        """Read `to_json`'s form; raises InputError that names the key that is wrong."""
        recipe = _read(cls, data, where)
        _check_recipe(recipe, where)
        return recipe


def load_recipe(source: str | Path, settings: Mapping[str, str] | None = None) -> Recipe:
    """The built-in recipe "small" or "large", or a YAML file, with `settings` such as {"flex.steps": "100"} put in.

    A setting is a key of the recipe ("batch_size") or of a stage by its name ("flex.train.flex_new"). Raises
    InputError for a file that is missing or no YAML, an unknown key or a wrong value.
    """
    import yaml

    path = _FOLDER / f"{source}.yaml" if str(source) in BUILT_IN else Path(source)
    if not path.is_file():
        raise InputError("recipe", got=str(source), expected="a YAML file or one of " + ", ".join(BUILT_IN))
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML", got=error) from error
    where = str(source)
    if not isinstance(data, dict):
        raise InputError(where, got=type(data).__name__, expected="keys and values")
    for name, text in (settings or {}).items():
        _put(data, name, yaml.safe_load(text), where)
    return Recipe.from_json(data, where)


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts as a dict; raises InputError for anything else."""
    pairs = [text.partition("=") for text in texts]
    for name, sign, _ in pairs:
        if not sign or not name:
            raise InputError("--set", got=repr(name + sign), expected="NAME=VALUE, for example flex.steps=500")
    return {name: value for name, _, value in pairs}


def parse_stages(text: str) -> tuple[int, ...]:
    """Read "all", or numbers with commas between them; raises InputError for other texts."""
    if text == "all":
        return NUMBERS
    parts = [part.strip() for part in text.split(",")]
    if not all(part in map(str, NUMBERS) for part in parts):
        raise InputError("--stage", got=repr(text), expected="all, or some of 1,2,3")
    return tuple(int(part) for part in parts)


def _put(data: dict[str, Any], name: str, value: Any, where: str) -> None:
    """Set "key" or "stage.key.key" in the YAML document."""
    *path, key = name.split(".")
    target: Any = data
    if path:
        stages = data.get("stages")
        by_name = {item["name"]: item for item in stages or () if isinstance(item, dict) and "name" in item}
        if path[0] not in by_name:
            raise InputError(f"--set {name}", got=f"no stage {path[0]!r}", expected="one of " + ", ".join(by_name))
        target = by_name[path[0]]
        for part in path[1:]:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise InputError(f"--set {name}", got=f"{part} is a value", expected="keys below it")
    target[key] = value


def _read(kind: Any, value: Any, where: str) -> Any:
    """A YAML or JSON value as the annotated type; raises InputError that says where it stands."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else _read(next(a for a in arguments if a is not NoneType), value, where)
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(where, got=repr(value), expected="a list")
        return tuple(_read(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise InputError(where, got=repr(value), expected="keys and values")
        return {str(name): _read(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    return _read_scalar(kind, value, where)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(where, got=repr(value), expected="keys and values")
    types = get_type_hints(kind)
    if unknown := [str(name) for name in value if name not in types]:
        raise InputError(f"{where}: unknown key", got=unknown[0], expected="one of " + ", ".join(types))
    required = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    if missing := [name for name in required if name not in value]:
        raise InputError(f"{where}: a key is missing", expected=missing[0])
    return kind(**{name: _read(types[name], item, f"{where}.{name}") for name, item in value.items()})


def _read_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-3, without a point, as a text
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif type(value) is kind:
        return value
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    raise InputError(where, got=repr(value), expected=names[kind])


def _check_recipe(recipe: Recipe, where: str) -> None:
    low = {"batch_size": 1, "micro_batch": 0, "max_tokens": 2, "log_every": 1, "save_every": 0, "validate_every": 0}
    for name, least in {**low, "top_k": 0, "workers": 0}.items():
        _require(getattr(recipe, name) >= least, f"{where}.{name}", getattr(recipe, name), f"at least {least}")
    _one_of(recipe.loss_on, LOSS_ON, f"{where}.loss_on")
    # a checkpoint inside a log interval would lose the part of the interval before it
    _require(
        recipe.save_every % recipe.log_every == 0,
        f"{where}.save_every",
        recipe.save_every,
        f"a multiple of log_every ({recipe.log_every})",
    )
    _require(bool(recipe.stages), f"{where}.stages", "none", "at least one stage")
    names = [stage.name for stage in recipe.stages]
    _require(len(set(names)) == len(names), f"{where}.stages", ", ".join(names), "names that differ")
    numbers = [stage.number for stage in recipe.stages]
    _require(numbers == sorted(numbers), f"{where}.stages", numbers, "stages in the order of their numbers")
    for number, stage in enumerate(recipe.stages):
        _check_stage(stage, f"{where}.stages[{number}]")


def _check_stage(stage: Stage, where: str) -> None:
    _one_of(stage.number, NUMBERS, f"{where}.number")
    _require(
        stage.name.replace("-", "").replace("_", "").isalnum(),
        f"{where}.name",
        repr(stage.name),
        "letters, digits, - and _",
    )
    _require(stage.steps > 0, f"{where}.steps", stage.steps, "at least 1")
    _require(bool(stage.train), f"{where}.train", "nothing", "at least one group")
    _require(any(stage.losses.values()), f"{where}.losses", "no weight", "at least one loss with a weight")
    for key, table, known in (("train", stage.train, GROUPS), ("losses", stage.losses, LOSSES)):
        for name, value in table.items():
            _one_of(name, known, f"{where}.{key}")
            _require(value >= 0, f"{where}.{key}.{name}", value, "at least 0")
    _one_of(stage.schedule, SCHEDULES, f"{where}.schedule")
    _require(0 <= stage.warmup < 1, f"{where}.warmup", stage.warmup, "a share of the steps, 0 to below 1")
    _require(stage.temperature > 0, f"{where}.temperature", stage.temperature, "above 0")
    _require(stage.weight_decay >= 0, f"{where}.weight_decay", stage.weight_decay, "at least 0")
    _require(0 <= stage.window_dropout <= 1, f"{where}.window_dropout", stage.window_dropout, "a share, 0 to 1")
    _require(stage.grad_clip >= 0, f"{where}.grad_clip", stage.grad_clip, "at least 0")
    _require(
        (stage.lora is not None) == ("lora" in stage.train),
        f"{where}.lora",
        stage.lora,
        "settings of the adapters and a rate for the group lora, or neither",
    )
    if stage.lora is not None:
        _require(stage.lora.rank > 0, f"{where}.lora.rank", stage.lora.rank, "at least 1")
        for target in stage.lora.targets:
            _one_of(target, LORA_TARGETS, f"{where}.lora.targets")
    beyond = [name for name in stage.train if name not in MIXER_GROUPS and not (name == "lora" and _on_mixers(stage))]
    _require(
        set(stage.weights) != {"layer"} or not beyond,
        f"{where}.train",
        ", ".join(beyond),
        "groups of the mixers: the loss layer reaches no others",
    )
    if stage.stop is not None:
        _require(stage.stop.patience > 0, f"{where}.stop.patience", stage.stop.patience, "at least 1")


def _on_mixers(stage: Stage) -> bool:
    return stage.lora is not None and set(stage.lora.targets) == {"output"}


def _require(holds: bool, what: str, got: object, expected: str) -> None:
    if not holds:
        raise InputError(what, got=got, expected=expected)


def _one_of(value: object, allowed: tuple, what: str) -> None:
    _require(value in allowed, what, repr(value), "one of " + ", ".join(map(str, allowed)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
