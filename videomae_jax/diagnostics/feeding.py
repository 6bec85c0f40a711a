"""Measure the input pipeline of a config, stage by stage, against the rate of its training step."""

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from videomae_jax.data.decode import UnreadableVideo
from videomae_jax.data.pipeline import clip_batches
from videomae_jax.data.regions import decode_clips
from videomae_jax.data.samplers import ClipSampler
from videomae_jax.data.storage import read_bytes, readers
from videomae_jax.data.synthetic import SyntheticSampler
from videomae_jax.data.turns import Turns
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos, thin_videos
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.devices.sharding import (
    batch_devices,
    batch_sharding,
    check_training_batch,
    make_mesh,
)
from videomae_jax.diagnostics.stage_time import time_feed
from videomae_jax.diagnostics.step_time import SCHEDULE
from videomae_jax.errors import UserError
from videomae_jax.host import count_cores
from videomae_jax.interop.teacher import load_teacher
from videomae_jax.paths import is_remote
from videomae_jax.tasks.build import open_videos
from videomae_jax.tasks.task import Task, TaskModule
from videomae_jax.training.optim import average_decay, make_optimizer, warmup_cosine
from videomae_jax.training.step import jit_steps

# The most clips per device of the measured step: a CPU takes seconds for one.
CPU_CLIPS, ACCELERATOR_CLIPS = 2, 16
WARM_UP, STEPS = 2, 5
STAGES = ("read", "decode", "augment", "transfer", "together")
# Below this ratio to the need the verdict is "only just": runs vary by as much.
MARGIN = 1.1
UNREADABLE = 16  # the most unreadable videos in a row


class Rate(NamedTuple):
    """Rates of one stage per second: clips, clips per core, and bytes of its output.

    `core` is None for the transfer, which does not run on cores.
    """

    clips: float
    core: float | None
    bytes: float


class Feeding(NamedTuple):
    """The rates of the stages, and the clips per second that the step needs.

    step_clips: clips of the measured step. packed: the format of packed records, or None.
    memory_share: the fraction of the videos that `data.memory_gb` holds, None if it is not set.
    """

    rates: dict[str, Rate]
    needed: float
    step_clips: int
    cores: int
    threads: int
    packed: str | None
    memory_share: float | None


