"""A run, from its config to its last checkpoint. Assembles and loops; no mathematics."""

import math
import reprlib
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videomae_jax.data.bad import BadVideos
from videomae_jax.data.decoders import open_decoder
from videomae_jax.data.feed import Feed
from videomae_jax.data.memory import FrameMemory
from videomae_jax.data.pipeline import clip_batches, eval_batches
from videomae_jax.data.sources import Videos, read_videos, split_videos
from videomae_jax.data.synthetic import SyntheticSample, synthetic_videos
from videomae_jax.errors import UserError
from videomae_jax.pictures import plot_curve
from videomae_jax.tasks.task import Params, Task
from videomae_jax.training import banner
from videomae_jax.training.checkpoint import FOLDER, Checkpoints, check_space
from videomae_jax.training.disk import work_directory
from videomae_jax.training.distributed import Peers, say
from videomae_jax.training.memory import settle_memory
from videomae_jax.training.monitor import Monitor, read_metrics
from videomae_jax.training.neighbours import OnlineKnn
from videomae_jax.training.optim import make_optimizer, make_plan, warmup_cosine
from videomae_jax.training.sharding import (
    batch_devices,
    batch_sharding,
    batch_share,
    make_mesh,
)
from videomae_jax.training.step import Steps, TrainState, jit_steps, put_params
from videomae_jax.training.transfer import transfer_encoder
from videomae_jax.training.watchdog import Watchdog


def train(
    config: ConfigDict,
    kind: ModuleType,
    *,
    workdir: str,
    load_weights: Callable[[str], Params],
) -> bool:
    """Train to the last step, going on from the newest checkpoint in `workdir` if there is one.

    kind: the module of the task, see `tasks.task`. load_weights: reads `config.init_from`.
    Returns False when Ctrl-C or SIGTERM ended the run early; either way its state is saved.
    On several processes each calls it, and all return the same.
    """
    # What a user can get wrong comes first, before anything slow.
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    config, train_videos, eval_videos = kind.prepare(config, *open_videos(config))
    task = kind.build_task(config)
    clips = config.batch_size * config.repeats  # of a step
    task.check_clips(clips // (batch_devices(mesh) * config.accumulation))
    plan = make_plan(config, examples=len(train_videos))
    make_workdir(workdir)
    bad = BadVideos(
        train_videos,
        max_share=config.data.max_bad_share,
        file=Path(workdir) / "bad_videos.csv",
        process_index=jax.process_index(),
    )

    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(config.watchdog_seconds))
        stack.enter_context(work_directory(workdir, checkpoints=FOLDER))
        stack.enter_context(jax.set_mesh(mesh))
        steps = jit_steps(
            task,
            make_optimizer(config),
            warmup_cosine(plan),
            mesh,
            seed=config.seed,
            accumulation=config.accumulation,
            ema_decay=config.ema_decay,
        )
        checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
        stack.callback(checkpoints.close)
        restored = checkpoints.restore(
            steps.abstract_state,
            check=lambda old: check_same_model(banner.differences(old, config), workdir=workdir),
        )
        if restored:
            start, state, old = restored
            changes = banner.differences(old, config)
            if start >= plan.steps:
                say(
                    f"nothing to train: {workdir} is at step {start:,}, the run ends at "
                    f"{plan.steps:,}"
                    + (f"; without effect: {', '.join(changes)}" if changes else "")
                )
        else:
            start, changes = 0, {}
            check_space(workdir, needed=2 * banner.tree_bytes(steps.abstract_state))
            state = steps.init()
            if config.init_from:
                params, table = transfer_encoder(load_weights(config.init_from), state.params)
                say(f"weights of {config.init_from}: {table}")
                state = put_params(state, params)

        # The position in the data is the step, so a resumed run meets the same batches.
        train_sample, eval_sample = task.samples()
        if config.data.train == "synthetic":
            train_sample, eval_sample = (
                SyntheticSample(sample.shape, sized=sample.sized)
                for sample in (train_sample, eval_sample)
            )
        knn = task.knn and OnlineKnn(
            config,
            named_weights(steps.abstract_state),
            train_videos,
            eval_videos,
            sample=eval_sample,
            mesh=mesh,
        )
        share, shares = batch_share(mesh)
        batches = clip_batches(
            train_videos,
            sample=train_sample,
            batch_size=clips,
            repeats=config.repeats,
            seed=config.seed,
            start_step=start,
            num_steps=plan.steps - start,
            bad=bad,
            process_index=share,
            process_count=shares,
            threads=config.data.threads or None,
            ahead=config.data.ahead,
        )
        feed = Feed(batches, sharding=batch_sharding(mesh), ahead=config.data.ahead)
        stack.enter_context(feed)
        monitor = Monitor(
            workdir,
            total_steps=plan.steps,
            batch_size=clips,
            flops=task.train_flops,
            log_every=config.log_every,
            max_skipped_steps=config.max_skipped_steps,
            watchdog=watchdog,
        )
        stack.callback(monitor.close)
        stop, peers = stack.enter_context(stop_signals()), Peers(mesh)

        def tell_peers() -> np.ndarray:
            """[2, processes]: the signal that each received, and how long it has waited."""
            watchdog.feed()
            return peers.tell(stop.signal, feed.waited - waited_before).T

        train_step, waited_before = None, 0.0
        for step, batch in enumerate(feed, start + 1):
            if train_step is None:
                # Ahead of the first step: to tell its memory, and to keep compiling out of the
                # rate.
                train_step = steps.train.lower(state, batch).compile()
                settle_memory()
                rows = {
                    "devices": banner.devices_line(mesh),
                    "model": banner.model_line(state.params),
                    **task.facts,
                    "data": banner.data_line(train_videos, eval_videos),
                    "batch": banner.batch_line(config, mesh),
                    "rate": banner.rate_line(config, plan),
                    "length": banner.length_line(config, plan, len(train_videos)),
                    "memory": banner.memory_line(train_step, batch, ahead=config.data.ahead),
                    "workdir": banner.workdir_line(
                        workdir, start, changes, init_from=config.init_from
                    ),
                }
                say(banner.text(config.name, rows))
                monitor.begin(start)
                waited_before = feed.waited
            state, metrics = train_step(state, batch)
            signals, waited = tell_peers()
            monitor.record(step, metrics, batch["id"], waited=waited)
            bad.check()
            last, stopping = step == plan.steps, int(signals.max())
            if last or stopping or step % config.save_every == 0:
                with monitor.pause("saving"):
                    checkpoints.save(step, state, config)
                    if stopping:
                        checkpoints.wait()
            if stopping:
                name = signal.Signals(stopping).name
                say(f"{name}: saved step {step:,}; the same command goes on from there")
                return False
            if eval_videos and (last or step % config.eval_every == 0):
                with monitor.pause("evaluating"):
                    scores = evaluate(
                        config,
                        task,
                        steps,
                        state,
                        videos=eval_videos,
                        sample=eval_sample,
                        mesh=mesh,
                        stopping=lambda: tell_peers()[0].any(),
                        knn=knn,
                    )
                    if scores:
                        monitor.evaluated(step, *scores)
        checkpoints.wait()
        finish(workdir, max(start, plan.steps), bad=bad)
        say(monitor.summary())
    return True


