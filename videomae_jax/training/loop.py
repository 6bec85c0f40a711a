"""Train a model, from its config to its last checkpoint. Builds the parts and runs the loop."""

import functools
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videomae_jax.config import differences
from videomae_jax.data.pipeline import clip_batches
from videomae_jax.data.samplers import ClipSampler
from videomae_jax.data.synthetic import SyntheticSampler
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.devices.distributed import Peers, numbers_of_first, say
from videomae_jax.devices.host_memory import tree_bytes, trim_host_memory
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import (
    batch_devices,
    batch_sharding,
    batch_share,
    check_training_batch,
    make_mesh,
)
from videomae_jax.paths import as_path, is_remote
from videomae_jax.tasks.build import open_videos
from videomae_jax.tasks.task import Params, Task, TaskModule
from videomae_jax.training import banner
from videomae_jax.training.checkpoint import Checkpoints
from videomae_jax.training.evaluation import evaluate, named_weights
from videomae_jax.training.lock import only_run
from videomae_jax.training.mirror import Mirror, mirrored
from videomae_jax.training.monitor import Monitor
from videomae_jax.training.online_knn import OnlineKnn
from videomae_jax.training.optim import (
    Schedule,
    average_decay,
    make_optimizer,
    make_schedule,
    warmup_cosine,
)
from videomae_jax.training.signals import StopSignal, Watchdog, stop_signals
from videomae_jax.training.step import (
    Steps,
    TrainState,
    abstract_batch,
    jit_steps,
    put_params,
    put_teacher,
)
from videomae_jax.training.transfer import transfer_encoder
from videomae_jax.training.workdir import (
    BAD_VIDEOS,
    check_same_model,
    check_space,
    finish,
    make_workdir,
    read_metrics,
    work_directory,
    write_classes,
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What does not change during a run."""

    config: ConfigDict
    workdir: str
    mirror: Mirror
    mesh: Mesh
    task: Task
    train_sampler: ClipSampler
    eval_sampler: ClipSampler
    schedule: Schedule
    functions: Steps
    teacher: tuple[Params, ...]  # the parameters of the teacher on the devices, if there is one
    train_videos: Videos
    eval_videos: Videos | None
    bad: BadVideos  # training videos that could not be read
    checkpoints: Checkpoints
    watchdog: Watchdog
    stop: StopSignal
    peers: Peers

    @property
    def clips(self) -> int:
        """Clips of one step, over all devices."""
        return self.config.batch_size * self.config.repeats

    @functools.cached_property
    def knn(self) -> OnlineKnn | None:
        """Measures the kNN accuracy in every evaluation, if the task asks for it."""
        if not self.task.knn or self.eval_videos is None:
            return None
        return OnlineKnn(
            self.config,
            named_weights(self.functions.abstract_state),
            self.train_videos,
            self.eval_videos,
            sampler=self.eval_sampler,
            mesh=self.mesh,
        )

    def exchange(self, waited: float = 0.0) -> np.ndarray:
        """Return [2, processes]: the signal of each process, and the seconds it `waited`.

        It is called once a step, and once a batch of an evaluation: it also feeds the watchdog.
        """
        self.watchdog.feed()
        return self.peers.all_gather(self.stop.signal, waited).T


def train(
    config: ConfigDict,
    task_module: TaskModule,
    *,
    workdir: str,
    load_weights: Callable[[str], Params],
) -> bool:
    """Train to the last step, from the newest checkpoint in `workdir` if there is one.

    load_weights: reads `config.init_from` and `config.teacher`.
    Returns False when Ctrl-C or SIGTERM ended the run early; the same command then resumes it.
    On several processes each calls it, and all return the same.
    """
    if is_remote(workdir):
        workdir = str(as_path(workdir))  # without a slash at its end
    with ExitStack() as stack:
        # Before anything compiles: a KeyboardInterrupt that is raised inside a callback of JAX is
        # printed and ignored. A recorded signal is not lost.
        stop = stack.enter_context(stop_signals())
        # What a user can get wrong comes first, before anything slow.
        mesh = make_mesh(config.mesh)
        check_training_batch(config, mesh)
        config, train_videos, eval_videos = task_module.prepare(config, *open_videos(config))
        task = task_module.build_task(config)
        clips = config.batch_size * config.repeats
        task.check_clips(clips // (batch_devices(mesh) * config.accumulation))
        schedule = make_schedule(config, examples=len(train_videos))
        make_workdir(workdir)
        stack.enter_context(only_run(workdir))
        mirror = stack.enter_context(mirrored(workdir))
        bad = BadVideos(
            train_videos,
            max_share=config.data.max_bad_share,
            file=mirror.folder / BAD_VIDEOS,
            process_index=jax.process_index(),
        )

        watchdog = stack.enter_context(Watchdog(config.watchdog_seconds))
        stack.enter_context(work_directory(workdir))
        stack.enter_context(jax.set_mesh(mesh))
        functions = _make_steps(config, task, schedule, mesh)
        config, teacher = _read_teacher(config, functions, load_weights)
        train_sampler, eval_sampler = _samplers(config, task)
        run = Run(
            config=config,
            workdir=workdir,
            mirror=mirror,
            mesh=mesh,
            task=task,
            train_sampler=train_sampler,
            eval_sampler=eval_sampler,
            schedule=schedule,
            functions=functions,
            teacher=teacher,
            train_videos=train_videos,
            eval_videos=eval_videos,
            bad=bad,
            checkpoints=Checkpoints(workdir, keep=config.keep_checkpoints),
            watchdog=watchdog,
            stop=stop,
            peers=Peers(mesh),
        )
        stack.callback(run.checkpoints.close)
        start, state, changes = _starting_state(run, load_weights)
        monitor = Monitor(
            str(mirror.folder),
            total_steps=schedule.steps,
            batch_size=run.clips,
            flops=task.train_flops,
            log_every=config.log_every,
            max_skipped_steps=config.max_skipped_steps,
            watchdog=watchdog,
        )
        stack.callback(monitor.close)
        if not _evaluate_missed(run, start, state, monitor):
            return False
        if start < schedule.steps:
            if not _train_steps(run, start, state, changes, monitor):
                return False
            _verify_last(run, monitor)  # "done" is said of a checkpoint that can be read
        finish(workdir, max(start, schedule.steps), folder=mirror.folder, bad=bad)
        say(monitor.summary())
    return True


def _make_steps(config: ConfigDict, task: Task, schedule: Schedule, mesh: Mesh) -> Steps:
    """Return the jitted functions of a run."""
    return jit_steps(
        task,
        make_optimizer(config, task),
        warmup_cosine(schedule),
        mesh,
        seed=config.seed,
        accumulation=config.accumulation,
        ema_decay=average_decay(config, task, steps=schedule.steps),
    )


def _read_teacher(
    config: ConfigDict, functions: Steps, load_weights: Callable[[str], Params]
) -> tuple[ConfigDict, tuple[Params, ...]]:
    """Return the config with the digest of the teacher, and its parameters; () if there is none.

    The checkpoints of a run do not hold the teacher. A run that resumes reads it again, and by the
    digest knows whether it is the same.
    """
    if not functions.abstract_teacher:
        return config, ()
    (abstract,) = functions.abstract_teacher
    teacher, digest = put_teacher(load_weights(config.teacher), abstract)
    config = config.copy_and_resolve_references().unlock()
    config.teacher_model.digest = digest
    return config.lock(), (teacher,)


def _starting_state(
    run: Run, load_weights: Callable[[str], Params]
) -> tuple[int, TrainState, dict[str, tuple[Any, Any]]]:
    """Return the step to start after, its state, and what changed in the config since then."""
    config = run.config
    workdir = run.workdir
    abstract_state = run.functions.abstract_state
    total = run.schedule.steps
    # First choice: resume. A run that has a checkpoint never reads `init_from` again.
    restored = run.checkpoints.restore(
        abstract_state,
        check=lambda old: check_same_model(differences(old, config), workdir=workdir),
    )
    if restored:
        start, state, old = restored
        changes = differences(old, config)
        if start >= total:
            unused = f"; without effect: {', '.join(changes)}" if changes else ""
            say(
                f"nothing to train: {workdir} is at step {start:,}, the run ends at {total:,}"
                + unused
            )
        return start, state, changes
    check_space(workdir, needed=2 * tree_bytes(abstract_state))
    state = run.functions.init()
    # Second choice: the encoder of `init_from`. Otherwise train from scratch.
    if config.init_from:
        params, table = transfer_encoder(load_weights(config.init_from), state.params)
        say(f"weights of {config.init_from}: {table}")
        state = put_params(state, params)
    return 0, state, {}


def _train_steps(
    run: Run,
    start: int,
    state: TrainState,
    changes: dict[str, tuple[Any, Any]],
    monitor: Monitor,
) -> bool:
    """Train from step `start` to the last one; False when a signal ended it early."""
    config = run.config
    total = run.schedule.steps
    with _open_batches(run, start) as batches:
        # While the first batches are read.
        train_step = _compile_step(run, state, start, changes)

        def exchange() -> np.ndarray:
            return run.exchange(batches.waited)

        exchange()  # on several processes an answer comes one call late
        if number := int(exchange()[0].max()):
            name = signal.Signals(number).name
            say(f"{name}: stopped before step {start + 1:,}; the same command goes on from there")
            return False
        for step, batch in enumerate(batches, start + 1):
            if step == start + 1:
                monitor.begin(start)
                batches.waited = 0.0  # the first batch is part of the start, not of the rate
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, batch, *run.teacher)
            signals, waited = exchange()
            monitor.record(step, metrics, batch["id"], waited=waited)
            run.bad.check()
            run.mirror.check()
            number = int(signals.max())
            saved = bool(number) or step == total or step % config.save_every == 0
            if saved:
                _save(run, step, state, monitor)
            if not number and _is_scored(run, step):
                if not _evaluate(run, step, state, monitor, exchange):
                    number = int(exchange()[0].max())
                    if not saved:
                        _save(run, step, state, monitor)
            if number:
                with monitor.pause("saving"):
                    run.checkpoints.wait()
                name = signal.Signals(number).name
                say(f"{name}: saved step {step:,}; the same command goes on from there")
                return False
    return True


def _save(run: Run, step: int, state: TrainState, monitor: Monitor) -> None:
    """Start saving a state."""
    with monitor.pause("saving"):
        run.mirror.push()  # first, so that no checkpoint lacks the metrics before it
        run.checkpoints.save(step, state, run.config)


def _verify_last(run: Run, monitor: Monitor) -> None:
    """Wait for the last save, and read it back."""
    with monitor.pause("saving"):
        run.checkpoints.wait()
        run.checkpoints.verify(run.schedule.steps, run.functions.abstract_state)


def _is_scored(run: Run, step: int) -> bool:
    """Return whether the state after a step is scored on held-out videos."""
    due = step == run.schedule.steps or step % run.config.eval_every == 0
    return due and run.eval_videos is not None


def _evaluate(
    run: Run,
    step: int,
    state: TrainState,
    monitor: Monitor,
    exchange: Callable[[], np.ndarray],
) -> bool:
    """Score a state and report it; False if a signal ended this early."""
    assert run.eval_videos is not None
    with monitor.pause("evaluating"):
        scores = evaluate(
            run.config,
            run.task,
            run.functions,
            state,
            teacher=run.teacher,
            videos=run.eval_videos,
            sampler=run.eval_sampler,
            mesh=run.mesh,
            knn=run.knn,
            stopped=lambda: bool(exchange()[0].any()),
        )
        if scores:
            monitor.evaluated(step, *scores)
    return scores is not None


def _evaluate_missed(run: Run, start: int, state: TrainState, monitor: Monitor) -> bool:
    """Score the state that a run resumes from, if that is due; False if a signal ended it."""
    missed = start > 0 and _is_scored(run, start)
    if missed and jax.process_index() == 0:
        rows = read_metrics(str(run.mirror.folder))
        missed = not any(row["step"] == start and "eval/loss" in row for row in rows)
    if not numbers_of_first([missed])[0]:
        return True
    say(f"step {start:,} was not scored on the held-out videos: now it is")
    finished = _evaluate(run, start, state, monitor, run.exchange)
    if not finished:
        say(f"stopped before step {start:,} was scored; the same command goes on from there")
    return finished


def _samplers(config: ConfigDict, task: Task) -> tuple[ClipSampler, ClipSampler]:
    """Return the samplers of training and of evaluation clips."""
    train_sampler, eval_sampler = task.samplers()
    if config.data.train != "synthetic":
        return train_sampler, eval_sampler
    return SyntheticSampler(train_sampler.spec), SyntheticSampler(eval_sampler.spec)


def _open_batches(run: Run, start: int) -> DevicePrefetcher:
    """Start to read the batches after step `start`."""
    config = run.config
    share, shares = batch_share(run.mesh)
    batches = clip_batches(
        run.train_videos,
        sampler=run.train_sampler,
        batch_size=run.clips,
        repeats=config.repeats,
        seed=config.seed,
        # The position in the data is the step, so a resumed run gets the same batches.
        start_step=start,
        num_steps=run.schedule.steps - start,
        bad=run.bad,
        process_index=share,
        process_count=shares,
        threads=config.data.threads or None,
        prefetch=config.data.ahead,
    )
    return DevicePrefetcher(batches, sharding=batch_sharding(run.mesh), prefetch=config.data.ahead)


def _class_rows(run: Run) -> dict[str, str]:
    """Return the line of the banner about the classes, if there are any, and write their file."""
    model = run.config.model
    if "classes" not in model:
        return {}
    names = tuple(run.config.data.class_names)
    videos = run.train_videos
    rows = write_classes(run.mirror.folder, names, model.classes, videos, run.eval_videos)
    unit = "videos" if videos.key_frames is None else "boxes"
    labelled = videos.labels is not None or videos.key_frames is not None
    return {"classes": banner.classes_line(rows, unit=unit, labelled=labelled)}


def _compile_step(
    run: Run, state: TrainState, start: int, changes: dict[str, tuple[Any, Any]]
) -> jax.stages.Compiled:
    """Compile the training step and print the banner, which includes the memory it needs."""
    config, mesh, schedule = run.config, run.mesh, run.schedule
    batch = abstract_batch(run.train_sampler, run.clips, mesh, labels=run.train_videos.labels)
    compiled = run.functions.train.lower(state, batch, *run.teacher).compile()
    trim_host_memory()
    rows = {
        "devices": banner.devices_line(mesh),
        "model": banner.model_line(state.params),
        **run.task.summary,
        "data": banner.data_line(run.train_videos, run.eval_videos),
        **_class_rows(run),
        "batch": banner.batch_line(config, mesh),
        "rate": banner.rate_line(config, schedule),
        "length": banner.length_line(
            config, schedule, len(run.train_videos), unit=run.train_videos.unit
        ),
        "memory": banner.memory_line(compiled, batch, prefetch=config.data.ahead),
        "workdir": banner.workdir_line(run.workdir, start, changes, init_from=config.init_from),
    }
    say(banner.text(config.name, rows))
    return compiled
