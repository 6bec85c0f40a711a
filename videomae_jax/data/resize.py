"""Resize frames on the host, with the filter of Pillow's BILINEAR.

A pixel of the result is the mean of the pixels around its centre, weighted by a triangle that
extends one pixel to each side, of the source or of the result, whichever is larger.

Pillow and PyAV are imported when they are used: tasks import the samplers, which import this
module, and benchmarks of them run without.
"""

import numpy as np

Box = tuple[int, int, int, int]  # x, y, width, height in pixels
# What swscale is trusted with. It is wrong by up to half the range where a side has 2 or 3 pixels;
# its weights of 12 bits are too coarse for means of more than about 64 pixels.
LEAST, MOST_SHRUNK = 8, 32


def resize_crop(clip: np.ndarray, *, box: Box, width: int, height: int) -> np.ndarray:
    """Cut a box out of all frames and resize it: uint8 [F, height, width, C].

    Within one level of `resize_part`, in a third of its time. A box that already has this size is
    returned as a view.
    """
    x, y, box_width, box_height = box
    part = clip[:, y : y + box_height, x : x + box_width]
    if (box_width, box_height) == (width, height):
        return part
    shrunk = max(box_width / width, box_height / height)
    # Where the height stays, Pillow averages once and is as fast.
    if min(box_width, box_height) < LEAST or shrunk > MOST_SHRUNK or box_height == height:
        return resize_part(part, width=width, height=height)
    out = _scale(part, width=width, height=height)
    if box_height > height:
        out[:, [0, -1]] = _end_lines(part, target=height, length=width)
    if box_width > width:
        columns = _end_lines(part.swapaxes(1, 2), target=width, length=height)
        out[:, :, [0, -1]] = columns.swapaxes(1, 2)
    return out


def resize_part(
    frames: np.ndarray,
    *,
    width: int,
    height: int,
    source: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize a part of all frames with Pillow: uint8 [F, height, width, C].

    source: left, top, right and bottom of the part in pixels, None is all. The filter also reads
    the pixels around it, so the result is that of a box of the resized frames, within one level.
    """
    from PIL import Image

    out = np.empty((len(frames), height, width, frames.shape[3]), np.uint8)
    grey = frames.shape[3] == 1
    for index, frame in enumerate(frames):
        image = Image.fromarray(frame[..., 0] if grey else frame)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, source))
        out[index] = resized[..., None] if grey else resized
    return out


def _scale(frames: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Resize frames with swscale, each channel as a grey picture.

    It has fast code for planes only: red, green and blue side by side take four times as long.
    Where the filter reads beyond the border, it repeats the last pixel.
    """
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    # The last two ask for the same bits on every processor.
    flags = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    reformatter = VideoReformatter()  # of this call, since other threads run while it works
    out = np.empty((len(frames), height, width, frames.shape[3]), np.uint8)
    for frame, resized in zip(frames, out, strict=True):
        if frame.shape[1] == width:  # only rows are averaged: the channels may stay side by side
            planes = [(frame.reshape(len(frame), -1), resized.reshape(height, -1))]
        else:
            planes = [(frame[..., c].copy(), resized[..., c]) for c in range(frames.shape[3])]
        for plane, target in planes:
            scaled = reformatter.reformat(
                av.VideoFrame.from_numpy_buffer(plane, "gray"),
                width=target.shape[1],
                height=height,
                interpolation=flags,
                threads=1,
            ).planes[0]
            pixels = np.frombuffer(scaled, np.uint8)  # type: ignore[call-overload]  # wrong stub
            lines = pixels.reshape(height, scaled.line_size)
            target[:] = lines[:, : target.shape[1]]
    return out


def _end_lines(frames: np.ndarray, *, target: int, length: int) -> np.ndarray:
    """Return the first and the last line of shrunk frames: uint8 [F, 2, length, C].

    Only these read beyond the border, where Pillow leaves out what is not there. target: the
    number of lines after shrinking. length: of a line.
    """
    from PIL import Image

    count, lines, _, channels = frames.shape
    step = lines / target
    centres = np.arange(min(lines, int(1.5 * step) + 1)) + 0.5
    weights = np.maximum(0, step - np.abs(centres - 0.5 * step))
    weights = (weights / weights.sum()).astype(np.float32)
    near = np.stack([frames[:, : len(weights)], frames[:, : -len(weights) - 1 : -1]], axis=2)
    means = np.einsum("k,fkelc->felc", weights, near)  # e: which end
    means = np.rint(means).astype(np.uint8).reshape(2 * count, -1, channels)
    image = Image.fromarray(means[..., 0] if channels == 1 else means)
    ends = np.asarray(image.resize((length, 2 * count), Image.Resampling.BILINEAR))
    return ends.reshape(count, 2, length, channels)