def measure(config: ConfigDict, task_module: TaskModule, *, seconds: float) -> Feeding:
    """Time the stages and the step of a config on this machine, about `seconds` for each.

    Unreadable videos are skipped. The stage "read" bypasses the page cache of the system; the other
    stages read from it. "together" is everything but the step, in batches of the size of the
    measured step.
    """
    mesh = make_mesh(config.mesh)
    check_training_batch(config, mesh)
    config, videos, _ = task_module.prepare(config, *open_videos(config))
    cores = count_cores()
    threads = config.data.threads or cores
    clips = _step_clips(config, batch_devices(mesh))
    rates = {}
    with jax.set_mesh(mesh):
        task = task_module.build_task(config)
        task.check_clips(clips // batch_devices(mesh))
        sampler = task.samplers()[0]
        if config.data.train == "synthetic":
            sampler = SyntheticSampler(sampler.spec)
            steps = STEPS
        else:
            rates = _host_rates(config, videos, sampler, threads=threads, seconds=seconds)
            steps = int(seconds * rates["decode"].clips / clips)
            steps = max(2, min(steps, len(videos) * config.repeats // clips))
        few = thin_videos(videos, most=max(1, steps * clips // config.repeats))
        batches = clip_batches(
            few,
            sampler=sampler,
            batch_size=clips,
            repeats=config.repeats,
            seed=config.seed,
            start_step=0,
            num_steps=2 * steps,
            bad=BadVideos(few, max_share=config.data.max_bad_share),
            threads=threads,
        )
        sharding = batch_sharding(mesh)
        with DevicePrefetcher(batches, sharding=sharding) as feed:
            # One pass over the videos to warm up and to fill the cache of `data.memory_gb`.
            for batch in itertools.islice(feed, steps):
                jax.block_until_ready(batch)
            rates["together"] = _timed((clips, _nbytes(jax.block_until_ready(b))) for b in feed)
        host = {name: np.asarray(leaf) for name, leaf in batch.items()}
        rate = time_feed(host, sharding, repeats=4 * STEPS)
        rates["transfer"] = Rate(rate, None, rate * _nbytes(host) / clips)
        needed = _step_rate(config, task, mesh, batch)
    return Feeding(
        rates={stage: rates[stage] for stage in STAGES if stage in rates},
        needed=needed,
        step_clips=clips,
        cores=cores,
        threads=threads,
        packed=getattr(videos.reader, "format", None),
        memory_share=videos.memory.share(len(videos)) if videos.memory else None,
    )


def verdict(config: ConfigDict, feeding: Feeding) -> str:
    """Return one sentence: fed, or starved by how much, and what to change."""
    have, needed = feeding.rates["together"].clips, feeding.needed
    counts = f"{have:.4g} clips/s for the {needed:.4g} that the step takes on these devices"
    if have >= needed * MARGIN:
        return f"fed: {counts}, {have / needed:.3g} x"
    if have >= needed:
        return f"fed, but only just: {counts}; {_advice(config, feeding)}"
    waiting = 1 - have / needed
    return f"starved: {counts}, so they wait {waiting:.0%} of the time; {_advice(config, feeding)}"


def _advice(config: ConfigDict, feeding: Feeding) -> str:
    """Return what to change, by the slowest stage."""
    alone = {name: rate.clips for name, rate in feeding.rates.items() if name != "together"}
    slowest = min(alone, key=lambda name: alone[name])
    lacking = MARGIN * feeding.needed / feeding.rates["together"].clips
    cores = f"{math.ceil(feeding.cores * lacking)} cores instead of {feeding.cores}"
    if feeding.threads < feeding.cores:
        ways = [f"set data.threads=0, for {feeding.cores} threads instead of {feeding.threads}"]
    elif slowest == "read":
        ways = ["copy the data to a faster disk"]
    elif slowest == "transfer":
        ways = ["use a larger batch"]
    else:
        ways = [f"use {cores}"]
    if slowest in ("read", "decode") and feeding.packed in (None, "original"):
        ways.insert(0, "pack the videos (videomae data pack)")
    if slowest == "decode" and not config.data.memory_gb:
        ways.append("keep decoded videos where main memory holds them (data.memory_gb)")
    if slowest == "decode" and config.repeats == 1:
        ways.append("take several clips of each decode (repeats)")
    return f"{slowest} is the slowest stage: {', or '.join(ways)}"


def _step_clips(config: ConfigDict, devices: int) -> int:
    """Return the clips of the measured step: those of the config, or fewer to save time.

    A multiple of `repeats`, and an even number per device.
    """
    most = CPU_CLIPS if jax.default_backend() == "cpu" else ACCELERATOR_CLIPS
    unit = math.lcm(2 * devices, config.repeats)
    return min(config.batch_size * config.repeats, max(1, devices * most // unit) * unit)


def _host_rates(
    config: ConfigDict, videos: Videos, sampler: ClipSampler, *, threads: int, seconds: float
) -> dict[str, Rate]:
    """Time reading, decoding and cropping, each in all threads."""
    videos, repeats = replace(videos, memory=None), config.repeats
    order = np.random.default_rng(config.seed).permutation(len(videos)).tolist()
    decoded: deque = deque(maxlen=2 * threads)

    def rngs(index):
        return [np.random.default_rng([config.seed, index, row]) for row in range(repeats)]

    def read(index):
        draws, size = rngs(index), 0
        with turns():
            for path, offset, length in videos.spans(index, sampler.choose(videos, index, draws)):
                _forget(path, offset, length)
                size += len(read_bytes(path, offset, length))
        return repeats, size

    def decode(index):
        with turns():
            clips = decode_clips(videos, index, sampler=sampler, rngs=rngs(index))
        decoded.append(clips)
        return repeats, clips[0].nbytes

    def augment(position):
        with turns():
            return repeats, _nbytes(sampler.crop(*decoded[position % len(decoded)]))

    # As in the pipeline, threads that wait for a bucket do not count.
    turns = Turns(threads)
    threads += readers(videos.files)
    with ThreadPoolExecutor(threads) as pool:
        rates = {"read": _timed(_answers(read, order, pool, prefetch=2 * threads), most=seconds)}
        # Do one-time work, such as tracing functions, before the clock starts.
        for _ in _answers(decode, order[: 2 * threads], pool, prefetch=threads):
            pass
        answers = _answers(decode, itertools.cycle(order), pool, prefetch=2 * threads)
        rates["decode"] = _timed(answers, most=seconds)
        answers = _answers(augment, itertools.count(), pool, prefetch=2 * threads)
        rates["augment"] = _timed(answers, most=seconds)
    return rates


def _answers(work: Callable, items: Iterable, pool: Executor, *, prefetch: int) -> Generator:
    """Yield results of `work` in order, skipping unreadable videos; `prefetch` run ahead."""
    items, unreadable = iter(items), 0
    running = deque(pool.submit(work, item) for item in itertools.islice(items, prefetch))
    try:
        while running:
            first = running.popleft()
            try:
                yield first.result()
                unreadable = 0
            except UnreadableVideo as error:
                unreadable += 1
                if unreadable > UNREADABLE:
                    raise UserError(
                        f"{unreadable} videos in a row cannot be read, the last: {error}; see "
                        "videomae data check"
                    ) from error
            running.extend(pool.submit(work, item) for item in itertools.islice(items, 1))
    finally:
        # Tasks that are still running must not disturb the timing of the next stage.
        for future in running:
            future.cancel()
        wait(running)


def _timed(answers: Generator[tuple[int, int]], *, most: float = math.inf) -> Rate:
    """Return the rate of answers (clips, bytes), taken for `most` seconds."""
    clips = size = 0
    began, began_cpu = time.perf_counter(), time.process_time()
    for some, nbytes in answers:
        clips, size = clips + some, size + nbytes
        seconds = time.perf_counter() - began
        if seconds >= most:
            break
    cpu = time.process_time() - began_cpu
    answers.close()
    if not clips:
        raise UserError("no video can be read: see videomae data check")
    return Rate(clips / seconds, clips / max(cpu, 1e-9), size / seconds)


def _forget(path: str, offset: int, length: int) -> None:
    """Drop a part of a file from the page cache, so that reading it reads the disk."""
    if is_remote(path) or not hasattr(os, "posix_fadvise"):
        return
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return  # reading reports the reason
    try:
        os.posix_fadvise(file, offset, max(length, 0), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def _nbytes(batch: dict) -> int:
    return sum(leaf.nbytes for leaf in batch.values())


def _step_rate(config: ConfigDict, task: Task, mesh: Mesh, batch: dict[str, jax.Array]) -> float:
    """Return the clips per second of training steps on one batch that is on the devices."""
    steps = jit_steps(
        task,
        make_optimizer(config, task),
        warmup_cosine(SCHEDULE),
        mesh,
        seed=config.seed,
        accumulation=1,
        ema_decay=average_decay(config, task, steps=SCHEDULE.steps),
    )
    state, teacher = steps.init(), load_teacher(config, steps)
    step = steps.train.lower(state, batch, *teacher).compile()
    for _ in range(WARM_UP):
        state, metrics = step(state, batch, *teacher)
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    for _ in range(STEPS):
        state, metrics = step(state, batch, *teacher)
    jax.block_until_ready((state, metrics))
    return STEPS * len(batch["id"]) / (time.perf_counter() - began)
