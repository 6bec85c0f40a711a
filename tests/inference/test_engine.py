"""Every video and every window once, with the same values on any number of devices."""

import functools

import jax
import numpy as np
import pytest

from videomae_jax.config import load_config
from videomae_jax.data.sources import read_videos
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.inference.engine import data_mesh, predict_videos, predict_windows, run_windows
from videomae_jax.inference.network import build_network
from videomae_jax.inference.windows import Window, WindowSampler, read_windows
from videomae_jax.tasks import classify, pretrain

READABLE = [0, 1, 2, 3, 4, 5, 8, 9]  # of `unreadable_list`
TINY = [
    "--config.clip.frames=4",
    "--config.clip.stride=2",
    *(f"--config.clip.{side}=32" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
]


@pytest.fixture(scope="module")
def expected(classifier, unreadable_list):
    """Probabilities of each readable video: each view alone, then the mean."""
    _, params, config = classifier
    videos = read_videos(unreadable_list)
    sampler = classify.view_sampler(config, segments=2, crops=3)
    model = classify.build_model(config)
    probabilities = jax.jit(
        functools.partial(classify.view_probabilities, model, multi_label=False)
    )
    views = [sampler(videos, index, None)[:, None] for index in READABLE]
    return np.stack([probabilities(params, alone).mean(axis=0) for alone in views])


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 3, 8])
def test_every_example_counts_once_on_any_number_of_devices(
    classifier, unreadable_list, expected, devices
):
    _, params, config = classifier
    videos = read_videos(unreadable_list)
    bad = BadVideos(videos, max_share=1.0)
    found = predict_videos(
        functools.partial(
            classify.view_probabilities, classify.build_model(config), multi_label=False
        ),
        params,
        videos,
        sampler=classify.view_sampler(config, segments=2, crops=3),
        batch_size=devices,
        mesh=data_mesh(jax.devices()[:devices]),
        threads=1,
        bad=bad,
    )
    assert found.ids.tolist() == READABLE
    assert sorted(bad.reasons) == [videos.paths[6], videos.paths[7]]
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert len({tuple(row.round(5)) for row in found.values}) == len(READABLE)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretrain", "classify"])
def test_rows_do_not_depend_on_the_batch_or_the_devices(window_list, task):
    recipe = {"pretrain": "pretrain", "classify": "finetune"}[task]
    config = load_config(f"{recipe}:tiny,custom", TINY).unlock()
    if task == "classify":
        config.model.classes = 3
    build = {"pretrain": pretrain, "classify": classify}[task].build_task
    params = build(config).init(jax.random.key(0))
    videos = read_videos(window_list)
    sampler = WindowSampler(frames=4, stride=2, hop=5, height=32, width=32, channels=3)

    def compute(devices, batch_size, name):
        windows = read_windows(
            videos,
            [0, 1, 2, 3],
            sampler=sampler,
            first=0,
            bad=BadVideos(videos, max_share=1.0),
            threads=devices,
        )
        rows, features = [], []
        for more, values in predict_windows(
            build_network(config),
            params,
            windows,
            name=name,
            batch_size=batch_size,
            mesh=data_mesh(jax.devices()[:devices]),
        ):
            rows += [(number, window.number) for number, window in more]
            features.append(values)
        return rows, np.concatenate(features)

    name = "features" if task == "classify" else "tokens"
    rows, alone = compute(1, 1, name)
    assert rows == [*((0, n) for n in range(20)), (2, 0), *((3, n) for n in range(6))]
    for devices, batch_size in ((3, 3), (3, 12)):
        again, features = compute(devices, batch_size, name)
        assert again == rows
        np.testing.assert_array_equal(features, alone)


@pytest.mark.parametrize(
    ("count", "devices", "batch_size", "size"),
    [(1, 1, 8, 2), (3, 1, 8, 4), (5, 1, 8, 8), (13, 1, 6, 6), (1, 1, 1, 2), (3, 2, 8, 4)],
)
def test_few_windows_are_not_computed_as_a_whole_batch(count, devices, batch_size, size):
    sizes = set()

    def step(params, batch):
        sizes.add(len(batch["video"]))
        return 3 * batch["video"][:, 0]

    clips = [np.full(2, number, np.int32) for number in range(count)]
    frames, seconds = np.arange(2), (0.0, 1.0)
    windows = ((7, Window(clip, frames, seconds, n, count)) for n, clip in enumerate(clips))
    found = list(
        run_windows(
            step,
            {},
            windows,
            batch_size=batch_size,
            mesh=data_mesh(jax.devices()[:devices]),
        )
    )
    assert [window.number for rows, _ in found for _, window in rows] == list(range(count))
    assert np.concatenate([values for _, values in found]).tolist() == [3 * n for n in range(count)]
    assert sizes == {size}
