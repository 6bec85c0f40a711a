"""`videomae data check`: facts of files, copies, look-alikes, leaks, a page that stands alone."""

import base64
import csv
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from runs import CLIPS, fails
from videos import turn, write_video

from videomae_jax import cli
from videomae_jax.data.decode import read_clip, read_facts
from videomae_jax.data.sources import read_videos
from videomae_jax.data.survey import find_copies, find_look_alikes, survey_video, survey_videos

WALKS = sorted(map(str, (CLIPS / "train/walk").iterdir()))[:10]


def encode_again(source, path, *, size=112, crf=20, codec="libx264") -> str:
    """Write the same frames in another size and quality."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for frame in read_clip(source, np.arange):
            image = Image.fromarray(frame).resize((size, size))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_facts_of_a_file(tmp_path, name):
    facts = read_facts(write_video(tmp_path / name, count=40, b_frames=2))
    assert (facts.frames, facts.codec, facts.pixels, facts.steady) == (40, "h264", "yuv420p", True)
    assert facts.rate == pytest.approx(30, rel=2e-3)
    times = np.arange(40) * 2 + (np.arange(40) % 3 == 0)
    uneven = read_facts(write_video(tmp_path / f"uneven_{name}", count=40, times=times))
    assert uneven.frames == 40 and not uneven.steady
    assert uneven.rate == pytest.approx(30 * 39 / (times[-1] - times[0]), rel=2e-3)


def test_a_survey_shows_the_picture_upright(tmp_path):
    path = turn(write_video(tmp_path / "a.mp4", count=9, width=128, height=64), degrees=90)
    survey = survey_video(path, picture=True)
    assert (survey.width, survey.height, survey.reason) == (64, 128, "")
    assert Image.open(io.BytesIO(survey.picture)).size == (64, 128)
    assert survey_video(path).picture == b"" and survey.size == Path(path).stat().st_size


def test_processes_give_the_same_in_order():
    pictures = [place == 3 for place in range(len(WALKS))]
    found = list(survey_videos(WALKS, pictures=pictures))
    assert [survey.path for survey in found] == WALKS
    assert [bool(survey.picture) for survey in found] == pictures
    alone = survey_video(WALKS[3], True)
    assert (found[3].thumbnails == alone.thumbnails).all() and found[3].digest == alone.digest


def test_copies_and_look_alikes_are_found_and_others_are_not(tmp_path):
    again = [
        encode_again(WALKS[0], tmp_path / "small.mp4", size=64),
        encode_again(WALKS[1], tmp_path / "large.webm", size=160, codec="libvpx"),
        shutil.copy(WALKS[2], tmp_path / "copy.mp4"),
    ]
    flat = dict(width=1, height=1, codec="png", pixels="rgb24")
    black = [write_video(tmp_path / name, **flat) for name in ("a.mov", "b.mov")]
    surveys = [survey_video(path) for path in [*WALKS, *again, *black]]
    assert find_look_alikes(surveys) == [(0, 10), (1, 11)]
    assert find_copies(surveys) == {12: 2, 14: 13}
    assert find_look_alikes([]) == [] and find_copies([]) == {}


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A list with a bit of everything, checked against another: (folder, result, report)."""
    folder = tmp_path_factory.mktemp("checked")
    for source in WALKS[:4]:
        shutil.copy(source, folder)
    shutil.copy(WALKS[1], folder / "<b>again.mp4")
    encode_again(WALKS[2], folder / "small.mp4", size=64)
    (folder / "bad.mp4").write_text("not a video")
    wide = {"x264-params": "sar=16/11"}
    write_video(folder / "odd.mp4", width=97, height=65, pixels="yuv444p", options=wide)
    names = [*(Path(path).name for path in WALKS[:4]), "<b>again.mp4", "small.mp4"]
    rows = [f"{name},walk" for name in names] + ["bad.mp4,roll", "odd.mp4,roll"]
    (folder / "list.csv").write_text("\n".join(rows).replace("again.mp4,walk", "again.mp4,roll"))
    (folder / "other").mkdir()
    shutil.copy(WALKS[3], folder / "other/same.mp4")
    encode_again(WALKS[0], folder / "other/alike.mp4")
    command = ["data", "check", folder / "list.csv", "--against", folder / "other"]
    cli.main([*map(str, command), "--json", str(folder / "result.json")])
    result = json.loads((folder / "result.json").read_text())
    return folder, result, (folder / "list_check/report.html").read_text()


