"""`videomae data list`: the official lists of four data sets, folders, splits by seed or list."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from videomae_jax import cli
from videomae_jax.data.datasets import LAYOUTS, read_listing
from videomae_jax.data.manifest import write_manifest
from videomae_jax.data.sources import read_videos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError

HARD = "Trying to pour something into something, but missing so it spills next to it"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def ucf101(folder: Path) -> Path:
    return write(
        folder,
        {
            "lists/classInd.txt": "1 ApplyEyeMakeup\r\n2 YoYo\r\n",
            "lists/trainlist01.txt": "ApplyEyeMakeup/v_A_g08_c01.avi 1\nYoYo/v_Y_g08_c01.avi 2\n",
            "lists/testlist01.txt": "YoYo/v_Y_g01_c01.avi\nYoYo/v_Y_g01_c02.avi\n",
            "lists/trainlist02.txt": "YoYo/v_Y_g01_c01.avi 2\n",
            "lists/testlist02.txt": "YoYo/v_Y_g08_c01.avi\n",
            "UCF-101/ApplyEyeMakeup/v_A_g08_c01.avi": "",
            "UCF-101/YoYo/v_Y_g08_c01.mp4": "",  # transcoded
            "UCF-101/YoYo/v_Y_g01_c01.avi": "",
            "UCF-101/YoYo/v_Y_g99_c01.avi": "",  # in no list
        },
    )


def hmdb51(folder: Path) -> Path:
    return write(
        folder,
        {
            "splits/wave_test_split1.txt": "a_b.avi 1 \nc.avi 2 \nd.avi 0 \n",
            "splits/brush_hair_test_split1.txt": "a_b.avi 2 \ngone.avi 1 \n",
            "splits/wave_test_split2.txt": "c.avi 1 \n",
            "splits/brush_hair_test_split2.txt": "a_b.avi 1 \n",
            "wave/a_b.avi": "",
            "wave/c.avi": "",
            "wave/d.avi": "",
            "brush_hair/a_b.avi": "",  # the same name in two classes
        },
    )


def ssv2(folder: Path) -> Path:
    labels = {"Holding something": "1", HARD: "0"}
    hard = HARD.replace("something", "[something]")
    return write(
        folder,
        {
            "something-something-v2-labels.json": json.dumps(labels),
            "something-something-v2-train.json": json.dumps(
                [
                    dict(id="1", label="x", template="Holding [something]"),
                    dict(id="7", label="y", template=hard),
                ]
            ),
            "something-something-v2-validation.json": json.dumps(
                [dict(id="20", label="x", template="Holding [something]")]
            ),
            "videos/1.webm": "",
            "videos/7.webm": "",
            "videos/20.webm": "",
        },
    )


def kinetics(folder: Path) -> Path:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    return write(
        folder,
        {
            "train.csv": header
            + "massaging person's head,-abc,9,19,train,0\nzumba,x_y,0,10,train,0",
            "validate.csv": header + '"zumba",v1,1,11,val,0\n',
            "test.csv": header + "zumba,t1,1,11,test,0\n",
            "train/massaging_persons_head/-abc_000009_000019.mp4": "",
            "train/zumba/x_y.mp4": "",
            "val/v1_000001_000011.mp4": "",
        },
    )


WANTED = {
    # layout: training, validation, missing, in no list
    ucf101: (
        {"v_A_g08_c01": "ApplyEyeMakeup", "v_Y_g08_c01": "YoYo"},
        {"v_Y_g01_c01": "YoYo"},
        ["YoYo/v_Y_g01_c02.avi"],
        1,
    ),
    hmdb51: (
        {"wave/a_b": "wave"},
        {"brush_hair/a_b": "brush_hair", "c": "wave"},
        ["brush_hair/gone.avi"],
        0,
    ),
    ssv2: ({"1": "Holding something", "7": HARD}, {"20": "Holding something"}, [], 0),
    kinetics: (
        {"-abc_000009_000019": "massaging person's head", "x_y": "zumba"},
        {"v1_000001_000011": "zumba"},
        [],
        0,
    ),
}


def run(*flags) -> None:
    cli.main(["data", "list", *map(str, flags)])


def labels(manifest: Path) -> dict[str, str]:
    """{path: class} as training reads a manifest."""
    videos = read_videos(manifest)
    return {
        path: videos.class_names[label]
        for path, label in zip(videos.paths, videos.labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("make", WANTED, ids=lambda make: make.__name__)
def test_official_lists(tmp_path, make):
    train, val, missing, unlisted = WANTED[make]
    folder = make(tmp_path / "set")
    out, counts = tmp_path / "train.csv", tmp_path / "counts.json"
    run(folder, "--out", out, "--val", tmp_path / "val.csv", "--json", counts)
    for file, wanted in ((out, train), (tmp_path / "val.csv", val)):
        found = labels(file)
        assert len(found) == len(wanted)
        for stem, label in wanted.items():
            named = {str(Path(path).with_suffix("")): name for path, name in found.items()}
            assert [name for path, name in named.items() if path.endswith(f"/{stem}")] == [label]
    result = json.loads(counts.read_text())
    assert result["layout"] == make.__name__
    assert (result["missing"], result["unlisted"]) == (missing, unlisted)
    if missing:
        assert (tmp_path / "train.missing.txt").read_text().split("\n")[:-1] == missing


def test_the_other_splits(tmp_path):
    for make in (ucf101, hmdb51):
        first, _ = read_listing(make(tmp_path / make.__name__))
        second, _ = read_listing(tmp_path / make.__name__, split=2)
        assert second.train and second.train != first.train
    with pytest.raises(UserError, match="no file trainlist03.txt"):
        read_listing(tmp_path / "ucf101", split=3)


def test_class_numbers_are_the_official_ones(tmp_path):
    folder = ssv2(tmp_path / "set")
    run(folder, "--out", tmp_path / "t.csv", "--classes", tmp_path / "c.txt", "--numbers")
    assert (tmp_path / "c.txt").read_text() == f"{HARD}\nHolding something\n"
    videos = read_videos(tmp_path / "t.csv")
    assert videos.class_names is None
    assert {Path(p).stem: int(n) for p, n in zip(videos.paths, videos.labels, strict=True)} == {
        "1": 1,
        "7": 0,
    }


def test_lists_may_lie_elsewhere(tmp_path):
    folder = ucf101(tmp_path / "set")
    (folder / "lists").rename(tmp_path / "elsewhere")
    listing, layout = read_listing(folder / "UCF-101", lists=tmp_path / "elsewhere")
    assert layout == "ucf101" and len(listing.train) == 2
    with pytest.raises(UserError, match="no file classInd.txt below .*give --lists"):
        read_listing(folder / "UCF-101", layout="ucf101")


def test_folders_flat_and_what_is_neither(tmp_path):
    folder = write(tmp_path / "a", {"walk/1.mp4": "", "run/2.mp4": "", "run/notes.txt": ""})
    listing, layout = read_listing(folder)
    assert layout == "folders" and listing.class_names == ("run", "walk")
    write(folder, {"run/deep/3.mp4": "", "4.mp4": ""})
    with pytest.raises(UserError, match="as (4|run/deep/3).mp4 shows: give --layout folders .* or"):
        read_listing(folder)
    listing, _ = read_listing(folder, layout="folders")
    assert [number for _, number in listing.train] == [0, 0, 1] and listing.unlisted == 1
    listing, _ = read_listing(folder, layout="flat")
    assert len(listing.train) == 4 and listing.class_names == ()
    with pytest.raises(UserError, match="has splits .train, val.: list .*/train alone"):
        read_listing(write(tmp_path / "b", {"train/x/1.mp4": "", "val/x/2.mp4": ""}))


def test_a_split_by_seed_is_the_same_each_time(tmp_path):
    folder = write(tmp_path / "set", {f"{c}/{n:02d}.mp4": "" for c in "ab" for n in range(20)})
    sides = []
    for seed in (0, 0, 1):
        flags = ["--out", tmp_path / "t.csv", "--val", tmp_path / "v.csv"]
        run(folder, *flags, "--holdout", 0.25, "--seed", seed)
        train, val = labels(tmp_path / "t.csv"), labels(tmp_path / "v.csv")
        assert len(val) == 10 and len(train) == 30 and not train.keys() & val.keys()
        sides.append(val)
    assert sides[0] == sides[1] != sides[2]


def test_a_split_by_a_given_list(tmp_path):
    folder = write(tmp_path / "set", {f"{c}/ü {n}, x.mp4": "" for c in "ab" for n in range(3)})
    given = tmp_path / "given.txt"
    given.write_text("a/ü 1, x.mp4\nb/ü 0, x.mp4\n")
    flags = [folder, "--out", folder / "t.csv", "--val", folder / "v.csv", "--val-list", given]
    run(*flags)
    assert labels(folder / "v.csv") == {
        str(folder / "a/ü 1, x.mp4"): "a",
        str(folder / "b/ü 0, x.mp4"): "b",
    }
    assert len(labels(folder / "t.csv")) == 4
    assert (folder / "t.csv").read_text().startswith('"a/ü 0, x.mp4","a"\n')  # relative: it moves
    run(folder / "a" / "..", *flags[1:])  # a path with .. is the same folder
    assert len(labels(folder / "v.csv")) == 2 and len(labels(folder / "t.csv")) == 4
    given.write_text("a/9.mp4\n")
    with pytest.raises(SystemExit):
        run(*flags)


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--holdout", "0.1"], "need --val FILE"),
        (["--layout", "ucf101"], "no file classInd.txt"),
        (["--val", "v", "--val-list", "none.txt"], "none.txt: No such file"),
        (["--val", "v", "--val-list", "x", "--holdout", "0.1"], "use one"),
        (["--split", "4"], "invalid choice: 4"),
        (["--val", "{out}"], "--out and --val are both"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, flags, message):
    folder = write(tmp_path / "set", {"a/1.mp4": "", "b/2.mp4": ""})
    with pytest.raises(SystemExit) as caught:
        out = tmp_path / "t.csv"
        run(folder, "--out", out, *(flag.format(out=out) for flag in flags))
    assert caught.value.code == 1 and message in capsys.readouterr().err


def test_a_list_for_validation_names_files_by_their_bytes(tmp_path):
    folder = write(tmp_path / "set", {"a/1.mp4": "", "b/2.mp4": ""})
    (folder / os.fsdecode(b"b/caf\xe9.mp4")).touch()
    out, val, given = tmp_path / "t.csv", tmp_path / "v.csv", tmp_path / "given.txt"
    given.write_bytes(b"b/caf\xe9.mp4\n")
    run(folder, "--out", out, "--val", val, "--val-list", given)
    assert [os.fsencode(path).rpartition(b"/")[2] for path in labels(val)] == [b"caf\xe9.mp4"]


def test_a_list_that_is_not_text_is_named(tmp_path):
    folder = ucf101(tmp_path / "set")
    (folder / "lists/classInd.txt").write_bytes(b"1 caf\xe9\n")
    with pytest.raises(UserError, match="classInd.txt is not a text file in UTF-8"):
        read_listing(folder)


def test_lists_in_another_format_are_refused(tmp_path):
    changes = {
        ucf101: ("lists/classInd.txt", "0 ApplyEyeMakeup\n", "classInd.txt is not in UCF101"),
        hmdb51: ("splits/wave_test_split1.txt", "a_b.avi\n", "is not in HMDB51's format"),
        ssv2: ("something-something-v2-train.json", '[{"id": 1}]', "no 'template' for"),
    }
    for make, (name, text, message) in changes.items():
        folder = write(make(tmp_path / make.__name__), {name: text})
        with pytest.raises(UserError, match=message):
            read_listing(folder)


@pytest.mark.parametrize(
    "text,message",
    [
        ("zumba,x_y,,10,train", "train.csv line 2 is not in the format of Kinetics"),
        ("zumba,x_y", "train.csv line 2 is not in the format of Kinetics"),
        ("zumba,x_y,0,10,holdout", "train.csv line 2: split 'holdout' is not known"),
    ],
)
def test_rows_of_kinetics_that_are_not_understood_are_refused(tmp_path, text, message):
    header = "label,youtube_id,time_start,time_end,split\n"
    folder = write(kinetics(tmp_path / "set"), {"train.csv": f"{header}{text}\n"})
    with pytest.raises(UserError, match=message):
        read_listing(folder)


def test_kinetics_as_a_spreadsheet_saves_it(tmp_path):
    """Decimal seconds, words with capitals and spaces around: the same classes and splits."""
    header = "label,youtube_id,time_start,time_end,split\n"
    rows = "massaging person's head,-abc,9.0,19.0,Train\nzumba ,x_y,0.0,10.0,train \n"
    plain, _ = read_listing(kinetics(tmp_path / "set"))
    other, _ = read_listing(write(tmp_path / "set", {"train.csv": header + rows}))
    assert other == plain


def test_copies_of_lists_in_hidden_folders_are_not_read(tmp_path):
    folder = kinetics(tmp_path / "set")
    copy = (folder / "validate.csv").read_text().replace(",val,", ",train,")
    hidden = {".ipynb_checkpoints/validate-checkpoint.csv": copy, "__MACOSX/._train.csv": "\0"}
    listing, _ = read_listing(write(folder, hidden))
    assert len(listing.train) == 2 and len(listing.val) == 1


def test_templates_without_numbers_are_refused(tmp_path):
    for text in ('["Holding something"]', '{"Holding something": null}'):
        name = "something-something-v2-labels.json"
        with pytest.raises(UserError, match="labels.json is not in SSv2's format"):
            read_listing(write(ssv2(tmp_path / "set"), {name: text}))


def test_two_videos_of_one_name_are_refused(tmp_path):
    folder = write(ucf101(tmp_path / "set"), {"small/YoYo/v_Y_g08_c01.avi": ""})
    with pytest.raises(UserError, match="v_Y_g08_c01 is there 2 times below"):
        read_listing(folder)


def test_nothing_found_is_an_error(tmp_path):
    folder = ucf101(tmp_path / "set")
    for video in folder.rglob("*.avi"):
        video.unlink()
    (folder / "UCF-101/YoYo/v_Y_g08_c01.mp4").unlink()
    with pytest.raises(UserError, match="none of the 4 videos that ucf101 lists is in"):
        read_listing(folder)
    flat = write(tmp_path / "flat", {"a.mp4": ""})
    with pytest.raises(UserError, match="no videos in the sub-folders of .*/flat"):
        read_listing(flat, layout="folders")
    (flat / "a.mp4").unlink()
    with pytest.raises(UserError, match="no videos in .*/flat: looked for mp4"):
        read_listing(flat, layout="flat")


def test_paths_and_names_survive_a_manifest(tmp_path):
    names = ('it\'s, "it"', 'say "x"', "a b")
    paths = tuple(str(tmp_path / name) for name in ("""a "b", 'c'.mp4""", "it's.mp4.avi", "x y"))
    videos = Videos(paths=paths, labels=np.array([2, 1, 0]), class_names=names, name="test")
    (tmp_path / "x y").touch()
    write_manifest(videos, tmp_path / "m.csv")
    assert labels(tmp_path / "m.csv") == dict(zip(paths, names[::-1], strict=True))
    digits = Videos(
        paths=paths, labels=np.array([2, 1, 0]), class_names=("007", "b", "c"), name="test"
    )
    write_manifest(digits, tmp_path / "m.csv")
    assert read_videos(tmp_path / "m.csv").labels.tolist() == [2, 1, 0]
    for path, name in (("a\n.mp4", "b"), ("a.mp4", "b\r")):
        broken = Videos(paths=(path,), labels=np.array([0]), class_names=(name,), name="test")
        with pytest.raises(UserError, match="line breaks: rename"):
            write_manifest(broken, tmp_path / "m.csv")


def test_the_command_knows_every_layout():
    from videomae_jax.commands.data.list import LAYOUTS as known

    assert known == tuple(LAYOUTS)
