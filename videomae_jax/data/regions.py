"""JPEG records -> clips, decoding only the region of each image that the clips need.

TensorFlow decodes in its own threads, without the lock of the interpreter, and does not
transform the rest of an image to pixels, which costs most of the time of decoding.
"""

import numpy as np

from videomae_jax.data.host_tensorflow import tf
from videomae_jax.data.records import Records
from videomae_jax.data.samplers import ClipSampler, Rngs
from videomae_jax.data.videos import Videos


def jpeg_reader(videos: Videos) -> Records | None:
    """Return the reader of JPEG records, None for other videos and where they are cached.

    Clips of key frames are resized from more than their box of the image, so they are left out.
    """
    reader = videos.reader
    if isinstance(reader, Records) and reader.kind == "jpeg":
        return None if videos.memory or videos.key_frames is not None else reader
    return None


def read_jpegs(
    videos: Videos, index: int, *, reader: Records, sampler: ClipSampler, rngs: Rngs
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Read the frames of some clips of one video, without decoding them.

    Returns JPEG files [R * F], the region of them to decode, int32 [4], and the boxes of the
    clips in that region, int32 [R, boxes, 4]. Raises UnreadableVideo.
    """
    path = videos.paths[index]
    jpegs = reader.read_pictures(path, sampler.choose(videos, index, rngs))
    height, width = reader.size(path)
    return jpegs, *_bounding_region(sampler.crop_boxes(width, height, rngs), width)


def decode_regions(jpegs: tf.Tensor, region: tf.Tensor, *, channels: int) -> tf.Tensor:
    """Decode one region of JPEG files, in a graph: uint8 [F, H, W, channels].

    jpegs: string [F], F may be 0. region: int32 [4], x, y, width, height.
    """
    x, y, width, height = tf.unstack(region)
    window = tf.stack([y, x, height, width])

    def decode(jpeg: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_and_crop_jpeg(jpeg, window, channels=channels)

    return tf.cond(
        tf.size(jpegs) > 0,
        lambda: tf.map_fn(decode, jpegs, fn_output_signature=tf.uint8),
        lambda: tf.zeros([0, 1, 1, channels], tf.uint8),
    )


_decode_regions = tf.function(decode_regions, reduce_retracing=True)


def decode_clips(
    videos: Videos, index: int, *, sampler: ClipSampler, rngs: Rngs
) -> tuple[np.ndarray, np.ndarray]:
    """Decode the frames of some clips of one video as the pipeline does, to time it.

    Returns the arguments of `sampler.crop`. Raises UnreadableVideo.
    """
    reader = jpeg_reader(videos)
    if reader is None:
        return sampler.decode(videos, index, rngs)
    jpegs, region, boxes = read_jpegs(videos, index, reader=reader, sampler=sampler, rngs=rngs)
    frames = _decode_regions(tf.constant(jpegs), region, channels=sampler.channels)
    return frames.numpy(), boxes


def _bounding_region(boxes: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest region around boxes int32 [..., 4], and the boxes relative to it.

    width: of the image, in pixels.
    """
    axes = tuple(range(boxes.ndim - 1))
    first = boxes[..., :2].min(axis=axes)
    last = (boxes[..., :2] + boxes[..., 2:]).max(axis=axes)
    # The colours of the outer columns are interpolated from those beyond them. With two more
    # columns all pixels are those of the whole image, bit for bit.
    first[0], last[0] = max(first[0] - 2, 0), min(last[0] + 2, width)
    inside = boxes - np.concatenate([first, [0, 0]]).astype(np.int32)
    return np.concatenate([first, last - first]).astype(np.int32), inside
