"""Make docs/scaling.png: what a step costs against frames, size, batch, model and devices.

python experiments/scaling.py [compiled] [measured] [modes] [pods]

Each word makes the rows of its kind that docs/scaling.json lacks, minutes each; then everything
there is gets drawn. compiled: FLOPs in closed form, bytes and collectives of the step compiled for
this machine's CPU, also as eight emulated devices. measured: times of steps on a machine that does
nothing else. modes: the decoders of V1, V2 and cross, timed in turns. pods: compiled ahead of time
for TPU v5e, with the extra plan-tpu.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from videomae_jax.diagnostics.step_time import Job
from videomae_jax.diagnostics.subprocesses import Child, write_job

ROOT = Path(__file__).parent.parent
ROWS, PICTURE = ROOT / "docs/scaling.json", ROOT / "docs/scaling.png"
BASE = {"model": "s", "frames": 16, "size": 224, "batch": 2}
AXES = {
    "frames": (8, 16, 32, 64),
    "size": (112, 224, 336, 448),
    "batch": (1, 2, 4, 8, 16),
    "model": ("s", "b", "l", "h"),
}
TIMED = {"frames": (8, 16, 32), "size": (112, 224), "batch": (1, 2)}
DEVICES, DEVICES_BATCH = (1, 2, 4, 8), 8
CHIPS, CLIPS_PER_CHIP = (4, 16, 64, 256), 16
DECODER = ("--config.model.decoder.depth=4",)  # of the small sizes' recipe, for all modes
MODES = {
    "v1": DECODER,
    "v2": (*DECODER, "--config.mask.decoder_ratio=0.5"),
    "cross": (*DECODER, "--config.model.decoder_attention=cross"),
}
WARM_UP, STEPS, TURNS = 2, 5, 10


def main() -> None:
    kinds = {"compiled": compile_rows, "measured": time_rows, "modes": time_modes, "pods": pods}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    # argparse looks for the empty list, too, among the choices.
    parser.add_argument("kinds", nargs="*", metavar="KIND", choices=[*kinds, []])
    for word in parser.parse_args().kinds:
        kinds[word]()
    draw(read())


def read() -> dict[str, dict]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else {}


def keep(key: str, row: dict) -> None:
    """Add a row to the file, whole or not at all."""
    partial = ROWS.with_suffix(".partial")
    partial.write_text(json.dumps(read() | {key: row}, indent=1) + "\n")
    partial.replace(ROWS)
    print(key, flush=True)


def variants(axes: dict[str, tuple]) -> list[dict]:
    """The base, and the base with one thing changed."""
    changed = [BASE | {axis: value} for axis, values in axes.items() for value in values]
    return [point for index, point in enumerate(changed) if point not in changed[:index]]


def name(kind: str, point: dict) -> str:
    return f"{kind} " + " ".join(f"{axis}={value}" for axis, value in point.items())


def overrides(point: dict) -> tuple[str, ...]:
    """What a point changes in its size's recipe."""
    sides = [f"--config.clip.{side}={point['size']}" for side in ("height", "width")]
    return (f"--config.clip.frames={point['frames']}", *sides)


