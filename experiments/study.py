"""Does pre-training help, and does the model see motion? A study on two CPU cores.

    .venv/bin/python experiments/study.py [--form short|full] [--out DIR] [--workers N]

One tiny model on the motion-capture clips of data/: from scratch, from scratch with the compute
of both stages, and pre-trained with four masks, then fine-tuned and probed. Rates are chosen on
a quarter of the training clips, never on the validation clips. Every run is kept in DIR/runs,
and the same command goes on from there. Writes DIR/results.csv, study.md and study.png.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from videomae_jax.host import count_cores

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data/mocap_studio"
MASKS = {
    "tube .75": ("tube", 0.75),
    "tube .9": ("tube", 0.9),
    "random .9": ("random", 0.9),
    "frame .875": ("frame", 0.875),
}
MAIN = "tube .75"
# The arms whose rate is tuned; the other masks take that of the main one.
SCRATCH, LONG, PRETRAINED = "scratch", "scratch, equal compute", "pre-trained"
UNTRAINED = "kNN, untrained encoder"
RATES = (7e-4, 2e-3)
# Small batches: in pre-training the number of steps counts, not that of clips.
BATCH = {"pretrain": 16, "classify": 32, "probe": 32}
SCORES = ("top1", "frozen", "shuffled")
FIT = 25  # of the 34 training clips of a class, where the other 9 choose the rate


@dataclasses.dataclass(frozen=True)
class Form:
    """How long it takes. rates: what the full form found, for a form that does not tune."""

    pretrain_steps: int
    finetune_steps: int
    seeds: int
    masks: tuple[str, ...]
    labels: tuple[int, ...]  # clips of each class, beside all of them
    rates: dict[str, float] | None


FORMS = {
    "full": Form(2400, 300, 3, tuple(MASKS), (12, 4), None),
    "short": Form(1200, 150, 3, (MAIN,), (), {SCRATCH: 2e-3, LONG: 2e-3, PRETRAINED: 2e-3}),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run; `start` is the pre-training that its encoder comes from, "" for none."""

    kind: str  # pretrain, finetune, probe, knn
    arm: str
    seed: int
    steps: int = 0
    rate: float = 0.0
    train: str = "train"  # which list of videos
    held_out: str = "val"
    mask: str = ""  # of a pre-training run
    start: str = ""

    @property
    def name(self) -> str:
        rate = f", rate {self.rate:g}" if self.held_out == "tune" and self.rate else ""
        return f"{self.arm}, {self.train}, seed {self.seed}{rate}"


