"""A run, from its config to its last checkpoint. Assembles and loops; no mathematics."""

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from videomae_jax.config import differences
from videomae_jax.data.pipeline import clip_batches
from videomae_jax.data.synthetic import SyntheticSampler
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.devices.distributed import Peers, say
from videomae_jax.devices.host_memory import tree_bytes, trim_host_memory
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import (
    batch_devices,
    batch_sharding,
    batch_share,
    check_batch,
    make_mesh,
)
from videomae_jax.tasks.build import open_videos
from videomae_jax.tasks.task import Params, TaskModule
from videomae_jax.training import banner
from videomae_jax.training.checkpoint import FOLDER, Checkpoints, check_space
from videomae_jax.training.evaluation import evaluate, named_weights
from videomae_jax.training.monitor import Monitor
from videomae_jax.training.online_knn import OnlineKnn
from videomae_jax.training.optim import make_optimizer, make_schedule, warmup_cosine
from videomae_jax.training.signals import Watchdog, stop_signals
from videomae_jax.training.step import jit_steps, put_params
from videomae_jax.training.transfer import transfer_encoder
from videomae_jax.training.workdir import check_same_model, finish, make_workdir, work_directory


def train(
    config: ConfigDict,
    task_module: TaskModule,
    *,
    workdir: str,
    load_weights: Callable[[str], Params],
) -> bool:
    """Train to the last step, going on from the newest checkpoint in `workdir` if there is one.

    load_weights: reads `config.init_from`.
    Returns False when Ctrl-C or SIGTERM ended the run early; either way its state is saved.
    On several processes each calls it, and all return the same.
    """
    # What a user can get wrong comes first, before anything slow.
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    config, train_videos, eval_videos = task_module.prepare(config, *open_videos(config))
    task = task_module.build_task(config)
    clips = config.batch_size * config.repeats  # of a step
    task.check_clips(clips // (batch_devices(mesh) * config.accumulation))
    plan = make_schedule(config, examples=len(train_videos))
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
            make_optimizer(config, task),
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
            check=lambda old: check_same_model(differences(old, config), workdir=workdir),
        )
        if restored:
            start, state, old = restored
            changes = differences(old, config)
            if start >= plan.steps:
                say(
                    f"nothing to train: {workdir} is at step {start:,}, the run ends at "
                    f"{plan.steps:,}"
                    + (f"; without effect: {', '.join(changes)}" if changes else "")
                )
        else:
            start, changes = 0, {}
            check_space(workdir, needed=2 * tree_bytes(steps.abstract_state))
            state = steps.init()
            if config.init_from:
                params, table = transfer_encoder(load_weights(config.init_from), state.params)
                say(f"weights of {config.init_from}: {table}")
                state = put_params(state, params)

        # The position in the data is the step, so a resumed run meets the same batches.
        train_sampler, eval_sampler = task.samplers()
        if config.data.train == "synthetic":
            train_sampler, eval_sampler = (
                SyntheticSampler(sampler.shape, sized=sampler.sized)
                for sampler in (train_sampler, eval_sampler)
            )
        knn = task.knn and OnlineKnn(
            config,
            named_weights(steps.abstract_state),
            train_videos,
            eval_videos,
            sampler=eval_sampler,
            mesh=mesh,
        )
        share, shares = batch_share(mesh)
        batches = clip_batches(
            train_videos,
            sampler=train_sampler,
            batch_size=clips,
            repeats=config.repeats,
            seed=config.seed,
            start_step=start,
            num_steps=plan.steps - start,
            bad=bad,
            process_index=share,
            process_count=shares,
            threads=config.data.threads or None,
            prefetch=config.data.ahead,
        )
        feed = DevicePrefetcher(batches, sharding=batch_sharding(mesh), prefetch=config.data.ahead)
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
            return peers.all_gather(stop.signal, feed.waited - waited_before).T

        train_step, waited_before = None, 0.0
        for step, batch in enumerate(feed, start + 1):
            if train_step is None:
                # Ahead of the first step: to tell its memory, and to keep compiling out of the
                # rate.
                train_step = steps.train.lower(state, batch).compile()
                trim_host_memory()
                rows = {
                    "devices": banner.devices_line(mesh),
                    "model": banner.model_line(state.params),
                    **task.summary,
                    "data": banner.data_line(train_videos, eval_videos),
                    "batch": banner.batch_line(config, mesh),
                    "rate": banner.rate_line(config, plan),
                    "length": banner.length_line(config, plan, len(train_videos)),
                    "memory": banner.memory_line(train_step, batch, prefetch=config.data.ahead),
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
                        sampler=eval_sampler,
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
