"""The data is a pure function of (seed, step), whatever is wrong with the videos."""

import csv
import functools
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from runs import environment
from videos import number, turn, write_broken, write_classes, write_video

from videomae_jax.augment.resize import resize_clip
from videomae_jax.data import decode
from videomae_jax.data.decode import UnreadableVideo, read_clip
from videomae_jax.data.evaluation_batches import eval_batches
from videomae_jax.data.frame_cache import FrameMemory
from videomae_jax.data.pipeline import SUBSTITUTES, clip_batches
from videomae_jax.data.resize import resize_crop
from videomae_jax.data.samplers import PretrainSampler
from videomae_jax.data.sources import read_videos
from videomae_jax.data.synthetic import synthetic_batches
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.devices.prefetch import DevicePrefetcher
from videomae_jax.errors import UserError

SAMPLE = PretrainSampler(frames=4, stride=2, height=32, width=48, channels=3, train=True)
GOOD = 11


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Videos:
    """Eleven readable videos that differ, of class a and b."""
    folder = tmp_path_factory.mktemp("good")
    write_classes(folder, (f"{index:02}.mp4" for index in range(GOOD)))
    return read_videos(folder)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Videos, dict[str, str]]:
    """The corpus of strange videos, and the reasons of those that are unreadable."""
    folder = tmp_path_factory.mktemp("mixed")
    reasons = write_broken(folder / "broken")
    readable = [
        write_video(folder / "one frame.mp4", count=1),
        write_video(folder / "short.mp4", count=3),
        write_video(folder / "odd.mp4", pixels="yuv444p", width=97, height=65),
        turn(write_video(folder / "portrait.mp4", width=128), degrees=90),
        write_video(folder / "uneven.mp4", times=np.cumsum(np.arange(40) % 5 + 1)),
        write_video(folder / "grey.mkv", codec="ffv1", pixels="gray"),
        write_video(folder / "alpha.mov", codec="png", pixels="rgba"),
        write_video(folder / "ten bits.mp4", pixels="yuv420p10le"),
        write_video(folder / "1x1.mov", width=1, height=1, codec="png", pixels="rgb24"),
        write_video(folder / "über uns, 2.mp4"),
    ]
    paths = [path for pair in zip(readable, reasons, strict=False) for path in pair]
    paths += readable[len(reasons) :]
    labels = np.arange(len(paths), dtype=np.int32)
    return Videos(paths=tuple(paths), labels=labels, class_names=None, name="mixed"), reasons


def forgiving(videos: Videos, file=None) -> BadVideos:
    return BadVideos(videos, max_share=1, file=file)


def train(videos: Videos, *, start: int = 0, steps: int, **changes) -> list[dict]:
    how = dict(sampler=SAMPLE, batch_size=4, seed=5, bad=forgiving(videos)) | changes
    return list(clip_batches(videos, start_step=start, num_steps=steps, **how))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)


def test_a_batch_has_the_promised_shapes(good):
    (batch,) = train(good, steps=1)
    shapes = {key: (leaf.shape, leaf.dtype) for key, leaf in batch.items()}
    assert shapes == {
        "video": ((4, 4, 32, 48, 3), np.uint8),
        "id": ((4,), np.int32),
        "row": ((4,), np.int32),
        "label": ((4,), np.int32),
    }
    assert (batch["label"] == good.labels[batch["id"]]).all()
    bare = replace(good, labels=None)
    assert train(bare, steps=1)[0].keys() == {"video", "id", "row"}


