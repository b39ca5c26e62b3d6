"""A study file (TOML) to a validated `Study`; what is unknown is met with the nearest thing that is known."""

import itertools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomlkit
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from evals.protocol import PROTOCOLS, Protocol
from models.data.corrupt import MAX_CORRUPT
from models.errors import StudyError, UnknownNameError, UserError, did_you_mean
from models.recipe import Axes, Count, NonNegative
from orchestrator.images import ON_DISK, Images
from orchestrator.study_text import read_document
from slurm.failures import Budgets, Cause

AXES = tuple(Axes.model_fields)
Scalar = str | int | float | bool
GridTable = dict[str, list[Any]]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Upstream(_Table):
    """The images that cells are trained on."""

    dataset: str
    """A packaged set's name, or a path (relative to the study file): of class folders, tar shards or tables."""


class Train(_Table):
    """How cells are run; nothing here changes the weights of one that ends well."""

    checkpoints: Count = 1
    """Checkpoints a cell, evenly spaced, the last at the last step."""
    compile: bool | Literal["auto"] = "auto"
    """Whether torch.compile makes the steps faster, which takes it a minute; "auto" where a cell trains for a quarter
    of an hour or longer on a GPU, whole and without computing blocks a second time."""
    max_corrupt: Annotated[float, Field(ge=0, le=1)] = MAX_CORRUPT
    """Share of the upstream images that may be unreadable: each is counted, and its neighbour stands for it."""


class Downstream(_Table):
    """What every checkpoint is judged by."""

    tasks: list[str] = Field(min_length=1)
    """Names of packaged or public tasks (`upshot tasks` lists them), or paths (relative to the study file): of class
    folders, a CSV of paths and labels, tables."""
    data: str | None = None
    """The folder below which public tasks lie (relative to the study file); $UPSHOT_DATA when it is not given."""
    protocol: Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)] = Field(
        ["ridge"], min_length=1
    )
    """A protocol's name, or a list of them (docs/evaluation.md), of which the first is what is reported on."""
    upstream: bool | Literal["by_class"] = True
    """Whether checkpoints are measured on the held-out upstream images too; "by_class" adds each class's accuracy."""
    keep_features: bool = False
    """Whether the features of every checkpoint stay in the study folder, so that protocols that are asked for later
    need no forward pass."""
    shots: list[Count] = [1, 5, 10, 25]
    """Training images a class, of few-shot protocols."""
    draws: Count = 3
    """How often the shots are drawn."""
    layers: Literal["all", "last"] = "all"
    """Layers that are judged: every one, or the pre-logits features alone."""
    checkpoints: Literal["all", "last"] = "all"
    """Checkpoints that are judged."""
    ahead_min: NonNegative = 10
    """A checkpoint is judged while its cell still trains where that is expected to take this many minutes more."""


class Placement(_Table):
    """Cells that go to a partition of their own."""

    partition: str
    """One of the profile's."""
    where: GridTable
    """Axis = value or values; a cell belongs here if every axis fits."""


class ClusterChoice(_Table):
    """Where cells run."""

    profile: str = "local"
    """`local`, or a cluster profile file (relative to the study file)."""
    partition: str | None = None
    """The partition to use; the profile's first one when it is not given."""
    place: list[Placement] = []
    """The first that fits a cell names its partition."""
    evaluate_partition: str | None = None
    """Where checkpoints are judged; where they were trained when it is not given."""
    accelerators: Count | None = None
    """Accelerators a cell; as few as hold it and end it within one wall time when it is not given."""
    pack: Count | Literal["auto"] = "auto"
    """Cells a job, one after the other; "auto" packs what is expected to take ten minutes together."""
    max_gpu_hours: NonNegative | None = None
    """The study's budget: what is expected to exceed it is refused."""

    def partition_of(self, recipe: Axes) -> str | None:
        """The partition that a cell is placed on; None for the profile's first."""
        for place in self.place:
            if all(getattr(recipe, axis) in values for axis, values in place.where.items()):
                return place.partition
        return self.partition


Budget = Count | Literal[0, "free"]


class Retry(_Table):
    """How many deaths of each cause are answered by another start by themselves; `free` is any number."""

    preemption: Budget = "free"
    """The job was taken off its node for another one."""
    requeue: Budget = "free"
    """It was started again by hand, or by a scheduler that does not say why."""
    node_failure: Budget = 5
    """Its node went down."""
    time_limit: Budget = 3
    """Limits met without getting on; one that was met with a checkpoint to go on from costs nothing."""
    oom: Budget = 3
    """The node's memory did not suffice."""
    accelerator_oom: Budget = 4
    """The accelerator's did not."""
    launch_failure: Budget = 2
    """The job ended before any of its work began."""
    file_system: Budget = 2
    """The disk is full, over its quota, or does not answer."""
    killed: Budget = 1
    """By a signal, and nothing says who sent it."""
    cancelled: Budget = 0
    """By a person."""
    code_error: Budget = 0
    """An exception, which would come again."""
    stop_after: Count = 5
    """Nothing more is submitted once the first cells to end, this many, all died of the same code error."""

    @property
    def budgets(self) -> Budgets:
        """By cause."""
        given = {cause: getattr(self, cause.value.replace("-", "_"), 0) for cause in Cause}
        return {cause: None if budget == "free" else budget for cause, budget in given.items()}