def compile_rows() -> None:
    """Compile in this process, for the first of eight emulated devices or more of them."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    from videomae_jax.config import load_config
    from videomae_jax.diagnostics import plan
    from videomae_jax.tasks import pretrain

    shared = BASE | {"batch": DEVICES_BATCH}
    points = [point | {"devices": 1, "axis": "data"} for point in variants(AXES)]
    points += [
        shared | {"devices": count, "axis": axis} for axis in ("data", "fsdp") for count in DEVICES
    ]
    for point in points:
        key = name("compiled", point)
        if key in read() or (point["devices"] == 1 and point["axis"] == "fsdp"):
            continue
        spec = f"pretrain:{point['model']},k400"
        mesh = ["--config.mesh.data=1", f"--config.mesh.{point['axis']}={point['devices']}"]
        # A loop over the blocks, which the large models have anyway: all compile alike, and soon.
        more = [f"--config.batch_size={point['batch']}", "--config.run.scan=True"]
        config = load_config(spec, [*overrides(point), *mesh, *more])
        devices = jax.devices()[: point["devices"]]
        step = plan.plan_step(
            config, pretrain, devices=devices, hosts=[0] * len(devices), examples=10_000
        )
        row = {
            "flops": step.flops * len(devices),
            "arguments": step.arguments,
            "temporaries": step.temporaries,
            "collectives": [collective._asdict() for collective in step.collectives],
        }
        keep(key, point | row)


def environment() -> dict[str, str | int]:
    """What a time depends on."""
    return {
        "machine": f"{os.cpu_count()} virtual cores, {cpu_name()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "flax", "numpy")},
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def time_in_turns(jobs: list[Job], steps: int) -> list[tuple[list[float], dict]]:
    """Time jobs side by side, each in a process of its own: (seconds of each step, facts)."""
    command = [sys.executable, "-m", "videomae_jax.diagnostics.subprocesses"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        children, seconds = [], [[] for _ in jobs]
        for job in jobs:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            write_job(Path(folder), job)
            children.append(stack.enter_context(Child(str(job), [*command, folder], env=env)))
        facts = [child.ask("start") for child in children]
        for turn in range(WARM_UP + steps):
            order = list(zip(children, seconds, strict=True))
            for child, times in order if turn % 2 else order[::-1]:
                times.append(child.ask("step")["seconds"])
    return [(times[WARM_UP:], fact) for times, fact in zip(seconds, facts, strict=True)]


def time_rows() -> None:
    """Time all points in turns, in one go: what disturbs one disturbs its neighbours alike."""
    points = variants(TIMED)
    if all(name("measured", point) in read() for point in points):
        return
    jobs = [Job(p["model"], "pretrain", p["batch"], overrides(p)) for p in points]
    for point, (seconds, _) in zip(points, time_in_turns(jobs, STEPS), strict=True):
        row = {"seconds": seconds, "environment": environment()}
        keep(name("measured", point), point | row)


def time_modes() -> None:
    """Time the modes in turns, in one go: ratios are of steps side by side."""
    if "modes" in read():
        return
    jobs = [Job(BASE["model"], "pretrain", BASE["batch"], mode) for mode in MODES.values()]
    timed = dict(zip(MODES, time_in_turns(jobs, TURNS), strict=True))
    first, facts = timed["v1"]
    rows = {
        mode: {
            "overrides": MODES[mode],
            "seconds": seconds,
            "clip_flops": mine["clip_flops"],
            "temporaries": mine["temporary_bytes"],
            "predicted_ratio": facts["clip_flops"] / mine["clip_flops"],
            "ratio_of_each_turn": [a / b for a, b in zip(first, seconds, strict=True)],
        }
        for mode, (seconds, mine) in timed.items()
    }
    keep("modes", {**BASE, "rows": rows, "environment": environment()})


def pods() -> None:
    for count in CHIPS:
        key = f"pods v5e-{count}"
        if key in read():
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "plan.json"
            command = [sys.executable, "-m", "videomae_jax.cli", "plan", f"--topology=v5e-{count}"]
            command += ["--config=pretrain:b,k400", f"--json={result}"]
            command += [f"--config.batch_size={CLIPS_PER_CHIP * count}", "--config.run.scan=True"]
            command += ["--examples=240000"]
            subprocess.run(command, check=True, cwd=ROOT)
            keep(key, json.loads(result.read_text()))


def draw(rows: dict[str, dict]) -> None:
    """Draw cost over the base's against each axis, then what devices send, then pods."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.6), layout="constrained")
    panels = figure.subplots(2, 3)
    for axes, axis in zip(panels.flat, AXES, strict=False):
        draw_axis(axes, axis, rows)
    panels[0, 0].legend(fontsize=8)
    draw_devices(panels[1, 1], rows)
    draw_pods(panels[1, 2], rows)
    base = rows[name("compiled", BASE | {"devices": 1, "axis": "data"})]
    timed = rows.get(name("measured", BASE))
    text = (
        f"A pre-training step; 1 x is ViT-S, 16 frames, 224 x 224, 2 clips: "
        f"{base['flops'] / 1e9:.0f} GFLOP, temporaries {base['temporaries'] / 1e9:.2f} GB"
    )
    if timed:
        where = timed["environment"]
        seconds = statistics.median(timed["seconds"])
        text += f", {1e3 * seconds:.0f} ms ({where['machine']}, jax {where['jax']})"
    figure.suptitle(text, fontsize=10)
    figure.savefig(PICTURE, dpi=110)