def test_each_epoch_is_another_permutation(good):
    ids = np.concatenate([batch["id"] for batch in train(good, steps=GOOD)])
    epochs = ids.reshape(4, GOOD)
    assert all(sorted(epoch) == list(range(GOOD)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    other = np.concatenate([batch["id"] for batch in train(good, steps=GOOD, seed=6)])
    assert (other != ids).any()


def test_repeats_are_clips_of_one_video_side_by_side(good):
    batches = train(good, steps=GOOD, repeats=2)
    for batch in batches:
        assert (batch["id"][::2] == batch["id"][1::2]).all()
        assert batch["row"].tolist() == [0, 1, 2, 3]
    ids = np.concatenate([batch["id"][::2] for batch in batches]).reshape(2, GOOD)
    assert all(sorted(epoch) == list(range(GOOD)) for epoch in ids)
    first, second = (np.stack([batch["video"][at] for batch in batches]) for at in (0, 1))
    assert (first != second).any(axis=(1, 2, 3, 4)).mean() > 0.5


@pytest.mark.parametrize("batch_size,processes,decodes", [(8, 1, 2), (8, 4, 4), (12, 2, 6)])
def test_repeats_share_one_decode(good, monkeypatch, batch_size, processes, decodes):
    opened = []
    open_video = decode._opened
    monkeypatch.setattr(
        decode, "_opened", lambda path, **how: opened.append(path) or open_video(path, **how)
    )
    how = dict(batch_size=batch_size, repeats=4, steps=1)
    parts = [
        train(good, process_index=index, process_count=processes, **how)[0]
        for index in range(processes)
    ]
    assert len(opened) == decodes and len(set(opened)) == batch_size // 4
    # Shared or not, clips are the same: each is drawn from its own position.
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    (alone,) = train(good, repeats=4, steps=1, batch_size=batch_size)
    assert same(joined, alone)
    for row, index in enumerate(alone["id"].tolist()):
        rng = np.random.default_rng([5, row, 0])
        assert (alone["video"][row] == SAMPLE(good, index, rng)).all()


def test_the_clips_of_an_unreadable_video_are_replaced_by_those_of_one_other(mixed):
    videos, reasons = mixed
    batches = train(videos, steps=10, repeats=4)
    ids = np.concatenate([batch["id"] for batch in batches]).reshape(-1, 4)
    assert (ids == ids[:, :1]).all()
    read = [videos.paths[index] for index in ids[:, 0]]
    assert not set(read) & reasons.keys() and len(set(read)) < len(read)  # 19 turns, 10 readable
    halves = [
        train(videos, steps=10, repeats=4, process_index=index, process_count=2)
        for index in range(2)
    ]
    for whole, *parts in zip(batches, *halves, strict=True):
        assert same(whole, {key: np.concatenate([p[key] for p in parts]) for key in whole})


def test_a_restart_continues_bit_for_bit(good):
    straight = train(good, steps=6)
    resumed = train(good, steps=2) + train(good, start=2, steps=4, threads=1)
    assert all(map(same, straight, resumed)) and len(resumed) == 6
    # The same video, drawn again in a later epoch, gives another clip.
    clips = {}
    for batch in straight:
        for index, clip in zip(batch["id"], batch["video"], strict=True):
            clips.setdefault(int(index), []).append(clip)
    assert all((pair[0] != pair[1]).any() for pair in clips.values() if len(pair) > 1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batches(good, processes):
    parts = [
        train(good, steps=4, process_index=index, process_count=processes)
        for index in range(processes)
    ]
    for step, whole in enumerate(train(good, steps=4)):
        joined = {key: np.concatenate([part[step][key] for part in parts]) for key in whole}
        assert same(joined, whole)


def test_a_batch_that_cannot_be_divided_is_refused_at_once(good):
    how = dict(sampler=SAMPLE, seed=0, start_step=0, num_steps=1, bad=forgiving(good))
    with pytest.raises(UserError, match="30 is not divisible by 4 processes: use 28 or 32"):
        clip_batches(good, batch_size=30, process_count=4, **how)
    with pytest.raises(UserError, match="2 is not divisible by 4 processes: use 4"):
        clip_batches(good, batch_size=2, process_count=4, **how)
    with pytest.raises(UserError, match="30 is not divisible by 4 processes: use 28 or 32"):
        evaluate(good, batch_size=30, process_count=4)


def test_how_far_ahead_is_read_changes_no_batch(good):
    assert all(map(same, train(good, steps=3), train(good, steps=3, prefetch=1, threads=3)))
    with pytest.raises(UserError, match="data.ahead 0: use 1 or more"):
        train(good, steps=1, prefetch=0)


def test_training_reads_what_it_can_and_replaces_the_rest(mixed, tmp_path):
    videos, reasons = mixed
    file = tmp_path / "bad_videos.csv"
    bad = forgiving(videos, file)
    batches = train(videos, steps=5, bad=bad)  # 20 clips: one epoch of 19
    ids = np.concatenate([batch["id"] for batch in batches])
    read = {videos.paths[index] for index in ids}
    assert read == set(videos.paths) - set(reasons)
    assert (np.concatenate([batch["label"] for batch in batches]) == ids).all()
    assert bad.reasons.keys() == reasons.keys()
    with file.open(newline="", encoding="utf-8") as lines:
        listed = {row[0]: row[1] for row in list(csv.reader(lines))[1:]}
    assert listed.keys() == reasons.keys()
    assert all(re.search(reasons[path], listed[path]) for path in reasons)
    # Which one takes the place is a function of (seed, position), too.
    assert all(map(same, batches[2:], train(videos, start=2, steps=3)))
    halves = [train(videos, steps=5, process_index=i, process_count=2) for i in range(2)]
    joined = [np.concatenate([half[step]["id"] for half in halves]) for step in range(5)]
    assert (np.concatenate(joined) == ids).all()


def test_too_many_bad_videos_end_with_the_one_line(mixed, tmp_path):
    videos, _ = mixed
    bad = BadVideos(videos, max_share=0.2, file=tmp_path / "bad_videos.csv")
    with pytest.raises(UserError, match=r"of 19 videos unreadable .*max_bad_share=0.2;") as caught:
        train(videos, steps=50, bad=bad)
    assert "\n" not in str(caught.value)


def test_nothing_readable_ends_too(mixed):
    _, reasons = mixed
    videos = Videos(paths=tuple(reasons), labels=None, class_names=None, name="broken")
    with pytest.raises(UserError, match=f"{SUBSTITUTES} substitutes .* failed too: .* of 9 videos"):
        train(videos, steps=1)


def test_a_bug_while_reading_surfaces_as_itself(good):
    class Buggy:
        spec = SAMPLE.spec

        def sample_many(self, videos, index, rngs):
            raise ZeroDivisionError("in the sample")

    with pytest.raises(ZeroDivisionError, match="^in the sample$"):
        train(good, steps=3, sampler=Buggy())


def test_input_output_errors_are_tried_again(good):
    class Flaky:
        spec = SAMPLE.spec
        calls: dict[int, int] = {}

        def sample_many(self, videos, index, rngs):
            self.calls[index] = self.calls.get(index, 0) + 1
            if self.calls[index] < 3:
                raise UnreadableVideo("input/output error", transient=True)
            return {"video": np.zeros((1, *SAMPLE.shape), np.uint8)}

    bad = forgiving(good)
    ids = [batch["id"] for batch in train(good, steps=2, sampler=Flaky(), bad=bad)]
    assert len(bad) == 0 and set(Flaky.calls.values()) <= {3, 4}
    assert all(map(np.array_equal, ids, [batch["id"] for batch in train(good, steps=2)]))
    Flaky.calls.clear()
    batches = list(evaluate(good, sampler=Flaky(), bad=bad))
    assert len(bad) == 0 and set(Flaky.calls.values()) == {3}
    assert sum(batch["valid"].sum() for batch in batches) == GOOD


@pytest.mark.parametrize("batch_size,processes", [(3, 1), (19, 1), (8, 2), (32, 4)])
def test_evaluation_reads_every_video_once_and_replaces_none(mixed, batch_size, processes):
    videos, reasons = mixed
    sample = replace(SAMPLE, train=False)
    seen = []
    lengths = set()
    for index in range(processes):
        bad = forgiving(videos)
        how = dict(process_index=index, process_count=processes, batch_size=batch_size)
        batches = list(eval_batches(videos, sampler=sample, seed=0, bad=bad, **how))
        lengths.add(len(batches))
        for batch in batches:
            assert batch["video"].shape == (batch_size // processes, *SAMPLE.shape)
            for row, identity in enumerate(batch["id"].tolist()):
                if identity < 0:
                    assert batch["label"][row] == -1 and not batch["valid"][row]
                    continue
                seen.append(identity)
                assert batch["label"][row] == videos.labels[identity]
                assert batch["valid"][row] == (videos.paths[identity] not in reasons)
                assert batch["valid"][row] or not batch["video"][row].any()
        if processes == 1:
            assert bad.reasons.keys() == reasons.keys()
            assert str(bad).startswith("9 of 19 videos unreadable")
        resumed = list(eval_batches(videos, sampler=sample, seed=0, bad=bad, start_step=1, **how))
        assert len(resumed) == len(batches) - 1 and all(map(same, resumed, batches[1:]))
    assert sorted(seen) == list(range(len(videos))) and len(lengths) == 1


def evaluate(videos: Videos, **changes):
    how = dict(sampler=replace(SAMPLE, train=False), batch_size=4, seed=0, bad=forgiving(videos))
    return eval_batches(videos, **(how | changes))


def test_an_evaluation_of_random_clips_depends_on_seed_and_video_alone(good):
    whole = list(evaluate(good, sampler=SAMPLE, seed=3, threads=1))
    assert all(map(same, whole, evaluate(good, sampler=SAMPLE, seed=3, threads=5)))
    clips = np.concatenate([batch["video"] for batch in whole])
    for index in range(len(good)):
        assert (clips[index] == SAMPLE(good, index, np.random.default_rng([3, index]))).all()


class Counting:
    """Makes clips of zeros, after `work`, and counts the videos."""

    spec = SAMPLE.spec

    def __init__(self, work):
        self.work, self.count, self.lock = work, 0, threading.Lock()

    def sample_many(self, videos, index, rngs):
        with self.lock:
            self.count += 1
        self.work(index)
        return {"video": np.zeros((len(rngs), *SAMPLE.shape), np.uint8)}


def test_an_evaluation_reads_a_few_batches_ahead_and_no_more(good):
    many = replace(good, paths=good.paths * 100, labels=None)
    sampler = Counting(lambda index: None)
    batches = evaluate(many, sampler=sampler, batch_size=4, threads=2)
    assert sampler.count == 0  # nothing is read before it is asked for
    next(batches)
    time.sleep(0.5)
    assert 3 * 4 <= sampler.count <= 3 * 4 + 2 + 1  # this batch, two more, one for each thread
    batches.close()
    count = sampler.count
    time.sleep(0.2)
    assert sampler.count == count
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_a_bug_in_an_evaluation_surfaces_as_itself_and_ends_the_threads(good):
    def work(index):
        if index == 5:
            raise ZeroDivisionError("in the sample")

    batches = evaluate(good, sampler=Counting(work))
    assert next(batches)["id"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError, match="^in the sample$"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_an_evaluation_clip_is_the_middle_of_the_video(good):
    sample = PretrainSampler(frames=4, stride=2, height=64, width=96, channels=3, train=False)
    (batch,) = eval_batches(good, sampler=sample, batch_size=11, seed=0, bad=forgiving(good))
    for path, clip in zip(good.paths, batch["video"], strict=True):
        count = 12 + int(path[-6:-4])
        start = (count - 8 + 1) // 2
        assert [number(picture) for picture in clip] == [start + 2 * step for step in range(4)]


def test_a_training_clip_is_a_crop_of_consecutive_frames(good):
    whole = read_clip(good.paths[0], np.arange)
    sample = PretrainSampler(frames=4, stride=2, height=64, width=96, channels=3, train=True)
    boxes = set()
    for seed in range(40):
        box = sample.box(96, 64, np.random.default_rng(seed))
        boxes.add(box)
        start = int(sample.indices(12, np.random.default_rng(seed))[0])
        clip = resize_crop(whole[start : start + 8 : 2], box=box, width=96, height=64)
        assert clip.shape == (4, 64, 96, 3)
        if box == (0, 0, 96, 64):
            assert (clip == whole[start : start + 8 : 2]).all()
    assert (0, 0, 96, 64) in boxes and len(boxes) > 15


CANVAS = (56, 72)  # the videos are 64 x 96: the largest boxes do not fit


def test_clips_for_the_device_are_the_boxes_as_they_are(good):
    videos = good.paths[:1]
    whole = read_clip(videos[0], np.arange)
    sample = replace(SAMPLE, canvas=CANVAS)
    sizes = set()
    for seed in range(30):
        clips, (size,) = sample.sample_many(good, 0, [np.random.default_rng(seed)]).values()
        assert clips.shape == (1, 4, *CANVAS, 3)
        high, wide = size.tolist()
        rng = np.random.default_rng(seed)
        start = int(sample.indices(len(whole), rng)[0])
        x, y, box_wide, box_high = sample.box(96, 64, rng)
        if box_high <= CANVAS[0] and box_wide <= CANVAS[1]:
            assert (high, wide) == (box_high, box_wide)
            part = whole[start : start + 8 : 2, y : y + high, x : x + wide]
        else:  # resized, as for a device that does nothing
            assert (high, wide) == (SAMPLE.height, SAMPLE.width)
            part = SAMPLE(good, 0, np.random.default_rng(seed))
        assert (clips[0, :, :high, :wide] == part).all()
        assert not clips[0, :, high:].any() and not clips[0, :, :, wide:].any()
        sizes.add((high, wide))
    assert len(sizes) > 3 and (SAMPLE.height, SAMPLE.width) in sizes


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_device_makes_of_them_what_the_host_would_have_made(good, repeats):
    how = dict(steps=4, repeats=repeats)
    sized = dict(sampler=replace(SAMPLE, canvas=CANVAS), **how)
    batches = train(good, **sized)
    resize = jax.jit(jax.vmap(functools.partial(resize_clip, height=32, width=48)))
    for batch, host in zip(batches, train(good, **how), strict=True):
        assert batch["size"].dtype == np.int32 and batch.keys() == host.keys() | {"size"}
        made = np.asarray(resize(batch["video"], batch["size"]))
        assert np.abs(made.astype(int) - host["video"]).max() <= 1
        assert (made == host["video"]).mean() > 0.8
        assert all((batch[key] == host[key]).all() for key in ("id", "row", "label"))
    # As pure a function of the position as others are, sizes included.
    halves = [train(good, process_index=i, process_count=2, **sized) for i in range(2)]
    for whole, *parts in zip(batches, *halves, strict=True):
        assert same(whole, {key: np.concatenate([p[key] for p in parts]) for key in whole})
    rest = sized | dict(start=2, steps=2)
    assert all(map(same, batches[2:], train(good, **rest)))
    assert all(map(same, batches, train(replace(good, memory=FrameMemory(budget=10**9)), **sized)))


def test_grey_clips_have_one_channel(good):
    (batch,) = train(good, steps=1, sampler=replace(SAMPLE, channels=1))
    assert batch["video"].shape == (4, 4, 32, 48, 1)


def test_synthetic_batches_are_pure_too():
    how = dict(shape=(4, 16, 24, 3), batch_size=8, seed=1)
    straight = list(synthetic_batches(num_steps=3, **how))
    assert all(map(same, straight[1:], synthetic_batches(start_step=1, num_steps=2, **how)))
    parts = [
        list(synthetic_batches(num_steps=3, process_index=index, process_count=2, **how))
        for index in range(2)
    ]
    for whole, one, two in zip(straight, *parts, strict=True):
        assert same(whole, {key: np.concatenate([one[key], two[key]]) for key in whole})
        assert whole["video"].shape == (8, 4, 16, 24, 3) and whole["video"].dtype == np.uint8
        assert whole["video"].std() > 20 and (whole["video"][:, 0] != whole["video"][:, 1]).any()


def test_only_training_and_records_need_tensorflow():
    code = """
import sys
from videomae_jax.data import decode, evaluation_batches, samplers, sources, synthetic, unreadable
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], env=environment(__file__), check=True, timeout=60)


def one_device() -> jax.sharding.NamedSharding:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def test_a_feed_gives_the_same_batches_as_global_arrays():
    how = dict(shape=(4, 16, 16, 3), batch_size=2, seed=1, num_steps=5)
    with DevicePrefetcher(synthetic_batches(**how), sharding=one_device()) as feed:
        batches = list(feed)
    assert all(map(same, batches, synthetic_batches(**how))) and len(batches) == 5
    assert isinstance(batches[0]["video"], jax.Array) and batches[0]["id"].shape == (2,)


def test_a_feed_counts_the_time_it_was_waited_for():
    def slow():
        for _ in range(3):
            time.sleep(0.1)
            yield {"id": np.zeros(1, np.int32)}

    with DevicePrefetcher(slow(), sharding=one_device()) as feed:
        for _ in feed:
            pass
        assert 0.25 < feed.waited < 2
    with DevicePrefetcher(slow(), sharding=one_device()) as feed:
        for _ in feed:
            time.sleep(0.3)
        assert feed.waited < 0.25


def test_a_feed_raises_what_its_batches_raise():
    def broken():
        yield {"id": np.zeros(1, np.int32)}
        raise UserError("two lines are enough")

    feed = DevicePrefetcher(broken(), sharding=one_device())
    next(feed)
    with pytest.raises(UserError, match="two lines are enough"):
        next(feed)


def test_leaving_early_leaves_no_thread(good):
    trained = clip_batches(
        good,
        sampler=SAMPLE,
        batch_size=4,
        seed=0,
        start_step=0,
        num_steps=10**6,
        bad=forgiving(good),
    )
    for batches in (trained, evaluate(good, batch_size=1)):
        with DevicePrefetcher(batches, sharding=one_device()) as feed:
            next(feed)
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith(("feed", "read"))]
    # A DevicePrefetcher that nobody refers to any more ends by itself.
    batches = synthetic_batches(shape=(2, 8, 8, 3), batch_size=1, seed=0, num_steps=10**6)
    forgotten = DevicePrefetcher(batches, sharding=one_device())
    del batches
    next(forgotten)
    thread = forgotten._thread
    del forgotten
    thread.join(timeout=5)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "ending", ["pass", pytest.param("raise SystemExit(0)", marks=pytest.mark.slow)]
)
def test_a_program_that_breaks_out_exits(good, ending):
    code = f"""
import faulthandler, sys
from test_pipeline import *
videos = read_videos(sys.argv[1])
feed = DevicePrefetcher(clip_batches(videos, sampler=SAMPLE, batch_size=4, seed=0, start_step=0,
    num_steps=10**6, bad=forgiving(videos)), sharding=one_device())
next(feed)
other = DevicePrefetcher(evaluate(replace(videos, paths=videos.paths * 10**5, labels=None)),
    sharding=one_device())
next(other)
# Fails, and says which threads still run, if the program has not ended by then.
faulthandler.dump_traceback_later(60, exit=True)
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, good.name],
        env=environment(__file__),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_memory_changes_no_batch_and_spares_the_second_decoding(good, monkeypatch):
    remembering = replace(good, memory=FrameMemory(budget=10**9))
    plain = list(train(good, steps=4))
    for _ in range(2):
        for kept, fresh in zip(train(remembering, steps=4), plain, strict=True):
            assert all((kept[key] == fresh[key]).all() for key in fresh)
        # From here on no file may be opened.
        monkeypatch.setattr("videomae_jax.data.decode._opened", None)


@pytest.mark.parametrize("budget,frames", [(1, 1024), (10**9, 8), (64 * 96 * 3 * 14, 1024)])
def test_what_does_not_fit_in_memory_is_decoded_each_time(good, monkeypatch, budget, frames):
    monkeypatch.setattr("videomae_jax.data.frame_cache.MAX_FRAMES", frames)
    memory = FrameMemory(budget=budget)
    for _ in range(2):
        for path in good.paths:
            clip = memory.read_clip(
                path,
                functools.partial(read_clip, path, channels=3),
                lambda count: np.array([count - 1, 2]),
            )
            assert [number(picture) for picture in clip] == [11 + int(path[-6:-4]), 2]
    assert sum(kept.nbytes for kept in memory._kept.values()) <= budget
    assert len(memory._kept) < len(good)
