"""Lists and folders are read as their writers meant them, or refused with the reason."""

import csv
import errno
import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from videomae_jax.data.manifest import write_manifest
from videomae_jax.data.sources import find_videos, read_videos
from videomae_jax.data.videos import list_labels, number_labels, split_videos
from videomae_jax.errors import UserError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def listed(folder: Path, text: str | bytes):
    data = text.encode() if isinstance(text, str) else text
    (folder / "list.csv").write_bytes(data)
    return read_videos(folder / "list.csv")


LISTS = {
    "spaces": "a.mp4 0\nb c.mp4 1\n",
    "commas": "a.mp4,0\nb c.mp4, 1\n",
    "tabs": "a.mp4\t0\nb c.mp4\t1\n",
    "semicolons, of Excel in Europe": "path;label\r\na.mp4;0\r\nb c.mp4;1\r\n",
    "whole numbers with a point, of pandas": "path,label\na.mp4,0.0\nb c.mp4,1.0\n",
    "UTF-16, of PowerShell": "a.mp4 0\r\nb c.mp4 1\r\n".encode("utf-16"),
    "header": "path,label\na.mp4,0\nb c.mp4,1\n",
    "quotes": "\"a.mp4\" 0\n'b c.mp4' 1\n",
    "a mark and line ends of other systems": "\ufeffa.mp4 0\r\n\r\nb c.mp4 1\r\n",
    "comments": "# two videos\n\na.mp4 0\n# the second\nb c.mp4 1",
}


@pytest.mark.parametrize("kind", LISTS)
def test_every_usual_way_to_write_a_list(tmp_path, kind):
    touch(tmp_path, "a.mp4", "b c.mp4")
    videos = listed(tmp_path, LISTS[kind])
    assert videos.paths == (str(tmp_path / "a.mp4"), str(tmp_path / "b c.mp4"))
    assert videos.labels.dtype == np.int32 and videos.labels.tolist() == [0, 1]
    assert videos.class_names is None and len(videos) == 2
    assert videos.name == str(tmp_path / "list.csv")


@pytest.mark.parametrize("text", ["a.mp4\nb c.mp4\n", "path\na.mp4\nb c.mp4\n", '"a.mp4"\nb c.mp4'])
def test_a_list_without_labels(tmp_path, text):
    touch(tmp_path, "a.mp4", "b c.mp4")
    videos = listed(tmp_path, text)
    assert [os.path.basename(path) for path in videos.paths] == ["a.mp4", "b c.mp4"]
    assert videos.labels is None and videos.class_names is None


def test_names_are_numbered_in_alphabetical_order(tmp_path):
    touch(tmp_path, "ä, ö.MP4", "b.mp4", "c.mp4")
    videos = listed(tmp_path, "ä, ö.MP4,walk\nb.mp4,high jump\nc.mp4,walk\n")
    assert videos.class_names == ("high jump", "walk")
    assert videos.labels.tolist() == [1, 0, 1]
    assert videos.paths[0] == str(tmp_path / "ä, ö.MP4")