def test_the_check_sorts_videos_by_what_is_wrong(checked):
    folder, result, _ = checked
    with open(folder / "list_check/bad.csv", newline="", encoding="utf-8") as lines:
        rows = {
            Path(row["path"]).name: (row["kind"], row["reason"]) for row in csv.DictReader(lines)
        }
    first, second, *_ = map(str, (folder / Path(path).name for path in WALKS))
    assert rows == {
        "walk_000.mp4": ("leak", f"looks like {folder}/other/alike.mp4"),
        "walk_003.mp4": ("leak", f"also in {folder}/other/same.mp4"),
        "<b>again.mp4": ("copy", f"of {second}, which has another label"),
        "bad.mp4": ("unreadable", "invalid data found when processing input"),
    }
    clean = (folder / "list_check/clean.csv").read_text().splitlines()
    assert [line.split('"')[1] for line in clean] == [
        *map(str, (folder / name for name in ("walk_001.mp4", "walk_002.mp4", "small.mp4"))),
        str(folder / "odd.mp4"),
    ]
    summary = result["summary"]
    assert summary["left out"] == {"leak": 2, "copy": 1, "unreadable": 1}
    assert summary["remarks"] == {"look-alike": 1, "odd size": 1, "pixels not square": 1}
    assert [row["remark"] for row in result["remarks"]] == [
        f"of {folder}/walk_002.mp4",
        "97 x 65",
        "width 1.455 of the height; read as stored",
    ]
    assert summary["classes"] == {"roll": 1, "walk": 3}
    assert len(result["files"]) == 7 and result["files"][0]["frames"] == 48


def test_a_folder_that_cannot_be_made_is_named_before_the_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["data", "check", CLIPS / "val/walk", "--out", tmp_path / "file/out"]
    with pytest.raises(SystemExit) as caught:
        cli.main(list(map(str, command)))
    said = capsys.readouterr().err
    assert caught.value.code == 1 and said.count("\n") == 1
    assert "cannot make the folder" in said and "give --out" in said


def test_the_report_stands_alone_and_shows_the_pictures(checked):
    folder, _, html = checked
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append((tag, dict(attributes)))

    Reader().feed(html)
    tags = [tag for tag, _ in seen]
    assert not {"script", "link", "iframe"} & set(tags) and "url(" not in html
    assert not any("href" in attributes for _, attributes in seen)
    pictures = [attributes["src"] for tag, attributes in seen if tag == "img"]
    assert len(pictures) == 7  # the readable ones
    for source in pictures:
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).std() > 5
    assert tags.count("svg") == 6 and "b" in tags
    assert "&lt;b&gt;again.mp4" in html and "<b>again" not in html
    assert "4 of 8 videos are clean" in html and "which has another label" in html


def test_an_unreadable_video_of_the_other_list_is_named(tmp_path, capsys):
    for name, video in (("one", WALKS[0]), ("two", WALKS[1])):
        (tmp_path / name).mkdir()
        shutil.copy(video, tmp_path / name)
    torn = tmp_path / "two/torn.mp4"
    torn.write_bytes(b"")
    lists = [tmp_path / "one", "--against", tmp_path / "two", "--out", tmp_path / "out"]
    cli.main(["data", "check", *map(str, lists)])
    said = capsys.readouterr().out
    assert "1 of 1 videos are clean" in said and f"{torn} (the file is empty)" in said


def test_packed_videos_are_not_called_unreadable(tmp_path, capsys):
    (tmp_path / "one").mkdir()
    shutil.copy(WALKS[0], tmp_path / "one")
    cli.main(["data", "pack", str(tmp_path / "one"), str(tmp_path / "packed")])
    for lists in ([tmp_path / "packed"], [tmp_path / "one", "--against", tmp_path / "packed"]):
        said = fails(capsys, "data", "check", *lists)
        assert f"{tmp_path}/packed is packed already" in said


def test_several_labels_are_counted_shown_and_kept(tmp_path, capsys):
    names = [str(path) for path in WALKS[:2]]
    shutil.copy(WALKS[0], tmp_path / "copy.mp4")
    (tmp_path / "list.csv").write_text(f"{names[0]},run|walk\n{names[1]},|\ncopy.mp4,walk\n")
    result = tmp_path / "result.json"
    cli.main(["data", "check", str(tmp_path / "list.csv"), "--json", str(result)])
    summary = json.loads(result.read_text())["summary"]
    assert summary["classes"] == {"run": 1, "walk": 1} and summary["left out"] == {"copy": 1}
    html = (tmp_path / "list_check/report.html").read_text()
    assert "run, walk" in html and "no class" in html and "which has another label" in html
    clean = read_videos(tmp_path / "list_check/clean.csv")
    assert clean.labels.tolist() == [[True, True], [False, False]]