def draw_axis(axes, axis: str, rows: dict[str, dict]) -> None:
    def compiled(value):
        return rows.get(name("compiled", BASE | {axis: value, "devices": 1, "axis": "data"}))

    values = AXES[axis]
    for quantity, label, style in (
        ("flops", "FLOPs, closed form", "o-C0"),
        ("temporaries", "temporaries, compiled for CPU", "s--C1"),
        ("arguments", "state and batch, compiled for CPU", "^:C7"),
    ):
        found = {value: compiled(value) for value in values}
        if not found[BASE[axis]]:
            continue
        one = found[BASE[axis]][quantity]
        points = [(value, row[quantity] / one) for value, row in found.items() if row]
        positions = [values.index(v) if axis == "model" else v for v, _ in points]
        axes.plot(positions, [cost for _, cost in points], style, label=label, markersize=6)
    timed = {v: rows.get(name("measured", BASE | {axis: v})) for v in TIMED.get(axis, ())}
    if all(timed.values()) and timed:
        one = statistics.median(timed[BASE[axis]]["seconds"])
        for value, row in timed.items():
            low, middle, high = (f(row["seconds"]) / one for f in (min, statistics.median, max))
            label = "time, measured: median, least and most" if value == BASE[axis] else None
            spread = [[middle - low], [high - middle]]
            axes.errorbar([value], [middle], spread, fmt="Dk", capsize=3, label=label)
    ticks = range(len(AXES[axis])) if axis == "model" else AXES[axis]
    axes.set_yscale("log", base=2)
    if axis != "model":
        axes.set_xscale("log", base=2)
    labels = [f"ViT-{v.upper()}" if axis == "model" else str(v) for v in AXES[axis]]
    axes.set_xticks(list(ticks), labels)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} x")
    words = {"size": "height and width, pixels", "batch": "clips a step", "model": "model"}
    axes.set_xlabel(words.get(axis, axis))
    axes.grid(alpha=0.3)


def draw_devices(axes, rows: dict[str, dict]) -> None:
    """Stack what a device sends in a step, by kind, for each layout."""
    colours, place, labels = {}, 0, []
    for layout in ("data", "fsdp"):
        for count in DEVICES[1:]:
            point = BASE | {"batch": DEVICES_BATCH, "devices": count, "axis": layout}
            row = rows.get(name("compiled", point))
            if not row:
                continue
            bottom = 0.0
            for collective in row["collectives"]:
                kind, size = collective["kind"], collective["bytes"] / 1e6
                new = kind not in colours
                colour = colours.setdefault(kind, f"C{len(colours)}")
                axes.bar(place, size, 0.7, bottom, color=colour, label=kind if new else None)
                bottom += size
            labels.append(f"{layout}\n= {count}")
            place += 1
    if not place:
        axes.text(0.5, 0.5, "not compiled yet", ha="center", transform=axes.transAxes)
        return
    axes.set_xticks(range(place), labels, fontsize=8)
    axes.set_ylabel("MB sent per device and step")
    axes.set_title(
        f"ViT-S, {DEVICES_BATCH} clips, emulated devices: compiled for CPU, float32", fontsize=9
    )
    axes.legend(fontsize=8)


def draw_pods(axes, rows: dict[str, dict]) -> None:
    """Floors of a step on real chips that were not there, one group of bars a slice."""
    there = [count for count in CHIPS if f"pods v5e-{count}" in rows]
    if not there:
        axes.text(0.5, 0.5, "TPU slices: not compiled yet", ha="center", transform=axes.transAxes)
        return
    for index, floor in enumerate(("compute", "memory", "network")):
        heights = [1e3 * rows[f"pods v5e-{count}"][f"{floor}_floor"] for count in there]
        positions = [group + 0.27 * (index - 1) for group in range(len(there))]
        axes.bar(positions, heights, 0.25, label=floor)
    axes.set_xticks(range(len(there)), [f"{count} chips" for count in there])
    axes.set_ylabel("floor of a step, ms")
    title = f"ViT-B on TPU v5e, {CLIPS_PER_CHIP} clips a chip: compiled ahead of time,\n"
    axes.set_title(title + "floors by data sheet; nothing ran", fontsize=9)
    axes.set_ylim(top=1.15 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, ncols=3, loc="upper center")


if __name__ == "__main__":
    main()