class StopSignal:
    """The number of the signal that asked this process to stop; 0 while none did."""

    signal: int = 0

    @property
    def received(self) -> str | None:
        """The name of that signal."""
        return signal.Signals(self.signal).name if self.signal else None


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Turn Ctrl-C and SIGTERM into a wish that the loop fulfils between two steps.

    The second one of either takes its usual course: it interrupts or kills.
    """
    stop, before = StopSignal(), {}

    def handle(number, _):
        stop.signal = number
        signal.signal(number, before[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def evaluate(
    config: ConfigDict,
    task: Task,
    steps: Steps,
    state: TrainState,
    *,
    videos: Videos,
    sample: Callable,
    mesh: Mesh,
    stopping: Callable[[], bool],
    knn: OnlineKnn | None,
) -> tuple[dict[str, float], str, dict[str, np.ndarray]] | None:
    """Score every held-out video once: (metrics, how many could be read, pictures).

    The metrics of the averaged weights, where there are any, have "ema_" before their names.
    stopping: asked once a batch; where it says so, all processes return None: a notice of
    seconds is not spent on scores.
    """
    weights = named_weights(state)
    bad = BadVideos(videos, max_share=1.0)
    share, shares = batch_share(mesh)
    batches = eval_batches(
        videos,
        sample=sample,
        batch_size=config.batch_size * config.repeats,
        seed=config.seed,
        bad=bad,
        process_index=share,
        process_count=shares,
        threads=config.data.threads or None,
    )
    totals, pictures = {}, None
    with Feed(batches, sharding=batch_sharding(mesh)) as feed:
        for batch in feed:
            if stopping():
                return None
            if pictures is None:
                pictures = task.pictures(state.params, batch)
            for name, params in weights.items():
                sums = {k: np.float64(v) for k, v in steps.evaluate(params, batch).items()}
                totals[name] = jax.tree.map(np.add, totals[name], sums) if name in totals else sums
    if not totals[""]["count"]:
        raise UserError(f"held-out data: {bad}")
    unread = int(multihost_utils.process_allgather(np.int32(len(bad))).sum())
    note = str(bad) if unread == len(bad) else f"{unread} of {len(videos)} videos unreadable"
    note = note if unread else f"{len(videos):,} videos"
    scores = {
        name + key: float(value)
        for name, sums in totals.items()
        for key, value in task.summarize(sums).items()
    }
    if knn:
        found = knn(weights, stopped=stopping)
        if found is None:
            return None
        scores |= found
    return scores, note, pictures


def named_weights(state: TrainState) -> dict[str, Params]:
    """Return the weights that are evaluated, by what their metrics' names begin with."""
    return {"": state.params} | ({} if state.ema is None else {"ema_": state.ema})


