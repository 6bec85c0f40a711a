"""Numbers of the paper as commands, and what each costs.

A `Run` is one training, a `Row` one line of a table; `paper_tables` has those of VideoMAE. Paths in
commands begin with shell variables: $DATA, with a folder for each data set; $WEIGHTS, with image
models of others; $WORK, where lists and work directories are written. $VIDEO is any video.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

from videomae_jax.config import load_config_and_given, parse_views
from videomae_jax.devices.chips import CHIPS
from videomae_jax.models.flops import finetune_flops
from videomae_jax.models.vit import Size
from videomae_jax.tasks import TASKS
from videomae_jax.tasks.build import clip_geometry
from videomae_jax.tasks.geometry import adopt_geometry, geometry_of
from videomae_jax.tasks.task import Task
from videomae_jax.training.optim import make_schedule

PEAK = CHIPS["NVIDIA H100"].flops  # FLOP/s
# Fractions of the peak that pre-training reached on one H200, whose peak is that of an H100, by the
# width of the encoder (docs/performance.md, "On a GPU").
PRETRAIN_MFU = {384: 0.25, 768: 0.35, 1024: 0.41, 1280: 0.42}
# ViT-B fine-tuning on the same GPU, 360 clips/s. Nothing else that encodes every token was
# measured: all sizes and the other tasks are counted with it.
MFU = 0.39
# Of 16 frames of 256 x 464 pixels: detection is evaluated on the whole image, here of a 16:9 movie.
MOVIE_TOKENS = 8 * 16 * 29

# Where the numbers of a recipe were read. Any other source is UNVERIFIED and a reason.
SCRIPTS, APPENDIX, UNVERIFIED = "released scripts", "paper's appendix", "unverified: "


class DataSet(NamedTuple):
    """The size of a data set, as the paper rounds it.

    train, held_out: videos; key frames for detection. layout: of `videomae data list`; "" for
    annotations of key frames, which need no list.
    """

    train: int
    held_out: int
    classes: int
    layout: str


DATASETS = {
    "k400": DataSet(240_000, 20_000, 400, "kinetics"),
    "ssv2": DataSet(169_000, 20_000, 174, "ssv2"),
    "ucf101": DataSet(9_500, 3_500, 101, "ucf101"),
    "hmdb51": DataSet(3_500, 1_500, 51, "hmdb51"),
    "ava": DataSet(211_000, 57_000, 80, ""),
    # From memory: the paper does not count it.
    "k700": DataSet(545_000, 35_000, 700, "kinetics"),
}


class Image(NamedTuple):
    """An image model of others, a file in $WEIGHTS, that becomes a video encoder."""

    name: str
    file: str


class Run(NamedTuple):
    """One training.

    name: of its work directory. data: a key of DATASETS. start: what its encoder starts from.
    changes: overrides of the recipe. source: where its numbers were read.
    """

    name: str
    config: str
    data: str
    start: "Run | Image | None" = None
    changes: tuple[str, ...] = ()
    source: str = SCRIPTS


class Row(NamedTuple):
    """One line of a table.

    published: numbers by metric. runs: the last trainings it needs; () if no command here computes
    it. views: of the evaluation, "" for none. mask: the ratio of a reconstruction, 0 for none.
    """

    name: str
    published: dict[str, float]
    runs: tuple[Run, ...] = ()
    views: str = ""
    mask: float = 0.0
    note: str = ""


class Table(NamedTuple):
    """A table or figure of the paper. where: its number there. ran: what was run of it here."""

    title: str
    where: str
    rows: tuple[Row, ...]
    ran: str = "nothing"


class Cost(NamedTuple):
    """What runs need.

    flops: in closed form. hours: of one H100 at the MFU above. decoded: videos that are opened.
    """

    flops: float
    hours: float
    decoded: int


def chain(runs: Iterable[Run]) -> list[Run]:
    """Return the runs and those they start from, each once, in the order of training."""
    found: dict[str, Run] = {}
    for run in runs:
        if isinstance(run.start, Run):
            found |= {step.name: step for step in chain([run.start])}
        found[run.name] = run
    return list(found.values())


def source_of(row: Row) -> str:
    """Return where the recipes of a row were read; the doubts alone, if there are any."""
    sources = dict.fromkeys(run.source for run in chain(row.runs))
    doubts = [text.removeprefix(UNVERIFIED) for text in sources if text.startswith(UNVERIFIED)]
    return UNVERIFIED + "; ".join(doubts) if doubts else ", ".join(sources)


def row_commands(row: Row) -> list[str]:
    """Return the command lines of a row, in order."""
    runs = chain(row.runs)
    lines = [line for run in runs for line in (*list_commands(run), train_command(run))]
    lines += [line for run in row.runs for line in score_commands(row, run)]
    return list(dict.fromkeys(lines))


def list_commands(run: Run) -> list[str]:
    """Return the commands that write the inputs of a run: lists, and encoders of image models."""
    lines = []
    if layout := DATASETS[run.data].layout:
        lines.append(
            f"videomae data list $DATA/{run.data} --layout {layout} "
            f"--out $WORK/{run.data}-train.csv --val $WORK/{run.data}-val.csv"
        )
    if isinstance(run.start, Image):
        lines.append(f"videomae convert $WEIGHTS/{run.start.file} $WORK/{run.start.name}")
    return lines


def train_command(run: Run) -> str:
    """Return the command of a run."""
    words = ["videomae train", f"--config={run.config}", f"--workdir=$WORK/{run.name}"]
    return " ".join([*words, *overrides(run)])


def overrides(run: Run) -> list[str]:
    """Return the overrides of a run: its data, its start and its changes."""
    train, held_out = data_paths(run.data)
    values = [f"data.train={train}"]
    if not run.config.startswith("pretrain:") and not run.config.startswith("contrast:"):
        values.append(f"data.eval={held_out}")
    if not DATASETS[run.data].layout:
        folder = f"$DATA/{run.data}"
        values += [
            f"data.videos={folder}/videos",
            f"data.classes={folder}/{run.data}_action_list_v2.2.pbtxt",
        ]
    if run.start:
        values.append(f"init_from=$WORK/{run.start.name}")
    return [f"--config.{value}" for value in (*values, *run.changes)]


def data_paths(data: str) -> tuple[str, str]:
    """Return the lists, or the annotations of key frames, for training and evaluation."""
    if DATASETS[data].layout:
        return f"$WORK/{data}-train.csv", f"$WORK/{data}-val.csv"
    # The files of AlphAction, which VideoMAE's detection uses.
    return f"$DATA/{data}/{data}_train_v2.2_min.json", f"$DATA/{data}/{data}_val_v2.2_min.json"


def score_commands(row: Row, run: Run) -> list[str]:
    """Return the command that measures a run, if any."""
    _, held_out = data_paths(run.data)
    if row.mask:
        picture = f"$WORK/{run.name}-{row.mask:g}.gif"
        return [
            f"videomae visualize $VIDEO --checkpoint $WORK/{run.name} "
            f"--ratio {row.mask:g} --statistics truth --out {picture}"
        ]
    if not row.views:
        return []
    command = f"videomae evaluate --checkpoint $WORK/{run.name} --manifest {held_out}"
    if DATASETS[run.data].layout:
        options, out = f"--views {row.views}", row.views
    else:
        boxes = f"$DATA/{run.data}/{run.data}_val_det_person_bbox.json"
        options, out = f"--boxes {boxes} --min-score 0.8", "boxes"
    return [f"{command} {options} --out $WORK/{run.name}-{out}"]


@functools.cache
def run_config(run: Run) -> ConfigDict:
    """Return the config that a run trains with: the geometry is that of what it starts from."""
    config, given = load_config_and_given(run.config, overrides(run))
    if isinstance(run.start, Run):
        source = geometry_of(run_config(run.start))
        config, _ = adopt_geometry(config, source, given, name=run.start.name)
    config = config.copy_and_resolve_references()
    if "classes" in config.model:
        config.model.classes = DATASETS[run.data].classes
    return config.lock()


@functools.cache
def run_task(run: Run) -> Task:
    """Return the task of a run."""
    config = run_config(run)
    return TASKS[config.task].build_task(config)


def run_cost(run: Run) -> Cost:
    """Return the cost of a training."""
    config = run_config(run)
    videos = make_schedule(config, examples=DATASETS[run.data].train).steps * config.batch_size
    flops = videos * config.repeats * run_task(run).train_flops
    mfu = PRETRAIN_MFU[config.model.encoder.width] if config.task == "pretrain" else MFU
    return Cost(flops, flops / PEAK / mfu / 3600, videos)


def score_cost(row: Row, run: Run) -> Cost:
    """Return the cost of the evaluation of a run."""
    if not row.views:
        return Cost(0.0, 0.0, 0)
    videos = DATASETS[run.data].held_out
    clips, crops = parse_views(row.views)
    flops = videos * clips * crops * view_flops(run)
    return Cost(flops, flops / PEAK / MFU / 3600, videos)


def view_flops(run: Run) -> float:
    """Return the forward operations of one test view."""
    config = run_config(run)
    model = TASKS[config.task].build_model(config)
    geometry = clip_geometry(config.clip, model)
    forward, _ = finetune_flops(
        Size(**config.model.encoder),
        tokens=MOVIE_TOKENS if config.task == "detect" else geometry.tokens,
        values=geometry.values,
        classes=config.model.classes,
    )
    return forward


def row_cost(row: Row) -> Cost:
    """Return the cost of all trainings of a row and of its evaluation."""
    costs = [run_cost(run) for run in chain(row.runs)]
    costs += [score_cost(row, run) for run in row.runs]
    return Cost(
        sum(cost.flops for cost in costs),
        sum(cost.hours for cost in costs),
        sum(cost.decoded for cost in costs),
    )
