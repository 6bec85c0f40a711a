"""The cache of decoded videos; batches with it are tested in `test_pipeline.py`."""

import numpy as np

from videomae_jax.data.frame_cache import FrameMemory


def test_a_video_that_does_not_fit_is_decoded_whole_only_once():
    video = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    memory = FrameMemory(budget=60)
    decoded = {"fits": [], "large": []}

    def read(name):
        def decode(choose):
            frames = video[choose(len(video))]
            decoded[name].append(len(frames))
            return frames

        clip = memory.read_clip(name, decode, lambda count: np.array([count - 1, 2]))
        assert clip.ravel().tolist() == [39, 2]

    for name in ("fits", "large") * 3:
        read(name)
    assert decoded == {"fits": [40], "large": [40, 2, 2]}