def _check_project(name: str) -> str:
    if not 1 <= len(name) <= 128 or set(name) & set("/\\#?%:"):
        raise ValueError("W&B takes names of 1 to 128 characters, none of them / \\ # ? % :")
    return name


class Wandb(_Table):
    """Where Weights & Biases mirrors the study."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto` is online where a key is found, else offline."""
    project: Annotated[str, AfterValidator(_check_project)] = "upshot"
    """The W&B project."""
    entity: str | None = None
    """The W&B user or team; the default one of the key when it is not given."""


class Study(_Table):
    """One study: what to train, what to judge it by, where to run it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Of the study folder, `runs/NAME`, of the jobs, and of the group of W&B runs."""
    upstream: Upstream
    grid: list[GridTable]
    exclude: list[GridTable] = []
    """Combinations to leave out: [[exclude]] tables of axis = value or values, of which every axis must fit."""
    train: Train = Train()
    downstream: Downstream
    cluster: ClusterChoice = ClusterChoice()
    retry: Retry = Retry()
    wandb: Wandb = Wandb()

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """How this study judges a checkpoint on each of its tasks, in the order of the study file."""
        d = self.downstream
        return tuple(Protocol(name=name, shots=tuple(d.shots), draws=d.draws, layers=d.layers) for name in d.protocol)


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A study with the text it was read from, which is what a submission keeps, and what is known of its images."""

    study: Study
    text: str
    path: Path
    images: Images = ON_DISK


def load_study(path: Path, overrides: Iterable[str] = (), images: Images = ON_DISK) -> StudyFile:
    """The study in `path`, with `key.path=value` overrides applied.

    Relative paths of images and of the profile become absolute, seen from the study file's folder.

    Args:
        path: of the study file.
        overrides: `key.path=value`.
        images: what is known of its images.

    Raises:
        StudyError: the file is missing, malformed, or does not describe a study; the message names file and key path.
    """
    document = read_document(path, overrides)
    text = tomlkit.dumps(document)
    return StudyFile(parse_study(tomllib.loads(text), path, images), text, path, images)


def load_unchecked(path: Path) -> Study:
    """The same study, whatever its tasks are: their images are not looked at."""
    return validated(tomllib.loads(tomlkit.dumps(read_document(path))), path)


def parse_study(raw: dict[str, Any], path: Path, images: Images = ON_DISK) -> Study:
    """The study that a parsed TOML document describes; `path` is only named in messages.

    Raises:
        StudyError: an unknown key or value, a value of the wrong type, an empty grid, a path of a task that has none.
    """
    study = validated(raw, path)
    try:
        for task in study.downstream.tasks:
            images.task(task)
    except UserError as error:
        raise StudyError(f"{path}: downstream.tasks: {error}") from error
    return study


def validated(raw: dict[str, Any], path: Path) -> Study:
    """The same, whatever the tasks are."""
    raw = {**raw, "grid": _grid_tables(raw.get("grid"), path), "exclude": _exclude_tables(raw.get("exclude", []), path)}
    raw["cluster"] = _with_places(raw.get("cluster", {}), path)
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise StudyError(f"{path}: {describe_errors(error, Study)}") from error
    d = study.downstream
    for name in d.protocol:
        if name not in PROTOCOLS:
            raise StudyError(f"{path}: downstream.protocol: {UnknownNameError('protocol', name, PROTOCOLS)}")
    for key, values in (("tasks", d.tasks), ("protocol", d.protocol), ("shots", d.shots)):
        _refuse_repeats(values, f"{path}: downstream.{key}")
    return study


def _grid_tables(raw: object, path: Path) -> list[GridTable]:
    tables = [raw] if isinstance(raw, Mapping) else raw
    if not isinstance(tables, list) or not tables or not all(isinstance(t, Mapping) and t for t in tables):
        raise StudyError(f"{path}: grid: is empty: give it at least `family` and `size` ([grid] or several [[grid]])")
    checked = [_axis_values(table, f"{path}: {_where('grid', i, len(tables))}") for i, table in enumerate(tables)]
    for i, table in enumerate(checked):
        for axis in ("family", "size"):
            if axis not in table:
                raise StudyError(f"{path}: {_where('grid', i, len(tables))}.{axis}: is missing")
    return checked


def _exclude_tables(raw: object, path: Path) -> list[GridTable]:
    if not isinstance(raw, list) or not all(isinstance(t, Mapping) and t for t in raw):
        raise StudyError(f"{path}: exclude: write each as a [[exclude]] table of axis = value")
    return [_axis_values(table, f"{path}: {_where('exclude', i, len(raw))}") for i, table in enumerate(raw)]


def _with_places(raw: object, path: Path) -> object:
    """The [cluster] table with the axis values of its [[cluster.place]] tables checked."""
    places = raw.get("place", []) if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(places, list):
        return raw  # the model says what is wrong with it
    checked = []
    for i, place in enumerate(places):
        where = f"{path}: {_where('cluster.place', i, len(places))}.where"
        given = place.get("where") if isinstance(place, Mapping) else None
        if not isinstance(given, Mapping) or not given:
            raise StudyError(f'{where}: write the cells that it takes as {{family = "vit", size = ["g", "G"]}}')
        checked.append({**place, "where": _axis_values(given, where)})
    return {**raw, "place": checked} if places else raw


def _where(key: str, index: int, count: int) -> str:
    return key if count == 1 else f"{key}[{index}]"


def _axis_values(table: Mapping[str, Any], where: str) -> GridTable:
    """Every axis of a table as a list of checked values."""
    checked: GridTable = {}
    for axis, given in _with_timm_family(table).items():
        if axis not in Axes.model_fields:
            raise StudyError(f"{where}.{axis}: unknown axis (known: {', '.join(AXES)}).{did_you_mean(axis, AXES)}")
        values = given if isinstance(given, list) else [given]
        if not values:
            raise StudyError(f"{where}.{axis}: has no values, so the grid is empty")
        checked[axis] = [_axis_value(axis, value, f"{where}.{axis}") for value in values]
        _refuse_repeats(checked[axis], f"{where}.{axis}")
    return checked


def _with_timm_family(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table; sizes that are all written timm:NAME are those names in family "timm"."""
    given = table.get("size", [])
    sizes = given if isinstance(given, list) else [given]
    written_so = sizes and all(isinstance(size, str) and size.startswith("timm:") for size in sizes)
    if not written_so or table.get("family", "timm") not in ("timm", ["timm"]):
        return table
    return {**table, "family": "timm", "size": [size.removeprefix("timm:") for size in sizes]}


