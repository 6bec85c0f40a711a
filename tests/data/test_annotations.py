"""Annotation and box files: every format, what was decided about it, and what is wrong with it."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from videos import write_video

from videomae_jax import cli
from videomae_jax.data.annotations import (
    read_detections,
    read_excluded,
    read_film_detections,
    read_key_frames,
    with_detections,
)
from videomae_jax.data.box_files import is_box_file, read_table
from videomae_jax.data.box_report import summarize_boxes
from videomae_jax.data.probing import read_sizes
from videomae_jax.data.samplers import KeyFrameSampler
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError

SCENES = Path(__file__).parents[2] / "data/mocap_scenes"


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """Two videos of 3 s, 96 x 64."""
    folder = tmp_path_factory.mktemp("films")
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", count=90)
    return folder


def write(films: Path, text: str | list[str], name: str = "list.csv") -> Path:
    text = text if isinstance(text, str) else "\n".join(text)
    (films / name).write_text(text)
    return films / name


def read(films: Path, text: str | list[str], **options) -> Videos:
    return read_key_frames(write(films, text), **options)


def test_one_of_two_videos_of_a_name_is_chosen_by_its_path_alone(tmp_path):
    for folder in ("clip2", "other"):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "clip.mp4", count=30)
    row = ",0,0.1,0.1,0.9,0.9,1,1"
    # Of another suffix, as before the videos were encoded again.
    for name in ("other/clip.mp4", "other/clip.avi"):
        assert read(tmp_path, f"{name}{row}").paths == (str(tmp_path / "other/clip.mp4"),)
    with pytest.raises(UserError, match="clip is there 2 times below"):
        read(tmp_path, f"clip{row}")


def test_a_path_without_a_suffix_is_that_of_a_video(tmp_path):
    (tmp_path / "walk").mkdir()
    path = write_video(tmp_path / "walk/clip.avi", count=30, codec="mpeg4")
    assert read(tmp_path, "walk/clip,0,0.1,0.1,0.9,0.9,1,1").paths == (path,)


def test_the_rendered_scenes_have_the_numbers_of_their_readme():
    train = read_key_frames(SCENES / "train.csv", classes=str(SCENES / "classes.pbtxt"))
    val = read_key_frames(SCENES / "val.csv", classes=train.class_names)
    for videos, frames, boxes, labels in ((train, 450, 1047, 1966), (val, 150, 351, 641)):
        assert (len(videos), len(videos.key_frames.boxes)) == (frames, boxes)
        assert videos.key_frames.targets.sum() == labels
        assert all(map(os.path.exists, videos.paths))
    assert train.class_names[9:] == ("cartwheel", "low", "arm_up", "near_other")
    assert train.key_frames.targets.sum(0).tolist()[-3:] == [181, 158, 580]
    found = read_detections(SCENES / "val_detected.csv", val)
    assert len(found.boxes) == 360 and found.targets.shape == (360, 0)
    detected = with_detections(val, found, min_score=0.8)
    assert len(detected.key_frames.boxes) == 331 and detected.key_frames.targets.shape == (331, 13)
    assert "331 of 360 detected boxes have a score of 0.8 or more, in 148" in detected.notes[-1]
    assert "2 of 150 annotated ones have none" in detected.notes[-1]


AVA = [
    "a,0001,0.1,0.2,0.5,0.9,3,7",
    "a,0001,0.1,0.2,0.5,0.9,1,7",
    "a,2,0.5,0.5,0.75,1,2,8",
    "b,0000",
]


def test_rows_of_ava_are_joined_to_boxes(films):
    videos = read(films, AVA)
    frames = videos.key_frames
    assert [Path(path).name for path in videos.paths] == ["a.mp4", "a.mp4", "b.mp4"]
    assert frames.names == ("a", "a", "b") and frames.stamps.tolist() == [1, 2, 0]
    assert frames.counts.tolist() == [1, 1, 0] and frames.persons.tolist() == [7, 8]
    assert frames.targets.tolist() == [[True, False, True], [False, True, False]]
    assert videos.class_names == ("1", "2", "3")
    assert videos.notes[0] == "AVA csv of 8 columns"
    assert "no class list: classes are ids 1 to 3" in videos.notes


def test_an_own_list_has_columns_in_any_order_and_names(films):
    head = "Action,x2,y2,x1,y1,timestamp,video,person"
    rows = ["run|wave,48,64,0,0,1.5,a.mp4,anna", ",96,32,48,0,1.5,a.mp4,ben", "run,9,9,3,3,0,b,"]
    videos = read(films, [head, *rows])
    frames = videos.key_frames
    assert videos.class_names == ("run", "wave")
    assert frames.targets.tolist() == [[True, True], [False, False], [True, False]]
    assert frames.boxes[:2].tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 0.5]]
    assert frames.persons.tolist() == [0, 1, -1] and frames.seconds.tolist() == [1.5, 0]
    assert "corners are pixels (up to 96)" in videos.notes
    by_frame = read(films, ["video,frame,x1,y1,x2,y2,label", "a,45,0,0,1,1,run"])
    assert by_frame.key_frames.seconds.tolist() == pytest.approx([1.5])
    assert by_frame.key_frames.stamps.tolist() == pytest.approx([1.5])


@pytest.mark.parametrize("sign", [";", "\t"])
def test_spreadsheets_separate_columns_by_other_signs(films, sign):
    path = write(films, [sign.join(["a", "1", "0", "0.25", "1", "0.5", "2", "7"])])
    assert is_box_file(path) and read_table(path).corners.tolist() == [[0, 0.25, 1, 0.5]]


def test_kinetics_names_its_files_by_seconds(tmp_path):
    write_video(tmp_path / "x_y_000030_000040.mp4", count=90)
    write_video(tmp_path / "x_y_000100_000110.mp4", count=90)
    rows = ["x_y,31.5,0,0,1,1,2", "x_y,101.25,0,0,.5,.5,1", "x_y,102"]
    videos = read(tmp_path, rows)
    assert [Path(path).stem[-13:] for path in videos.paths] == [
        "000030_000040",
        *["000100_000110"] * 2,
    ]
    assert videos.key_frames.seconds.tolist() == [1.5, 1.25, 2]
    boxes = write(tmp_path, "x_y,101.25,0,0,.4,.5,,0.9", "boxes.csv")
    assert read_detections(boxes, videos).seconds.tolist() == [1.25]
    assert read_film_detections(boxes, videos.paths[1]).seconds.tolist() == [1.25]


def test_a_start_is_guessed_only_where_it_fits(films):
    rows = ["a,901,0,0,1,1,1,1", "b,902.5,0,0,1,1,1,1"]
    videos = read(films, rows)
    assert videos.key_frames.seconds.tolist() == [1, 2.5]
    assert videos.key_frames.stamps.tolist() == [901, 902.5]
    assert "files begin at second 900: all 2 key frames looked at are" in videos.notes[-1]
    assert read(films, rows, start="900.5").key_frames.seconds.tolist() == [0.5, 2]
    message = r"outside of their videos, .*which has 3.0 s; .*\(--start\), 500 at most"
    with pytest.raises(UserError, match=message):
        read(films, ["a,500,0,0,1,1,1,1"])
    with pytest.raises(UserError, match="data.start 'x': use auto or a number"):
        read(films, rows, start="x")
    late = read(films, ["a,1,0,0,1,1,1,1", "a,77,0,0,1,1,1,1"])
    assert "1 of 2 key frames looked at are beyond the end" in late.notes[-1]


def test_files_of_windows_and_pandas_are_read(films):
    """A byte order mark, its line ends, UTF-16 of PowerShell, and 7.0 for an id."""
    rows = ["-a b,1,0,0,1,1,3.0,7.0", "-a b,2,0,0,1,1,1.0,", "b,1,0,0,1,1,2.0,-1"]
    write_video(films / "-a b.mp4", count=90)
    expected = read(films, rows).key_frames
    assert expected.names == ("-a b", "-a b", "b") and expected.persons.tolist() == [7, -1, -1]
    assert expected.targets.argmax(axis=1).tolist() == [2, 0, 1]
    for encoding in ("utf-8-sig", "utf-16"):
        path = films / "windows.csv"
        path.write_bytes("\r\n".join([*rows, ""]).encode(encoding))
        frames = read_key_frames(path).key_frames
        assert frames.names == expected.names and (frames.targets == expected.targets).all()
    # Ids that are whole, but too large for an integer, and others are names.
    names = [f"b,1,0,0,{x},1,1,{person}" for x, person in ((0.1, "--5"), (0.2, "9" * 30))]
    assert read(films, names).key_frames.persons.tolist() == [0, 1]
    # Scores may all be 1.0.
    assert read_table(write(films, ["b,1,0,0,1,1,1,1.0"])).scores.tolist() == [1]
    (films / "latin.csv").write_bytes(b"caf\xe9,1,0,0,1,1,1,1\n")
    with pytest.raises(UserError, match="is not a text file in UTF-8"):
        read_key_frames(films / "latin.csv")


def test_excluded_key_frames_are_left_out_on_both_sides(films):
    out = write(films, "a,0001\n", "out.csv")
    assert read_excluded(out) == {("a", 1.0)}
    assert read(films, AVA, excluded=str(out)).key_frames.stamps.tolist() == [2, 0]
    write(films, "\n".join(AVA), "out.csv")
    with pytest.raises(UserError, match="excludes all key frames of these annotations"):
        read(films, AVA, excluded=str(out))
    write(films, "c,0001\n", "out.csv")
    with pytest.raises(UserError, match="excludes no key frame of these annotations"):
        read(films, AVA, excluded=str(out))
    write(films, "a,1\na,2\nb,0\n", "out.csv")
    with pytest.raises(UserError, match="excludes all key frames"):
        read(films, AVA, excluded=str(out))


DETECTED = {"a,0001": [[0.1, 0.2, 0.5, 0.9, 0.95]], "b,0002": [[0, 0, 0.5, 0.5, 0.5]] * 2}


@pytest.mark.parametrize("form", ["csv", "json", "results", *range(6)])
def test_every_form_of_detections_is_the_same(films, form):
    boxes = [(*key.split(","), *row) for key, rows in DETECTED.items() for row in rows]
    annotations = AVA
    if form == "csv":
        path = write(films, [",".join(map(str, [*b[:6], "", b[6]])) for b in boxes], "boxes.csv")
    elif form in ("json", "results"):
        images = [
            dict(id=7, movie="a", timestamp=1, width=96, height=64),
            dict(id=8, movie="b", timestamp=2, width=96, height=64),
        ]
        found = [
            dict(
                image_id=(7 if b[0] == "a" else 8) if form == "json" else f"{b[0]},{b[1]}",
                bbox=[96 * b[2], 64 * b[3], 96 * (b[4] - b[2]), 64 * (b[5] - b[3])],
                score=b[6],
                category_id=1,
            )
            for b in boxes
        ]
        path = write(films, json.dumps([*found, found[0] | dict(category_id=3)]), "boxes.json")
        boxed = dict(image_id=7, bbox=[9.6, 12.8, 38.4, 44.8], action_ids=[1, 3], person_id=7)
        if form == "json":
            truth = dict(images=images, annotations=[boxed])
            annotations = write(films, json.dumps(truth), "truth.json")
    else:
        arrays = {key: np.array(rows, np.float64) for key, rows in DETECTED.items()}
        path = films / "boxes.pkl"
        path.write_bytes(pickle.dumps(arrays, protocol=form))
    if isinstance(annotations, list):
        videos = read(films, annotations)
    else:
        videos = read_key_frames(annotations)
        assert videos.key_frames.targets.tolist() == [[True, False, True]]
        np.testing.assert_allclose(videos.key_frames.boxes, [[0.1, 0.2, 0.5, 0.9]], atol=1e-6)
        with pytest.raises(
            UserError, match="image_id 7 is not known.*give annotations as the json"
        ):
            read_detections(path, read(films, AVA))
    if form == "json":  # the video b has no annotation
        assert len(read_detections(path, videos).boxes) == 1
        return
    found = read_detections(path, videos)
    assert found.names == ("a", "b") and found.counts.tolist() == [1, 1]
    np.testing.assert_allclose(found.boxes, [[0.1, 0.2, 0.5, 0.9], [0, 0, 0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(found.scores, [0.95, 0.5])
    assert "1 rows repeat others" in found.notes
    film = read_film_detections(path, str(films / "b.mp4"))
    assert film.names == ("b",) and film.seconds.tolist() == [2]


class Harmful:
    """What a pickle can do when it is read: here, make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_runs_nothing(tmp_path, protocol):
    path = tmp_path / "boxes.pkl"
    path.write_bytes(pickle.dumps({"a,1": Harmful(tmp_path / "made")}, protocol=protocol))
    with pytest.raises(UserError, match="names posix.mkdir, which is not allowed and was not run"):
        read_table(path)
    assert not (tmp_path / "made").exists()
    for content in ([1], {"a,1": 5}, {"a,1": np.array([None])}, {"a,1": np.zeros((1, 7))}):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(UserError, match="is not a pickle of boxes"):
            read_table(path)
    path.write_bytes(b"\x80\x04junk")
    with pytest.raises(UserError, match="is not a pickle of boxes"):
        read_table(path)