# Of each, the labels of a.mp4, b c.mp4 and, if there is one, d.mp4.
SEVERAL = {
    "names": ("a.mp4,jump|walk\nb c.mp4,walk\nd.mp4,|\n", "jump+walk walk -"),
    "spaces": ("a.mp4 walk | jump\nb c.mp4 jump\n", "jump+walk jump"),
    "quotes": ('path,label\n"a.mp4","jump|walk"\n"b c.mp4","jump"\n', "jump+walk jump"),
    "numbers": ("path,label\na.mp4,0|2.0\nb c.mp4,1\n", "0+2 1"),
    "empty cells, of pandas": ("path,label\na.mp4,2|0|2\nb c.mp4,\nd.mp4,1\n", "0+2 - 1"),
    "a bar at the end": ("a.mp4 jump|\nb c.mp4 walk\n", "jump walk"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_labels_a_video(tmp_path, kind):
    text, labels = SEVERAL[kind]
    touch(tmp_path, "a.mp4", "b c.mp4", "d.mp4")
    videos = listed(tmp_path, text)
    assert videos.multi_label and videos.labels.dtype == bool
    names = videos.class_names or "012"
    found = ["+".join(names[label] for label in row) or "-" for row in list_labels(videos)]
    assert " ".join(found) == labels and videos.labels.shape == (len(videos), len(set(names)))
    write_manifest(videos, tmp_path / "again.csv")
    again = read_videos(tmp_path / "again.csv")
    assert again.paths == videos.paths and again.class_names == videos.class_names
    np.testing.assert_array_equal(again.labels, videos.labels)


def test_a_class_name_with_a_bar_is_written_as_a_number(tmp_path):
    touch(tmp_path, "set/a|b/1.mp4", "set/c/1.mp4")
    videos = read_videos(tmp_path / "set")
    assert not videos.multi_label and videos.class_names == ("a|b", "c")
    write_manifest(videos, tmp_path / "list.csv")
    again = read_videos(tmp_path / "list.csv")
    assert again.labels.tolist() == [0, 1] and again.class_names is None


def test_quotes_are_those_of_csv(tmp_path):
    rows = [
        ('say "hi".mp4', 'a "b", c'),
        ("""a "" 'b'.mp4""", "it's"),
        ('"a" "b".mp4', '"d"'),
    ]
    touch(tmp_path, *(path for path, _ in rows))
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    videos = listed(tmp_path, text.getvalue())
    assert [os.path.basename(path) for path in videos.paths] == [path for path, _ in rows]
    assert [videos.class_names[label] for label in videos.labels] == [label for _, label in rows]


@pytest.mark.parametrize("form,other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_may_be_in_another_unicode_form_than_in_the_list(tmp_path, form, other):
    name = unicodedata.normalize(form, "é, ü.mp4")
    touch(tmp_path, name)
    videos = listed(tmp_path, unicodedata.normalize(other, "é, ü.mp4") + ",0\n")
    assert videos.paths == (str(tmp_path / name),)


def test_names_that_are_not_utf_8_are_read_back(tmp_path):
    """Those of an archive that was made on Windows."""
    touch(tmp_path / "set", *map(os.fsdecode, (b"run/\xc5\xdc.mp4", b"jump/\xcc\xf8.mp4")))
    videos = read_videos(tmp_path / "set")
    write_manifest(videos, tmp_path / "list.csv")
    again = read_videos(tmp_path / "list.csv")
    assert again.paths == videos.paths and again.class_names == videos.class_names
    assert again.labels.tolist() == videos.labels.tolist() == [0, 1]
    touch(tmp_path / "set", os.fsdecode(b"\xc5\xdc/1.mp4"))
    with pytest.raises(UserError, match=r"class name '\\udcc5\\udcdc' is not UTF-8: rename it"):
        read_videos(tmp_path / "set")


def test_paths_may_be_absolute_or_without_a_suffix(tmp_path):
    touch(tmp_path, "elsewhere/a.mp4", "clip7")
    videos = listed(tmp_path, f"{tmp_path}/elsewhere/a.mp4 4\nclip7 5\n")
    assert videos.paths == (str(tmp_path / "elsewhere/a.mp4"), str(tmp_path / "clip7"))
    assert videos.labels.tolist() == [4, 5]


def test_some_missing_files_are_left_for_later_and_all_missing_are_not(tmp_path):
    touch(tmp_path, "v0199.mp4")
    names = [f"v{index:04}.mp4 0" for index in range(200)]
    assert len(listed(tmp_path, "\n".join(names))) == 200
    os.remove(tmp_path / "v0199.mp4")
    with pytest.raises(UserError, match="none of the 200 videos .*v0000.mp4; .* relative to"):
        listed(tmp_path, "\n".join(names))


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "lists no videos"),
        ("# nothing\n", "lists no videos"),
        ("a.mp4 0\nb.mp4 0 1\n", "line 2 has 3 columns"),
        ("a.mp4,0\nb.mp4,0,train\n", "line 2 has 3 columns"),
        ("a.mp4 0\nb.mp4\n", "1 of 2 rows have no label, first line 2"),
        ("a.mp4,walk,run\n", "line 1 has 3 columns, .* several labels are `a|b`"),
        ("a.mp4 0|walk\n", "line 1 has 0, line 1 has walk; use one kind"),
        ("a.mp4 0|70000\n", "label 70000; labels count from 0, of several a video up to 65,535"),
        ("a.mp4 0\nb.mp4 jump\n", "mixes numbers and names .* line 1 has 0, line 2 has jump"),
        ("a.mp4 0\nb.mp4 -1\n", "line 2: label -1"),
        ("a.mp4 0\nb.mp4 --1\n", "mixes numbers and names .* line 2 has --1"),
        ("a.mp4 0\nb.mp4 0.5\n", "mixes numbers and names .* line 2 has 0.5"),
        ("a.mp4 0\nb\0.mp4 1\n", r"not a text file in UTF-8 \(line 2\)"),
        (b"a.mp4 0\ncaf\xe9.mp4 1\n", r"not a text file in UTF-8 \(line 2\)"),
        (b"a.mp4 hall\nb.mp4 caf\xe9\n", r"not a text file in UTF-8 \(line 2\)"),
        ("v\\a.mp4 0\nv\\b.mp4 1\n", "none of the 2 videos .* with / between folders"),
        (b"\x00\x00\xff\xfeftyp", "not a text file in UTF-8"),
    ],
)
def test_a_list_that_does_not_agree_with_itself_is_refused(tmp_path, text, message):
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(UserError, match=message):
        listed(tmp_path, text)