class Worker:
    """Does some runs in turn and writes their results; what they print goes into logs beside."""

    def __init__(self, out: Path):
        self.out = out

    def __call__(self, runs: tuple[Run, ...]) -> str:
        for run in runs:
            if not (self.out / "runs" / run.name / "result.json").exists():
                self.do(run)
        return runs[-1].name

    def do(self, run: Run) -> None:
        folder = self.out / "runs" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a") as log, contextlib.redirect_stdout(log):
            began, spent = time.time(), time.process_time()
            result = WORK[run.kind](self.out, run)
            result |= dict(seconds=time.time() - began, cpu_seconds=time.process_time() - spent)
            result |= dataclasses.asdict(run)
        write(folder / "result.json", json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--form", choices=FORMS, default="full")
    parser.add_argument("--out", type=Path, help="(default: runs/study-FORM)")
    parser.add_argument("--workers", type=int, default=count_cores())
    args = parser.parse_args()
    form, out = FORMS[args.form], args.out or ROOT / f"runs/study-{args.form}"
    out.mkdir(parents=True, exist_ok=True)
    write_lists(out, form)
    # Most runs are of the same shapes: compiled once, read by all.
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled")}
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # One thread a run: two side by side use two cores better than one run does.
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        results = []
        for part in do_study(functools.partial(do_runs, pool, out, began=time.time()), form):
            results += part
            write_report(out, args.form, results)
    print((out / "study.md").read_text())


def do_study(do, form: Form) -> Iterator[list[dict]]:
    """Do everything, what matters most first, and yield the results of each part."""
    # Whatever need not wait for each other is done together, so that no core is idle.
    tuned = [] if form.rates else tuning(form)
    first = do(pretraining(form, MAIN) + [run for run in tuned if not run.start])
    yield first
    second = do([run for run in tuned if run.start])
    yield second
    rates = form.rates or choose_rates([r for r in first + second if r["held_out"] == "tune"])
    steps, runs = arms(form), finetuning(form, rates, MAIN)
    for arm in (SCRATCH, LONG):
        for seed in range(form.seeds):
            runs.append(Run("finetune", arm, seed, steps[arm], rates[arm]))
    yield do(runs)
    yield do_probes(do, form)
    runs = [run for run in runs if run.arm != LONG]
    yield do([dataclasses.replace(run, train=str(few)) for few in form.labels for run in runs])
    chains = []
    for mask in form.masks[1:]:
        stages = pretraining(form, mask), finetuning(form, rates, mask), neighbours(form, mask)
        chains += zip(*stages, strict=True)
    yield do(chains)


def do_runs(pool, out: Path, runs: list[Run | tuple[Run, ...]], *, began: float) -> list[dict]:
    """Do what is not done yet, some at once, and return every result in the order of `runs`.

    The runs of a tuple are done one after the other.
    """
    chains = [run if isinstance(run, tuple) else (run,) for run in runs]
    for count, name in enumerate(pool.imap_unordered(Worker(out), chains), 1):
        print(f"{(time.time() - began) / 60:6.1f} min  {count} of {len(runs)}  {name}", flush=True)
    files = [out / "runs" / run.name / "result.json" for chain in chains for run in chain]
    return [json.loads(file.read_text()) for file in files]


def write_lists(out: Path, form: Form) -> None:
    """Write train, val, fit and tune (parts of train), and so many clips of each class."""
    for name in ("train", "val"):
        rows = [line.rsplit(" ", 1) for line in (DATA / f"{name}.csv").read_text().splitlines()]
        rows = [(DATA / path, int(label)) for path, label in rows if label.isdecimal()]
        lists = {name: rows}
        if name == "train":
            ranks = [
                sum(label == other for _, other in rows[:i]) for i, (_, label) in enumerate(rows)
            ]
            ranked = list(zip(rows, ranks, strict=True))
            lists["fit"] = [row for row, rank in ranked if rank < FIT]
            lists["tune"] = [row for row, rank in ranked if rank >= FIT]
            lists |= {str(n): [row for row, rank in ranked if rank < n] for n in form.labels}
        for part, chosen in lists.items():
            write(out / f"{part}.csv", "".join(f"{path} {label}\n" for path, label in chosen))


def pretraining(form: Form, mask: str) -> list[Run]:
    """The pre-training with one mask, on all training clips without their labels."""
    return [
        Run("pretrain", f"pretrain {mask}", seed, form.pretrain_steps, 2e-3, mask=mask)
        for seed in range(form.seeds)
    ]


def tuning(form: Form) -> list[Run]:
    """Every arm at every rate, on a part of the training clips."""
    start = pretraining(form, MAIN)[0].name
    part = dict(train="fit", held_out="tune")
    return [
        Run("finetune", arm, 0, steps, rate, **part, start=start if arm == PRETRAINED else "")
        for arm, steps in arms(form).items()
        for rate in RATES
    ]


def choose_rates(results: list[dict]) -> dict[str, float]:
    """Return the rate with the highest accuracy on the tuning clips, for each arm."""
    best = {}
    for result in results:
        best.setdefault(result["arm"], result)
        if result["top1"] > best[result["arm"]]["top1"]:
            best[result["arm"]] = result
    return {arm: result["rate"] for arm, result in best.items()}


def finetuning(form: Form, rates: dict[str, float], mask: str) -> list[Run]:
    """The fine-tuning after each pre-training with one mask."""
    steps, rate = form.finetune_steps, rates[PRETRAINED]
    return [
        Run("finetune", f"{PRETRAINED} {mask}", start.seed, steps, rate, start=start.name)
        for start in pretraining(form, mask)
    ]


def do_probes(do, form: Form) -> list[dict]:
    """Probe the frozen encoders: linear, its rate chosen on the tuning clips, and kNN."""
    starts, steps = pretraining(form, MAIN), form.finetune_steps
    probe = Run("probe", f"linear probe {MAIN}", 0, steps, start=starts[0].name)
    (tuned,) = do([dataclasses.replace(probe, train="fit", held_out="tune")])
    results = do([dataclasses.replace(probe, seed=s.seed, start=s.name) for s in starts])
    best = tuned["best_rate"]  # a multiple of the config's
    for result in results:
        result |= dict(rate=best * probe_config().lr, top1=result[f"top1_x{best:g}"])
    untrained = Run("knn", UNTRAINED, 0, start=starts[0].name)
    return results + do([*neighbours(form, MAIN), untrained])


def neighbours(form: Form, mask: str) -> list[Run]:
    """kNN on the features of each pre-training with one mask."""
    return [
        Run("knn", f"kNN {mask}", start.seed, start=start.name) for start in pretraining(form, mask)
    ]


def arms(form: Form) -> dict[str, int]:
    """Return the steps of each arm; LONG spends the FLOPs of both stages."""
    from videomae_jax.tasks import classify, pretrain

    first = pretrain.build_task(pretrain_config("tube .75")).train_flops
    second = classify.build_task(finetune_config()).train_flops
    steps, clips = form.finetune_steps, BATCH["pretrain"] / BATCH["classify"]
    return {
        SCRATCH: steps,
        LONG: steps + round(form.pretrain_steps * clips * first / second),
        PRETRAINED: steps,
    }


def pretrain_config(mask: str):
    """Return the pre-training recipe at 16 x 32 x 32."""
    from videomae_jax.config import load_config

    config = load_config("pretrain:tiny,custom")
    config.mask.kind, config.mask.ratio = MASKS[mask]
    config.normalized_targets = False  # flat backgrounds: see configs/demo.py
    config.min_lr = 1e-5
    return shared(config)


def finetune_config():
    """Return the fine-tuning recipe at 16 x 32 x 32, with crops and flips only: it is short."""
    from videomae_jax.config import load_config

    config = load_config("finetune:tiny,custom")
    config.model.classes = 12
    config.clip.update(source_height=40, source_width=40)
    config.augment.update(operations=0, erase=0.0, mixup=0.0, cutmix=0.0, min_area=0.5)
    config.repeats = 1
    config.min_lr = 1e-6
    return shared(config)


def probe_config():
    """Return the linear probe's recipe at 16 x 32 x 32."""
    from videomae_jax.config import load_config

    config = load_config("probe:linear,tiny,custom")
    config.model.classes = 12
    config.clip.update(source_height=40, source_width=40)
    config.augment.min_area = 0.5
    return shared(config)


def shared(config):
    """Set what all stages have in common: clips of all 48 frames of a video, in 64 tokens."""
    config.clip.update(frames=16, stride=3, height=32, width=32)
    config.model.patch = (4, 8, 8)
    if config.task != "pretrain":
        config.clip.sampling = "sparse"
    config.batch_size, config.base_lr = BATCH[config.task], 0.0
    config.data.update(threads=1, memory_gb=2.0)
    config.log_every, config.keep_checkpoints = 50, 1
    return config


def train_run(out: Path, run: Run) -> dict:
    """Train, and score what was trained on the held-out list."""
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.tasks import classify, pretrain, probe
    from videomae_jax.training.loop import train
    from videomae_jax.training.workdir import read_metrics

    kind = {"pretrain": pretrain, "finetune": classify, "probe": probe}[run.kind]
    if run.kind == "pretrain":
        config = pretrain_config(run.mask)
    else:
        config = finetune_config() if run.kind == "finetune" else probe_config()
    config.name, config.seed, config.steps = run.name, run.seed, run.steps
    config.lr = run.rate or config.lr  # a probe tries several at once
    config.warmup_steps = run.steps // 10
    config.eval_every, config.save_every = run.steps, run.steps // 2
    config.data.train = str(out / f"{run.train}.csv")
    config.data.eval = str(out / f"{run.held_out}.csv")
    config.init_from = str(out / "runs" / run.start / "work") if run.start else ""
    workdir = str(out / "runs" / run.name / "work")
    finished = train(
        config.lock(),
        kind,
        workdir=workdir,
        load_weights=lambda path: load_checkpoint(path).params,
    )
    if not finished:  # stopped by a signal: half a run is no result
        raise InterruptedError(f"{run.name} was stopped")
    if run.kind == "finetune":
        return score(workdir, config.data.eval)
    last = read_metrics(workdir)[-1]
    return {key.removeprefix("eval/"): value for key, value in last.items() if "eval/" in key}


def knn_run(out: Path, run: Run) -> dict:
    """Score the 20 nearest neighbours with `videomae knn`."""
    from videomae_jax import cli

    file = out / "runs" / run.name / "knn.json"
    cli.main(
        ["knn", f"--checkpoint={out / 'runs' / run.start / 'work'}", f"--train={out}/train.csv"]
        + [f"--eval={out}/val.csv", "--k=20", f"--json={file}"]
        + ["--untrained"] * (run.arm == UNTRAINED)
    )
    return {"top1": json.loads(file.read_text())["top1"]["20"]["value"]}


WORK = {"pretrain": train_run, "finetune": train_run, "probe": train_run, "knn": knn_run}


def score(workdir: str, videos: str) -> dict[str, float]:
    """Return the top-1 over three clips of each video: as it is, frozen, and out of order."""
    import jax

    from videomae_jax.data.sources import read_videos
    from videomae_jax.data.unreadable import BadVideos
    from videomae_jax.devices.sharding import make_mesh
    from videomae_jax.inference.engine import predict_videos
    from videomae_jax.interop.checkpoint_files import load_checkpoint
    from videomae_jax.metrics import top
    from videomae_jax.tasks import classify

    params, config, *_ = load_checkpoint(workdir)
    videos = read_videos(videos)
    sample = classify.view_sampler(config, segments=3, crops=1)
    shares = {}
    for name, change in {"top1": None, "frozen": freeze, "shuffled": shuffle}.items():
        found = predict_videos(
            functools.partial(
                classify.view_probabilities, classify.build_model(config), multi_label=False
            ),
            params,
            videos,
            sampler=Changed(sample, change) if change else sample,
            batch_size=16,
            mesh=make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:1]),
            threads=1,
            bad=BadVideos(videos, max_share=0.0),
        )
        shares[name] = top(found.values, videos.labels[found.ids], k=1).value
    return shares