@pytest.mark.parametrize(
    "rows,message",
    [
        ("", "is empty"),
        ("video,timestamp,x1,y1,x2,y2", "has no boxes and no key frames"),
        (['"a,1,0,0,1,1,1,1', *["a,1,0,0,1,1,1,1"] * 9000], "is a quote not closed"),
        (["a,1,0,0,inf,1,1,1"], "line 1: x2 'inf' is not a number"),
        (["a,1,0,0,1,1,1000000000,1"], "action 1000000000 is not an id of 1 to 65,536"),
        (["a,1,0,0,1,1,1,1", "a,1,0"], "line 2 has 3 columns, not 8"),
        (["a,1,0.5,0,0.2,1,1,1"], "line 1: corners 0.5, 0, 0.2, 1 are out of order.*x1 < x2"),
        (["a,one,0,0,1,1,1,1", "b,1,0,0,1,1,1,1"], "column 'a' is not known; a header has"),
        (["a,1,0,0,1,1,1,1", "a,x,0,0,1,1,1,1"], "line 2: second 'x' is not a number"),
        (["a,1,0,0,1,,1,1", "a,1,0,0,1,1,1,1"], "line 1"),
        (["a.mp4,run|walk"], "second 'run.walk' is not a number; a list of videos with labels has"),
        (["video,second,x1,y1,x2,y2,score", "a,1,0,0,1,1,95"], "row 2: score 95: use 0 to 1"),
        (["video,second,x1,y1,x2,y2", "a,1,0,,1,1"], "line 2 lacks some of the corners"),
        (["video,timestmp,x1,y1,x2,y2", "a,1,0,0,1,1"], "'timestmp' .*; did you mean 'timestamp'"),
        (["video,x1,y1,x2,y2", "a,0,0,1,1"], "has no column 'timestamp'"),
        (["video,second,x1,y1,x2,y2", "a,0,0,0,1,1,5"], "line 2 has 7 columns, the header 6"),
        (["video,frame,x1,y1,x2,y2", "a,90,0,0,1,1"], "frame 90 of .*use 0 to 89"),
        (["c,1,0,0,1,1,1,1"], "none of its 1 videos is in .*first 'c'.*--videos"),
        (["a,1,200,100,300,200,1,1"], "1 of 1 boxes are outside of the image, first line 1"),
    ],
)
def test_a_wrong_file_is_one_clear_line(films, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        read(films, rows)
    assert "\n" not in str(caught.value)


def test_unknown_actions_and_videos_name_the_nearest(films):
    rows = ["video,timestamp,x1,y1,x2,y2,action", "a,1,0,0,1,1,runn"]
    with pytest.raises(UserError, match="line 2: action 'runn' .* 2 classes; did you mean 'run'"):
        read(films, rows, classes=("run", "walk"))
    with pytest.raises(UserError, match="action '5' is not among the 2 classes; their ids are 1"):
        read(films, ["a,1,0,0,1,1,5,1"], classes=("run", "walk"))
    videos = read(films, AVA)
    other = write(films, ["aa,1,0,0,1,1,,0.9"], "boxes.csv")
    with pytest.raises(UserError, match="none of its 1 videos is in .*'aa'; did you mean 'a'"):
        read_detections(other, videos)
    with pytest.raises(UserError, match="none is named 'b'; the first is 'aa'"):
        read_film_detections(other, str(films / "b.mp4"))
    boxes = write(films, ["a,1,0,0,1,1,,0.3", "aa,1,0,0,1,1,,0.9"], "boxes.csv")
    found = read_detections(boxes, videos)
    assert "1 boxes are of other videos, first aa" in found.notes
    boxes = write(films, ["a,1.4,0,0,1,1,,0.9"], "boxes.csv")
    with pytest.raises(UserError, match="boxes begin at second 1.4, annotations at 0"):
        with_detections(videos, read_detections(boxes, videos), min_score=0.8)
    boxes = write(films, ["a,77,0,0,1,1,,0.9"], "boxes.csv")
    with pytest.raises(UserError, match="3.0 s; subtract the second .* begins, 77 at most"):
        read_film_detections(boxes, str(films / "a.mp4"))
    with pytest.raises(UserError, match="no box has a score of 0.8 or more, the highest is 0.3"):
        with_detections(videos, found, min_score=0.8)


def test_what_is_left_out_is_counted(films):
    rows = ["a,1,-.1,0,.5,1,1,1", "a,1,1.1,0,1.2,1,1,1", "a,1,0,0,.5,1,1,1", "a,1,0,0,.5,1,1,1"]
    notes = read(films, [*rows, "zz,1,0,0,1,1,1,1"]).notes
    assert "1 boxes reach beyond the image, and are cut at its border" in notes
    assert "1 boxes are outside of the image, and are left out" in notes
    assert any(note.startswith("1 of 2 videos") or "videos are missing" in note for note in notes)


def test_lists_of_videos_are_told_from_boxes(films):
    assert is_box_file(write(films, AVA)) and is_box_file(write(films, ["b,1", *AVA]))
    quote = '"a.mp4" run\n"b.mp4 run\n' + "c.mp4 run\n" * 20_000
    for text in ("a.mp4 1\nb.mp4 2\n", "path,label\na.mp4,run\n", "", quote):
        assert not is_box_file(write(films, text))
    for data in ("a.mp4 run\r\n".encode("utf-16"), b"caf\xe9.mp4 run\n"):
        (films / "list.txt").write_bytes(data)
        assert not is_box_file(films / "list.txt")
    assert not is_box_file(films / "a.mp4")


def test_packed_records_give_the_clips_of_the_films(films, tmp_path, capsys):
    rows = ["a,0.5,0,0,.5,1,1,1", "a,2.9,0,0,.5,1,2,1", "b,1.5,.25,0,.5,1,2,1", "b,1.6,0,0,1,1,1,2"]
    videos = read(films, rows)
    sampler = KeyFrameSampler(
        frames=8,
        stride=4,
        rate=25.0,
        short_side=64,
        height=64,
        width=96,
        channels=3,
        persons=8,
        classes=2,
        train=False,
    )
    for form in ("mp4", "jpeg", "original"):
        out = tmp_path / form
        around = ["--around", "0.7", "--clip-frames", "11", "--format", form]
        cli.main(["data", "pack", str(films / "list.csv"), str(out), *around])
        packed = read_key_frames(out, classes=videos.class_names)
        assert packed.class_names == videos.class_names and packed.notes == videos.notes
        for name in ("seconds", "stamps", "offsets", "boxes", "targets", "scores", "persons"):
            one, other = (getattr(v.key_frames, name) for v in (videos, packed))
            assert one.dtype == other.dtype and (one == other).all()
        for index in range(4):
            one, other = (sampler.sample_many(v, index, [None]) for v in (videos, packed))
            # The pictures say their numbers, in blocks that survive encoding.
            bits = [clip["video"][0, :, 4, 4:80:8].mean(-1) > 127 for clip in (one, other)]
            assert (bits[0] == bits[1]).all() and (one["boxes"] == other["boxes"]).all()
        if form != "original":
            assert packed.reader.seconds is not None and packed.key_frames.around == 0.7
            spans = packed.spans(2, sampler.choose(packed, 2, [None]))
            assert 1 <= len(spans) <= 5 and len(packed.reader.seconds) < 180
    wide = KeyFrameSampler(
        **{n: getattr(sampler, n) for n in sampler.__dataclass_fields__} | dict(frames=16)
    )
    with pytest.raises(UserError, match="0.7 s around each key frame, clips need 1.24: pack with"):
        wide.sample_many(read_key_frames(tmp_path / "mp4"), 0, [None])
    with pytest.raises(UserError, match="action '2' is not among the 1 classes"):
        read_key_frames(tmp_path / "mp4", classes=("run",))


def test_an_unreadable_packed_video_has_no_size(films, tmp_path, capsys):
    (films / "broken.mp4").write_bytes(b"no video")
    path = write(films, ["broken,1,0,0,48,64,1,1", "b,1,0,0,48,64,1,1"])
    cli.main(["data", "pack", str(path), str(tmp_path / "packed")])
    packed = read_key_frames(tmp_path / "packed")
    assert list(read_sizes(packed.paths, packed.reader).values()) == [(64, 96)]
    boxes = write(films, ["broken,1,0,0,48,64,,0.9", "b,1,0,0,48,64,,0.9"], "boxes.csv")
    found = read_detections(boxes, packed)
    assert found.boxes.tolist() == [[0, 0, 0.5, 1]] * 2
    # Of smaller frames the pixels of the detector say nothing.
    cli.main(["data", "pack", str(path), str(tmp_path / "small"), "--short-side", "60"])
    with pytest.raises(UserError, match="the packed frames of b.mp4 may be smaller than it"):
        read_detections(boxes, read_key_frames(tmp_path / "small"))


def test_known_persons_are_counted(films):
    rows = ["a,1,0,0,1,1,1,3", "a,2,0,0,1,1,1,3", "a,2,0,0,.5,1,1,", "b,1,0,0,1,1,1,3"]
    assert summarize_boxes(read(films, rows))["persons"] == 2


def test_a_list_without_boxes_cannot_be_drawn(films, capsys):
    path = write(films, ["video,timestamp,x1,y1,x2,y2", "a,1,,,,"])
    with pytest.raises(SystemExit):
        cli.main(["data", "check", str(path)])
    assert "has no boxes to draw" in capsys.readouterr().err


def test_commands_count_and_draw(films, tmp_path, capsys):
    classes = write(films, "sit\nrun\nwalk\n", "classes.txt")
    path = write(films, [*AVA, "a,1.5,.6,.2,.7,.9,,"])
    options = ["--class-list", str(classes)]
    cli.main(["data", "list", str(path), *options, "--json", str(tmp_path / "list.json")])
    text = capsys.readouterr().out
    assert "2 videos" in text and "3 boxes" in text and "1 run" in text
    counts = json.loads((tmp_path / "list.json").read_text())
    assert (counts["key_frames"], counts["boxes"], counts["labels"]) == (4, 3, 3)
    assert counts["classes"] == {"sit": 1, "run": 1, "walk": 1}
    assert counts["without_label"] == 1 and counts["empty"] == 1
    cli.main(["data", "check", str(path), *options, "--out", str(tmp_path / "check")])
    assert "3 key frames with their boxes" in capsys.readouterr().out
    assert (tmp_path / "check/boxes.png").exists()
    assert "data:image/jpeg" in (tmp_path / "check/report.html").read_text()