def open_videos(config: ConfigDict) -> tuple[Videos, Videos | None]:
    """Return the training and the held-out videos; None where the config names none."""
    data = config.data
    if not data.train:
        raise UserError(
            "config.data.train is not set: give --config.data.train=MANIFEST_OR_FOLDER "
            "(or synthetic)"
        )
    open_decoder(data.decoder)
    memory = FrameMemory(budget=int(data.memory_gb * 1e9)) if data.memory_gb else None
    if data.train == "synthetic":
        videos = synthetic_videos()
    else:
        videos = replace(read_videos(data.train), memory=memory, decoder=data.decoder)
    if data.eval:
        return videos, replace(read_videos(data.eval), memory=memory, decoder=data.decoder)
    if data.holdout:
        return split_videos(videos, holdout=data.holdout, seed=config.seed)
    return videos, None


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError unless every device gets the same number of clips in every part."""
    unit = batch_devices(mesh) * config.accumulation
    unit //= math.gcd(unit, config.repeats)  # of videos, from here on
    if config.batch_size % unit:
        below = config.batch_size // unit * unit
        split = f"{batch_devices(mesh)} devices (data={mesh.shape['data']}, "
        split += f"fsdp={mesh.shape['fsdp']})"
        if config.accumulation > 1:
            split += f" x {config.accumulation} accumulated parts"
        if config.repeats > 1:
            split += f" at {config.repeats} clips each"
        legal = f"{below} or {below + unit}" if below > 0 else f"{unit}"
        raise UserError(f"batch {config.batch_size} is not divisible by {split}: use {legal}")


def check_same_model(changes: dict, *, workdir: str) -> None:
    """Raise UserError when a checkpoint's config names another model than the run's."""
    if "task" in changes:  # of which the rest follows
        changes = {"task": changes["task"]}
    fixed = ("model.encoder", "model.decoder", "model.patch", "model.classes", "data.class_names")
    fixed += ("model.head", "rates")  # of probes
    for key, (old, new) in changes.items():
        average = key == "ema_decay" and bool(old) != bool(new)
        # The optimizer's state has another structure.
        layers = key == "layer_decay" and (old == 1) != (new == 1)
        if key == "task" or key.startswith(fixed) or average or layers:
            raise UserError(
                f"{workdir} holds a checkpoint with {key}={reprlib.repr(old)}, the config says "
                f"{reprlib.repr(new)}: use another --workdir, or that config"
            )


def make_workdir(workdir: str) -> None:
    """Create `workdir` and try writing to it; raises UserError where that fails."""
    probe = Path(workdir) / f".probe-{jax.process_index()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"videomae")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir {workdir}: {error.strerror}; use another"
        ) from None


def finish(workdir: str, steps: int, *, bad: BadVideos) -> None:
    """Draw the curve of a finished run and say where everything is."""
    if jax.process_index() > 0:
        return
    curve = Path(workdir) / "curve.png"
    plot_curve(read_metrics(workdir), str(curve))
    print(f"done, {steps:,} steps")
    if len(bad):
        print(f"  replaced    {bad}")
    print(f"  checkpoint  {Path(workdir) / FOLDER / str(steps)}")
    print(f"  curve       {curve}")