def _refuse_repeats(values: list[Any], where: str) -> None:
    repeated = {value for value, group in itertools.groupby(sorted(values)) if len(list(group)) > 1}
    if repeated:
        raise StudyError(f"{where}: {', '.join(map(repr, sorted(repeated)))} stands there twice")


def _axis_value(axis: str, value: object, where: str) -> Any:
    field = Axes.model_fields[axis]
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    if isinstance(value, bool) and field.annotation is not bool:  # pydantic would read true as 1
        raise StudyError(f"{where}: {value} is not a value of this axis")
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise StudyError(f"{where}: {_describe(error.errors()[0], value, annotation)}") from error


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """Every complaint of a validation, one a line, with its key path and the nearest known key or value."""
    lines = []
    for item in error.errors():
        *_, last = item["loc"] or ("",)
        if last == "bool":  # of true, false or a name: what is said of the names tells all
            continue
        named_or_bool = str(last).startswith("literal[")
        where = ".".join(str(part) for part in (item["loc"][:-1] if named_or_bool else item["loc"]))
        if item["type"] == "extra_forbidden":
            known = _keys_at(model, item["loc"][:-1])
            line = f"unknown key (known: {', '.join(known)}).{did_you_mean(item['loc'][-1], known)}"
        elif named_or_bool:
            known = [*_quoted(item["ctx"]["expected"]), "true", "false"]
            line = f"unknown value {item['input']!r} (known: {', '.join(known)}).{did_you_mean(item['input'], known)}"
        else:
            line = _describe(item, item.get("input"), None)
        lines.append(f"{where}: {line}")
    return "\n".join(lines)


def _describe(item: Any, value: object, annotation: object) -> str:
    if item["type"] == "literal_error":
        known = [str(name) for name in _literals(annotation)] or _quoted(item["ctx"]["expected"])
        return f"unknown value {value!r} (known: {', '.join(known)}).{did_you_mean(value, known)}"
    if item["type"] == "missing":
        return "is missing"
    return f"{item['msg']} (given: {value!r})"


def _literals(annotation: object) -> list[object]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [name for part in get_args(annotation) for name in _literals(part)]


def _quoted(expected: str) -> list[str]:
    """The names in pydantic's "'a', 'b' or 'c'"."""
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the table at a key path."""
    for part in location:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            while get_origin(annotation) in (list, dict, Union, UnionType):
                annotation = get_args(annotation)[0 if get_origin(annotation) is list else -1]
            if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
                return []
            model = annotation
    return list(model.model_fields)