class Changed:
    """The views of a sampler after a change to their frames."""

    def __init__(self, sample, change):
        self.sample, self.change, self.spec = sample, change, sample.spec

    def sample_many(self, videos, index, rngs):
        clips = self.sample.sample_many(videos, index, rngs)["video"]
        changed = [self.change(*pair) for pair in zip(clips, rngs, strict=True)]
        return {"video": np.stack(changed)}


def freeze(views, rng):
    """Repeat the middle frame of each view: no motion is left."""
    middle = views.shape[1] // 2
    return views[:, [middle] * views.shape[1]]


def shuffle(views, rng):
    """Show the frames out of order: what stands in each is left, how it moves is not."""
    return views[:, rng.permutation(views.shape[1])]


def write_report(out: Path, form: str, results: list[dict]) -> None:
    """Write results.csv, study.md and study.png from the results of every run."""
    columns = ("arm", "train", "held_out", "seed", "steps", "rate", "r2", *SCORES)
    columns += ("seconds", "cpu_seconds")
    with open(out / "results.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(results)
    finals = [result for result in results if result["held_out"] == "val" and "top1" in result]
    rows = {}
    for result in finals:
        rows.setdefault((result["arm"], result["train"]), []).append(result)
    write(out / "study.md", "\n".join(report_lines(form, rows, results)) + "\n")
    draw(out / "study.png", rows)


def report_lines(form: str, rows: dict[tuple, list[dict]], results: list[dict]) -> Iterator[str]:
    """Yield the lines of the report, tables and the verdict."""
    import flax
    import jax

    yield f"`make study FORM={form}`: {len(results)} runs, "
    cpu = sum(result["cpu_seconds"] for result in results) / 3600
    yield f"{cpu:.1f} CPU hours; {platform.machine()}, {os.cpu_count()} cores, "
    yield f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}, "
    yield f"{time.strftime('%Y-%m-%d')}. Top-1 on 144 validation clips, three views of each, in %: "
    yield "mean ± standard deviation over seeds (each seed)."
    yield ""
    yield "| arm | labels per class | steps x rate | top-1 | frozen frames | shuffled | CPU min |"
    yield "|---|---|---|---|---|---|---|"
    for (arm, train), group in rows.items():
        labels = 34 if train == "train" else int(train)
        minutes = statistics.mean(result["cpu_seconds"] for result in group) / 60
        steps, rate = group[0]["steps"], group[0]["rate"]
        how = f"{steps} x {rate:g}" if steps else "-"
        yield (
            f"| {arm} | {labels} | {how} | "
            + " | ".join(spread([result.get(score) for result in group]) for score in SCORES)
            + f" | {minutes:.1f} |"
        )
    if (LONG, "train") in rows:
        yield ""
        yield verdict(rows)


