"""Images and videos: the right pixels in the right panel, readable text, files others open."""

import av
import numpy as np
import pytest
from PIL import Image

from videomae_jax import pictures
from videomae_jax.errors import UserError
from videomae_jax.models.reconstruct import Reconstruction

CAPTION = "patch statistics from the hidden patches themselves (leaks)"
# Not symmetric, so that no flip or swap of axes goes unseen.
RAMP = np.stack(np.meshgrid(np.arange(24), np.arange(20), indexing="xy"), -1).sum(-1) * 5


def clip(frames=8, *, channels=3, shift=0):
    """uint8 [F, 20, 24, C], every frame and channel different."""
    frame = np.arange(frames)[:, None, None, None]
    return (RAMP[None, :, :, None] + 3 * frame + 7 * np.arange(channels) + shift).astype(np.uint8)


def reconstruction(frames=8, *, channels=3):
    shape = frames, 20, 24, channels
    error = np.zeros(shape, np.float32)
    error[:, :10] = 0.5
    return Reconstruction(
        masked=np.full(shape, 128, np.uint8),
        predicted=clip(frames, channels=channels, shift=40),
        error=error,
        sums={},
    )


def find_panel(image, panel):
    """Return where a panel is in an image: (y, x) of its upper left corners."""
    height, width = panel.shape[:2]
    views = np.lib.stride_tricks.sliding_window_view(image, (height, width), axis=(0, 1))
    # Compare a few points first, then the whole panel where they are equal.
    steps = slice(None, None, 37)
    some = (views[..., steps, steps] == np.moveaxis(panel, -1, 0)[:, steps, steps]).all((2, 3, 4))
    return [
        (y, x)
        for y, x in np.argwhere(some).tolist()
        if (image[y : y + height, x : x + width] == panel).all()
    ]


