"""Frame i is frame i, however the file is built; what cannot be read says why."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from videos import (
    empty_frame,
    number,
    numbered,
    set_display_matrix,
    set_edit_list,
    turn,
    write_broken,
    write_video,
)

from videomae_jax.data import decode, decoders, storage
from videomae_jax.data.decode import UnreadableVideo, read_clip, read_facts
from videomae_jax.errors import UserError

COUNT = 40
UNEVEN = np.cumsum(np.random.default_rng(1).integers(1, 9, COUNT))

FILES = {
    "intra.mp4": dict(gop=1),
    "gop12.mp4": dict(gop=12),
    "gop12_b.mp4": dict(gop=12, b_frames=3),
    "gop250_b.mp4": dict(gop=250, b_frames=3),
    "long.mp4": dict(count=520, gop=250, b_frames=3, options={"sc_threshold": "0"}),
    "open_gop.mp4": dict(b_frames=3, options={"x264-params": "open-gop=1:keyint=10:bframes=3"}),
    "uneven.mp4": dict(b_frames=3, times=UNEVEN),
    "uneven.mkv": dict(b_frames=3, times=UNEVEN),
    "transport.ts": dict(b_frames=3),
    "camera.m2ts": dict(b_frames=3),
    "program.mpg": dict(codec="mpeg2video", b_frames=2),
    "disk.vob": dict(codec="mpeg2video", b_frames=2),
    "old.asf": dict(codec="msmpeg4"),
    "no_times.avi": dict(b_frames=3),
    "packed.avi": dict(codec="mpeg4", b_frames=2),
    "odd.mp4": dict(pixels="yuv444p", width=97, height=65, b_frames=2),
    "ten_bits.mp4": dict(pixels="yuv420p10le", b_frames=2),
    "grey.mkv": dict(codec="ffv1", pixels="gray"),
    "alpha.mov": dict(codec="png", pixels="rgba"),
    "alpha.webm": dict(codec="libvpx-vp9", pixels="yuva420p", options={"speed": "8"}),
    "hidden_frames.webm": dict(codec="libvpx", options={"auto-alt-ref": "1"}),
    "über uns, 2.mp4": dict(),
}


@pytest.fixture(params=["pyav", *decoders.DECODERS])
def decoder(request):
    """The name of each decoder that is installed."""
    try:
        decoders.open_decoder(request.param)
    except UserError as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("name", FILES)
def test_the_frames_are_those_asked_for(tmp_path, name, decoder):
    settings = dict(count=COUNT) | FILES[name]
    total = settings["count"]
    path = write_video(tmp_path / name, **settings)
    rng = np.random.default_rng(0)
    wanted = [np.arange(total), np.array([total - 1]), np.array([7, 7, 3, 30])]
    wanted += [np.sort(rng.integers(0, total, 6)) for _ in range(4)]
    for indices in wanted:
        counts = []
        clip = read_clip(
            path, lambda count, i=indices, c=counts: c.append(count) or i, decoder=decoder
        )
        assert counts == [total]
        assert clip.dtype == np.uint8 and clip.shape[3] == 3
        assert [number(picture) for picture in clip] == indices.tolist()


@pytest.mark.parametrize("name", ["gop12_b.mp4", "long.mp4", "uneven.mkv", "odd.mp4"])
def test_another_decoder_is_really_used_and_gives_the_same_bits(
    tmp_path, name, decoder, monkeypatch
):
    if decoder == "pyav":
        pytest.skip("it is what the others are compared with")
    # 128 wide: decord2 3.4 refuses 96, which is no multiple of 64.
    path = write_video(tmp_path / name, **dict(count=COUNT, width=128) | FILES[name])
    indices = np.array([30, 2, 2, 17])
    clip = read_clip(path, lambda count: indices)
    monkeypatch.setattr(decode, "_frames", None)  # PyAV cannot step in
    for source in (path, Path(path).read_bytes()):
        assert (read_clip(source, lambda count: indices, decoder=decoder) == clip).all()


@pytest.mark.parametrize("name", ["open_gop.mp4", "program.mpg", "packed.avi", "transport.ts"])
def test_pyav_reads_what_other_decoders_number_differently(tmp_path, name, monkeypatch):
    path = write_video(tmp_path / name, count=COUNT, **FILES[name])
    monkeypatch.setattr(decode, "open_decoder", lambda name: lambda *_: pytest.fail("was asked"))
    clip = read_clip(path, lambda count: np.array([31, 8]), decoder="other")
    assert [number(picture) for picture in clip] == [31, 8]


def test_pyav_reads_where_another_decoder_fails(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", count=COUNT)
    monkeypatch.setattr(decode, "open_decoder", lambda name: lambda *_: None)
    assert number(read_clip(path, lambda count: np.array([9]), decoder="other")[0]) == 9


def test_a_decoder_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(UserError, match="decoder 'opencv' is not known: use pyav, torchcodec or"):
        read_clip("a.mp4", np.arange, decoder="opencv")
    monkeypatch.setitem(sys.modules, "decord", None)  # as if not installed
    with pytest.raises(UserError, match="decoder 'decord' cannot be imported .*: pip install"):
        read_clip("a.mp4", np.arange, decoder="decord")


def test_a_jump_gives_the_same_bits_as_decoding_everything(tmp_path):
    path = write_video(tmp_path / "a.mp4", count=COUNT, gop=12, b_frames=3)
    whole = read_clip(path, np.arange)
    indices = np.array([2, 17, 18, 39])
    assert (read_clip(path, lambda _: indices) == whole[indices]).all()
    assert (read_clip(Path(path).read_bytes(), np.arange) == whole).all()


def test_a_recording_that_begins_between_key_frames_starts_at_the_next_one(tmp_path):
    path = write_video(tmp_path / "a.ts", count=COUNT, gop=12, b_frames=3)
    data = Path(path).read_bytes()
    packet = 188
    cut = data[: 3 * packet] + data[len(data) // 2 // packet * packet :]
    numbers = [number(picture) for picture in read_clip(cut, np.arange)]
    assert 3 < len(numbers) < 30 and numbers == list(range(COUNT - len(numbers), COUNT))
    last = read_clip(cut, lambda count: np.array([count - 1]))
    assert number(last[0]) == COUNT - 1


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_flags_turn_the_picture_upright(tmp_path, degrees, decoder):
    path = write_video(tmp_path / "a.mp4", count=3, width=128, height=64)
    plain = read_clip(path, np.arange)
    turned = read_clip(turn(path, degrees=degrees), np.arange, decoder=decoder)
    assert (turned == np.rot90(plain, k=-degrees // 90, axes=(1, 2))).all()


# What `ffmpeg -i FILE` shows under each of the matrices that mirror.
MIRRORED = {
    "horizontal flip": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "vertical flip": ((1, 0, 0, -1), lambda x: x[::-1]),
    "transpose": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "antitranspose": ((0, -1, -1, 0), lambda x: x.swapaxes(0, 1)[::-1, ::-1]),
}


@pytest.mark.parametrize("name", MIRRORED)
def test_mirrored_pictures_are_shown_as_ffmpeg_shows_them(tmp_path, name, decoder):
    matrix, mirror = MIRRORED[name]
    path = write_video(tmp_path / "a.mp4", count=3, width=128, height=64)
    plain = read_clip(path, np.arange)
    shown = read_clip(set_display_matrix(path, *matrix), np.arange, decoder=decoder)
    assert (shown == np.stack([mirror(picture) for picture in plain])).all()


# One frame is 512 units of the media; the movie counts milliseconds. Frames that are shown.
EDITS = {
    "cut within a group": ([(500, 10 * 512)], range(10, 25)),
    "pause first": ([(1000, -1), (400, 6 * 512)], range(6, 18)),
    "two pieces": ([(200, 2 * 512), (300, 24 * 512)], [*range(2, 8), *range(24, 33)]),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("gop", [250, 12])
def test_an_edit_list_hides_frames_that_others_need(tmp_path, name, gop, decoder):
    """As cutting by stream copy does: the cut rarely falls on a key frame."""
    edits, shown = EDITS[name]
    path = write_video(
        tmp_path / "a.mp4",
        gop=gop,
        options={"sc_threshold": "0"},
        container_options={"use_editlist": "0", "video_track_timescale": str(30 * 512)},
    )
    set_edit_list(path, *edits)
    clip = read_clip(path, np.arange, decoder=decoder)
    assert [number(picture) for picture in clip] == list(shown)
    last = read_clip(path, lambda count: np.array([count - 1, 3]), decoder=decoder)
    assert [number(picture) for picture in last] == [shown[-1], shown[3]]


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_times_below_zero_are_times_like_others(tmp_path, ending):
    """Matroska cannot store them: its frames have none, until the first that has one."""
    path = write_video(
        tmp_path / f"a.{ending}",
        times=np.arange(40) - 20,
        b_frames=2,
        container_options={"avoid_negative_ts": "disabled", "movflags": "+negative_cts_offsets"}
        if ending == "mp4"
        else {"avoid_negative_ts": "disabled"},
    )
    counts = []
    clip = read_clip(path, lambda count: counts.append(count) or np.arange(count))
    numbers = [number(picture) for picture in clip]
    # The ffmpeg command shows as many: an mp4 begins at zero by its edit list.
    assert numbers == list(range(40 - counts[0], 40)) and counts[0] in (20, 40)


def test_the_stream_is_the_one_that_ffmpeg_chooses(tmp_path):
    """The default one, else the largest, and never a cover picture."""

    def write(name, sizes, default=None):
        with av.open(str(tmp_path / name), "w") as container:
            streams = []
            for place, (width, height) in enumerate(sizes):
                stream = container.add_stream("libx264", rate=30)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.disposition = Disposition.default if place == default else 0
                streams.append(stream)
            for index in range(10):
                for stream in streams:
                    picture = numbered(index, width=stream.width, height=stream.height)
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    container.mux(stream.encode(frame))
            for stream in streams:
                container.mux(stream.encode())
        return str(tmp_path / name)

    sizes = [(96, 64), (192, 128), (160, 96)]
    largest, default = write("largest.mkv", sizes), write("default.mkv", sizes, default=2)
    assert read_clip(largest, np.arange).shape == (10, 128, 192, 3)
    assert read_clip(default, np.arange).shape == (10, 96, 160, 3)
    assert read_facts(largest).choice == (
        "stream 1, h264 192 x 128",
        "stream 2, h264 160 x 96",
        "stream 0, h264 96 x 64",
    )
    assert read_facts(write("one.mkv", sizes[:1])).choice == ()


@pytest.mark.parametrize("name", ["10:20:30.mp4", "file:a.mp4", "concat:b.mp4"])
def test_a_name_with_a_colon_is_no_address(tmp_path, monkeypatch, name):
    write_video(tmp_path / name, count=5)
    monkeypatch.chdir(tmp_path)
    assert len(read_clip(name, np.arange)) == 5


@pytest.mark.parametrize("index", [0, 7, 19])
def test_a_frame_without_bytes_is_left_out(tmp_path, index):
    path = empty_frame(write_video(tmp_path / "a.mp4", count=20, gop=1), index)
    left = [frame for frame in range(20) if frame != index]
    assert [number(picture) for picture in read_clip(path, np.arange)] == left
    assert number(read_clip(path, lambda count: np.array([count - 1]))[0]) == left[-1]


def test_a_rate_is_that_of_the_frames(tmp_path):
    """An AVI of reordered frames has an empty packet for each delay, and no times."""
    assert read_facts(write_video(tmp_path / "a.avi", b_frames=2)).rate == 30


@pytest.mark.parametrize("ending", ["mkv", "webm", "flv"])
def test_a_file_that_ends_early_is_shorter_than_its_container_says(tmp_path, ending):
    codec = dict(codec="libvpx", options={"deadline": "realtime"}) if ending == "webm" else {}
    path = write_video(tmp_path / f"a.{ending}", count=300, **codec)
    whole = read_facts(path)
    assert whole.frames == 300 and whole.missing < 0.1
    data = Path(path).read_bytes()
    half = read_facts(data[: len(data) // 2])
    assert half.missing == pytest.approx((300 - half.frames) / 30, abs=0.1) and half.missing > 2


@pytest.mark.parametrize(
    "codec,name", [("rawvideo", "a.avi"), ("rawvideo", "a.mov"), ("smc", "a.mov")]
)
def test_palettes_survive_a_jump(tmp_path, codec, name, decoder):
    """They are in the first packet only, in AVI and QuickTime of screens and old cameras."""
    palette = np.random.default_rng(0).integers(256, size=(256, 4)).astype(np.uint8)
    pictures = np.stack([numbered(index)[..., 0] for index in range(COUNT)])
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = pictures.shape[1:]
        stream.pix_fmt = "pal8"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray((picture, palette), format="pal8")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    clip = read_clip(str(tmp_path / name), lambda count: np.array([31, 2]), decoder=decoder)
    assert (clip == palette[pictures[[31, 2]]][..., 1:]).all()  # alpha, red, green, blue


def test_interlaced_pictures_are_those_of_ffmpeg(tmp_path):
    """Lines as they come; swscale could interpolate the colours of each field by itself."""
    flags = {"flags": "+ildct+ilme", "top": "1"}
    path = write_video(tmp_path / "a.mpg", count=6, codec="mpeg2video", options=flags)
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    planes = frames[2].to_ndarray()  # yuv420p, as decoded
    progressive = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    progressive.color_range, progressive.colorspace = frames[2].color_range, frames[2].colorspace
    expected = progressive.to_ndarray(format="rgb24")
    assert (read_clip(path, lambda count: np.array([2]))[0] == expected).all()
    assert (frames[2].to_ndarray(format="rgb24") != expected).any()


# Files of which a decoder of another project lost frames, or returned others.
REPORTED = {
    "times that overflow.ts": dict(container_options={"output_ts_offset": "95443"}),
    "no key frames.ts": dict(options={"x264-params": "intra-refresh=1:keyint=10"}),
    "hidden frames.webm": dict(codec="libvpx-vp9", options={"auto-alt-ref": "1", "cpu-used": "8"}),
    "one key frame.webm": dict(codec="libvpx", options={"deadline": "realtime"}, gop=250),
    "grain.mp4": dict(codec="libsvtav1", options={"svtav1-params": "film-grain=8:preset=12"}),
    "animation.gif": dict(codec="gif", pixels="rgb8"),
    "animation.apng": dict(codec="apng", pixels="rgb24"),
    "ten bits.mov": dict(codec="prores_ks", pixels="yuv422p10le"),
}


@pytest.mark.parametrize("name", REPORTED)
def test_frames_of_unusual_files_are_those_asked_for(tmp_path, name):
    """Under a name that says mp4, as files from the web have it."""
    if REPORTED[name].get("codec", "libx264") not in av.codecs_available:
        pytest.skip("PyAV was built without this encoder")
    written = Path(write_video(tmp_path / name, **REPORTED[name]))
    path = str(written.rename(tmp_path / "a.mp4"))
    wanted = np.array([39, 3, 17, 18])
    assert [number(picture) for picture in read_clip(path, lambda count: wanted)] == list(wanted)
    assert read_facts(path).frames == COUNT


def test_a_picture_size_that_changes_is_refused(tmp_path):
    """As recordings of calls and live streams do."""
    sizes = [write_video(tmp_path / f"{width}.ts", width=width) for width in (96, 128)]
    data = b"".join(Path(path).read_bytes() for path in sizes)
    with pytest.raises(UnreadableVideo, match=r"the picture size changes from \(64, 96\) to"):
        read_clip(data, np.arange)


# Red and blue in the luma of ITU-R BT.601, 709 and 2020; FFmpeg's numbers of the matrices.
MATRICES = {"601": (0.299, 0.114, 5), "709": (0.2126, 0.0722, 1), "2020": (0.2627, 0.0593, 9)}


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", MATRICES)
def test_colours_follow_the_matrix_the_range_and_the_depth_of_the_file(tmp_path, name, full, bits):
    """Cameras, phones and screen recorders differ in all three."""
    red, blue, matrix = MATRICES[name]
    across, down = np.meshgrid(np.arange(128) * 2, np.arange(64) * 4)
    picture = np.stack([across, down, 255 - across], axis=-1).astype(np.uint8)
    r, g, b = np.moveaxis(picture / 255, -1, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    steps = 1 << (bits - 8)
    low, luma_span, chroma_span = (0, 255, 255) if full else (16, 219, 224)
    planes = [low + luma_span * luma, *(128 + chroma_span * plane for plane in chroma)]
    dtype, pixels = (np.uint8, "yuv444p") if bits == 8 else (np.uint16, "yuv444p10le")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 64, pixels
        stream.codec_context.color_range = 2 if full else 1
        stream.codec_context.colorspace = matrix
        frame = av.VideoFrame(128, 64, pixels)
        frame.color_range, frame.colorspace = 2 if full else 1, matrix
        for target, plane in zip(frame.planes, planes, strict=True):
            target.update(
                np.clip(steps * plane, 0, 256 * steps - 1).round().astype(dtype).tobytes()
            )
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = read_clip(str(tmp_path / "a.mkv"), np.arange)[0]
    assert np.abs(shown.astype(int) - picture).max() <= 3


def test_grey_covers_the_full_range_and_follows_colour(tmp_path):
    path = write_video(tmp_path / "a.mp4", count=COUNT)
    grey = read_clip(path, lambda count: np.array([21]), channels=1)
    assert grey.shape == (1, 64, 96, 1)
    assert number(grey[0]) == 21
    assert grey.min() < 5 and grey.max() > 250


def test_other_channels_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="not 4: use 3"):
        read_clip(str(tmp_path / "a.mp4"), np.arange, channels=4)


def test_tiny_and_short_videos_are_read(tmp_path):
    path = write_video(tmp_path / "a.mov", count=1, width=1, height=1, codec="png", pixels="rgb24")
    assert read_clip(path, lambda count: np.zeros(4, int)).shape == (4, 1, 1, 3)


def test_what_cannot_be_read_says_why_in_one_line(tmp_path, decoder):
    for path, reason in write_broken(tmp_path).items():
        with pytest.raises(UnreadableVideo, match=reason) as caught:
            read_clip(path, np.arange, decoder=decoder)
        assert "\n" not in str(caught.value) and path not in str(caught.value)
        assert not caught.value.transient


def test_a_path_that_cannot_exist_is_not_tried_again(tmp_path):
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "file").write_text("")
    for name in ("x" * 300 + ".mp4", "loop.mp4", "file/a.mp4"):
        for read in (lambda path: read_clip(path, np.arange), storage.read_bytes):
            with pytest.raises(UnreadableVideo) as caught:
                read(str(tmp_path / name))
            assert not caught.value.transient, name


def test_a_bug_in_the_choice_of_frames_stays_a_bug(tmp_path):
    path = write_video(tmp_path / "a.mp4", count=5)
    with pytest.raises(ZeroDivisionError):
        read_clip(path, lambda count: 1 // 0)
    with pytest.raises(IndexError):
        read_clip(path, lambda count: np.array([count]))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_damaged_bytes_give_frames_or_a_reason_and_nothing_else(tmp_path, name):
    data = Path(write_video(tmp_path / name, count=20, b_frames=2)).read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(0, len(data), 20)] ^= np.uint8(1 << rng.integers(8))
        try:
            outcomes.add(read_clip(damaged.tobytes(), lambda count: np.array([0, count - 1])).ndim)
        except UnreadableVideo:
            outcomes.add("unreadable")
    assert "unreadable" in outcomes