def spread(values: list[float | None]) -> str:
    """Return "mean ± deviation (each)" in %."""
    if None in values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f} ({each})"


def verdict(rows: dict[tuple, list[dict]]) -> str:
    """Say whether pre-training beats both scratch arms by more than the seeds differ."""
    ours = [result["top1"] for result in rows[f"{PRETRAINED} {MAIN}", "train"]]
    parts = []
    for arm in (SCRATCH, LONG):
        other = [result["top1"] for result in rows[arm, "train"]]
        gain = statistics.mean(ours) - statistics.mean(other)
        noise = math.hypot(statistics.stdev(ours), statistics.stdev(other))
        word = "more" if gain > noise else "not more"
        parts.append(
            f"{100 * gain:+.1f} points over {arm}, {word} than the spread of the seeds "
            f"({100 * noise:.1f})"
        )
    return f"Pre-training ({MAIN}): {'; '.join(parts)}."


def draw(file: Path, rows: dict[tuple, list[dict]]) -> None:
    """Draw every arm with its seeds, what motion is worth to it, and the curve over labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    full = {arm: group for (arm, train), group in rows.items() if train == "train"}
    for offset, (score, colour) in enumerate(zip(SCORES, ("C0", "C7", "C1"), strict=True)):
        for place, group in enumerate(full.values()):
            values = [100 * result[score] for result in group if result.get(score) is not None]
            if not values:
                continue
            x = place + 0.26 * (offset - 1)
            left.bar(x, statistics.mean(values), 0.24, color=colour, alpha=0.6)
            left.plot([x] * len(values), values, ".", color="black", markersize=4)
    names = [arm.replace(", ", ",\n") for arm in full]
    turned = dict(rotation=30, ha="right", rotation_mode="anchor")
    left.set_xticks(range(len(full)), names, fontsize=7, **turned)
    for axes in (left, right):
        axes.axhline(100 / 12, color="black", linestyle=":", linewidth=1)
        axes.set_ylabel("top-1, %")
    left.set_title("blue: as they are, grey: frozen frames, orange: shuffled; dots: seeds", size=9)
    for arm in (SCRATCH, f"{PRETRAINED} {MAIN}"):
        points = [(34 if t == "train" else int(t), g) for (a, t), g in rows.items() if a == arm]
        points.sort(key=lambda point: point[0])
        means = [100 * statistics.mean(r["top1"] for r in group) for _, group in points]
        right.plot([count for count, _ in points], means, "o-", label=arm)
        for count, group in points:
            right.plot([count] * len(group), [100 * r["top1"] for r in group], "k.", markersize=3)
    right.set(xlabel="labelled clips of each class", xscale="log", title="dotted: chance")
    counts = sorted(count for count, _ in points)
    right.set_xticks(counts, map(str, counts))
    right.minorticks_off()
    right.legend()
    figure.savefig(file, dpi=110)


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)


if __name__ == "__main__":
    main()