def test_a_misspelt_path_gets_a_suggestion(tmp_path):
    (tmp_path / "train.csv").touch()
    with pytest.raises(UserError, match="did you mean .*/train.csv"):
        read_videos(tmp_path / "trian.csv")
    with pytest.raises(UserError, match="exists, but has no videos"):
        read_videos(tmp_path / "videos" / "mine")
    with pytest.raises(UserError, match="exists, but has no x"):
        read_videos(tmp_path / ("x" * 300) / "train.csv")


def test_a_path_in_a_folder_that_cannot_be_read_says_so(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match="no such list .*; cannot read the folder .*: Permission"):
        read_videos(tmp_path / "train.csv")


def test_a_folder_of_class_folders_has_labels(tmp_path):
    touch(tmp_path, "run/2.mp4", "run/1.MKV", "jump/9.webm", "jump/notes.txt")
    videos = read_videos(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in videos.paths] == [
        "jump/9.webm",
        "run/1.MKV",
        "run/2.mp4",
    ]
    assert videos.class_names == ("jump", "run") and videos.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("names", [["b.mp4", "a.avi"], ["x/a.mp4", "b.mp4"], ["x/a.mp4"]])
def test_other_folders_have_none(tmp_path, names):
    touch(tmp_path, *names)
    videos = read_videos(tmp_path)
    assert len(videos) == len(names) and videos.labels is None
    assert list(videos.paths) == sorted(videos.paths)


def test_films_of_cameras_and_disks_are_found(tmp_path):
    touch(tmp_path, "00001.MTS", "00002.m2ts", "VTS_01_1.VOB", "gate.asf")
    assert len(read_videos(tmp_path)) == 4


def test_a_folder_without_videos_is_refused(tmp_path):
    touch(tmp_path, "a.txt")
    with pytest.raises(UserError, match="no videos in"):
        read_videos(tmp_path)


def split(folder: Path, count: int, **how):
    touch(folder, *[f"class {index % 3}/{index}.mp4" for index in range(count)])
    parts = split_videos(read_videos(folder), **how)
    for part in parts:
        names = [os.path.basename(os.path.dirname(path)) for path in part.paths]
        assert names == [part.class_names[label] for label in part.labels]
    return [[os.path.relpath(path, folder) for path in part.paths] for part in parts]


def test_a_split_is_a_partition_that_survives_a_move(tmp_path):
    train, held = split(tmp_path / "here", 40, holdout=0.1, seed=3)
    assert len(held) == 4 and len(train) == 36 and not set(train) & set(held)
    assert [train, held] == split(tmp_path / "there", 40, holdout=0.1, seed=3)
    assert held != split(tmp_path / "here", 40, holdout=0.1, seed=4)[1]


