"""Frame i is frame i, however the file is built; what cannot be read says why."""

import sys
from pathlib import Path

import numpy as np
import pytest
from videos import number, turn, write_broken, write_video

from videomae_jax.data import decode, decoders
from videomae_jax.data.decode import UnreadableVideo, read_clip
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
    "program.mpg": dict(codec="mpeg2video", b_frames=2),
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