def enlarged(image, factor=8):
    return np.kron(np.broadcast_to(image, (20, 24, 3)), np.ones([factor, factor, 1], np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_video_has_a_row_for_each_reconstruction_and_four_aligned_panels(channels):
    original, result = clip(channels=channels), reconstruction(channels=channels)
    frames = pictures.panel_video(
        original, {"one": result, "two": result}, times=range(8), captions=[CAPTION]
    )
    assert frames.dtype == np.uint8 and len(frames) == 8
    given, guessed = (find_panel(frames[5], enlarged(v[5])) for v in (original, result.predicted))
    assert len(given) == len(guessed) == 2  # one in each row
    rows = [y for y, _ in given]
    assert [y for y, _ in guessed] == rows and rows[0] < rows[1]
    assert len({x for _, x in given}) == len({x for _, x in guessed}) == 1
    left, middle = given[0][1], guessed[0][1]
    apart = (middle - left) // 2
    assert find_panel(frames[5], enlarged(np.full(3, 128, np.uint8))) == [
        (y, left + apart) for y in rows
    ]
    # The error is white where it is half the range, black where it is none.
    for y in rows:
        error = frames[5, y : y + 160, left + 3 * apart : left + 3 * apart + 192]
        assert (error[:80] == [255, 255, 0]).all() or (error[:80] == 255).all()
        assert not error[80:].any()


@pytest.mark.slow
def test_a_sheet_shows_the_original_once_and_time_to_the_right():
    original, result = clip(11), reconstruction(11)
    rows = {"one": result, "two": result}
    image = pictures.contact_sheet(original, rows, times=range(11), captions=[CAPTION])
    assert not find_panel(image, enlarged(original[1]))
    [(y0, x0)], [(y2, x2)], [(y10, x10)] = (
        find_panel(image, enlarged(original[index])) for index in (0, 2, 10)
    )
    assert y0 == y2 == y10 and x10 - x0 == 5 * (x2 - x0) and x2 - x0 > 192
    guessed = find_panel(image, enlarged(result.predicted[2]))
    assert [x for _, x in guessed] == [x2, x2] and guessed[0][0] > y2


def test_text_is_never_cut_off():
    """Around everything runs an empty margin, however narrow the clip or long the words."""
    narrow = Reconstruction(*(v[:, :, :3] for v in reconstruction()[:3]), sums={})
    rows = {"random mask, 89.8% hidden: loss 0.312, predicting zero 0.996": narrow}
    content = dict(times=range(100_000, 100_008), captions=[CAPTION, "and " + CAPTION])
    for image in (
        pictures.panel_video(clip()[:, :, :3], rows, **content)[7],
        pictures.contact_sheet(clip()[:, :, :3], rows, **content),
    ):
        inked = np.argwhere((image != 255).any(-1))
        assert inked.min() >= pictures.MARGIN - 3
        assert ((image.shape[:2] - inked.max(0)) >= pictures.MARGIN - 3).all()


def test_every_frame_says_its_number():
    still = np.repeat(clip(1), 3, axis=0)
    result = Reconstruction(*(np.repeat(v[:1], 3, 0) for v in reconstruction()[:3]), sums={})
    frames = pictures.panel_video(still, {"one": result}, times=[4, 4, 12], captions=[CAPTION])
    assert (frames[0] == frames[1]).all()
    changed = np.argwhere((frames[1] != frames[2]).any(-1))
    height, width = frames.shape[1:3]
    assert (changed > [height - 40, width - 120]).all() and len(changed)


@pytest.mark.parametrize(("side", "shown"), [(32, 192), (64, 192), (112, 224), (224, 224)])
def test_small_clips_are_enlarged(side, shown):
    video = np.zeros([1, side, side, 3], np.uint8)
    result = Reconstruction(video, video, video.astype(np.float32), sums={})
    frames = pictures.panel_video(video, {"one": result}, times=[0], captions=[CAPTION])
    assert frames.shape[2] == 4 * shown + 3 * pictures.GAP + 2 * pictures.MARGIN


def test_a_summary_shows_the_middle_frames_of_all_clips():
    video = np.stack([clip(), clip(shift=20)])
    result = Reconstruction(*(np.stack([v, v]) for v in reconstruction()[:3]), sums={})
    image = pictures.summary_image(video, result)
    gap = pictures.GAP
    assert image.shape == (2 * 20 + gap, 4 * 24 + 3 * gap, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[:20, :24], video[0, 4])
    np.testing.assert_array_equal(image[20 + gap :, :24], video[1, 4])
    x = 2 * (24 + gap)
    np.testing.assert_array_equal(image[20 + gap :, x : x + 24], result.predicted[1, 4])


def written(path, **options):
    content = dict(times=range(8), captions=[CAPTION], fps=10) | options
    pictures.write(str(path), clip(), {"tube": reconstruction()}, **content)
    video = pictures.panel_video(
        clip(), {"tube": reconstruction()}, times=range(8), captions=[CAPTION]
    )
    return video.astype(int)


def test_a_gif_plays_the_video_for_ever(tmp_path):
    video = written(tmp_path / "video.gif")
    with Image.open(tmp_path / "video.gif") as image:
        assert (image.n_frames, image.info["duration"], image.info["loop"]) == (8, 100, 0)
        for index, frame in enumerate(video):
            image.seek(index)
            # 256 colours for all frames.
            assert np.abs(np.asarray(image.convert("RGB")) - frame).mean() < 4


def test_an_mp4_is_h264_for_any_player_and_has_even_sides(tmp_path):
    video = written(tmp_path / "video.MP4")
    odd = video[:, 1:, 1:].astype(np.uint8)
    pictures.write_mp4(str(tmp_path / "odd.mp4"), odd, fps=10)
    for name, frames in (("video.MP4", video), ("odd.mp4", odd.astype(int))):
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == 10
            read = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        height, width = frames.shape[1:3]
        assert len(read) == 8 and read[0].shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(read[3][:height, :width] - frames[3]).mean() < 4


def test_a_png_is_a_contact_sheet(tmp_path):
    written(tmp_path / "sheet.png")
    sheet = pictures.contact_sheet(
        clip(), {"tube": reconstruction()}, times=range(8), captions=[CAPTION]
    )
    with Image.open(tmp_path / "sheet.png") as image:
        np.testing.assert_array_equal(np.asarray(image), sheet)


@pytest.mark.parametrize("name", ["video.webm", "video"])
def test_other_files_are_refused_before_they_are_begun(tmp_path, name):
    with pytest.raises(UserError, match="use .gif or .mp4 .*, .png"):
        written(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["gif", "mp4", "png"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, ending):
    path = tmp_path / f"walk.{ending}"
    path.mkdir()
    with pytest.raises(UserError, match=f"cannot write .*walk.{ending}"):
        written(path)