def test_each_side_of_a_split_has_a_video(tmp_path):
    assert [len(part) for part in split(tmp_path / "a", 3, holdout=0.01, seed=0)] == [2, 1]
    assert [len(part) for part in split(tmp_path / "b", 3, holdout=0.99, seed=0)] == [1, 2]
    touch(tmp_path / "c", "a.mp4")
    with pytest.raises(UserError, match="2 are needed"):
        split_videos(read_videos(tmp_path / "c"), holdout=0.5, seed=0)
    with pytest.raises(UserError, match="between 0 and 1, not 1.5"):
        split_videos(read_videos(tmp_path / "a"), holdout=1.5, seed=0)


def test_a_list_that_cannot_be_read_is_one_line():
    # Opens, and then fails as a broken disk does.
    with pytest.raises(UserError, match="cannot read /proc/self/mem: Input/output error"):
        read_videos("/proc/self/mem")


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.mp4", "b/2.mp4")
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot read the folder .*/b: Permission denied"):
        read_videos(tmp_path)


def test_class_folders_named_by_numbers_are_their_own_labels(tmp_path):
    touch(tmp_path, *(f"{name}/a.mp4" for name in (0, 1, 2, 10)))
    videos = read_videos(tmp_path)
    assert [Path(path).parent.name for path in videos.paths] == ["0", "1", "10", "2"]
    assert videos.labels.tolist() == [0, 1, 10, 2] and videos.class_names is None
    touch(tmp_path, "01/a.mp4")  # another folder of the same number: these are names
    assert read_videos(tmp_path).class_names == ("0", "01", "1", "10", "2")


def test_hidden_and_system_names_are_skipped_and_counted(tmp_path):
    touch(tmp_path, "walk/a.mp4", "walk/._a.mp4", "run/a.mp4", "run/Thumbs.db")
    touch(tmp_path, ".ipynb_checkpoints/a.mp4", ".Trash-1000/x/a.mp4", "__MACOSX/walk/a.mp4")
    videos = read_videos(tmp_path)
    assert videos.class_names == ("run", "walk") and len(videos) == 2
    (note,) = videos.notes
    assert note.startswith("4 hidden, system or circular names skipped, such as .Trash-1000")


def test_a_stray_file_beside_the_class_folders_is_named(tmp_path):
    touch(tmp_path, "walk/a.mp4", "run/a.mp4", "intro.mp4")
    videos = read_videos(tmp_path)
    assert videos.labels is None and len(videos) == 3
    assert videos.notes[0].endswith(
        "1 of 3 videos are not directly in a class folder, first intro.mp4"
    )
    with pytest.raises(UserError, match="has no labels: .*first intro.mp4"):
        number_labels(videos, ())


def test_class_folders_with_folders_inside_are_named(tmp_path):
    touch(tmp_path, "walk/first/a.mp4", "run/first/a.mp4")
    videos = read_videos(tmp_path)
    assert videos.labels is None
    with pytest.raises(UserError, match="2 of 2 videos are not directly in a class folder, first"):
        number_labels(videos, ())


def test_links_that_lead_back_are_followed_once(tmp_path):
    touch(tmp_path, "walk/a.mp4", "run/a.mp4", "elsewhere/b.mp4")
    for name in ("walk", "run"):
        (tmp_path / name / "up").symlink_to(tmp_path)
    (tmp_path / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "itself").symlink_to("itself")
    assert find_videos(tmp_path) == [
        *("elsewhere/b.mp4", "more/b.mp4", "run/a.mp4", "walk/a.mp4"),
    ]


def test_a_name_that_begins_with_a_hash_is_no_comment(tmp_path):
    """HMDB51 has such videos."""
    touch(tmp_path, "#437_ride.avi", "a.mp4", "b.mp4")
    lines = ["# a comment", "#437_ride.avi 1", "#a.mp4 0", "b.mp4 0", "#438_gone.avi 1", "#x"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    names = [Path(path).name for path in read_videos(tmp_path / "list.csv").paths]
    assert names == ["#437_ride.avi", "b.mp4", "#438_gone.avi"]


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0b", "\x1c", "\u00a0"])
def test_characters_that_look_like_line_breaks_are_written_and_read_back(tmp_path, character):
    touch(tmp_path, f"one{character}.mp4", f"{character}two.mp4")
    videos = read_videos(tmp_path)
    write_manifest(videos, tmp_path / "list.csv")
    assert read_videos(tmp_path / "list.csv").paths == videos.paths
