"""No bad video ends a run, changes a score or goes unnamed: the corpus, from list to score."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from corpus import FRAMES, READABLE, write_corpus
from runs import CLIPS, KINDS, SMALL, losses
from videos import write_video

from videomae_jax import cli
from videomae_jax.data.pipeline import clip_batches
from videomae_jax.data.samplers import PretrainSampler
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The folder, and {path: why it is unreadable or ""}."""
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(folder)


def assert_named(rows: dict[str, str], reasons: dict[str, str]) -> None:
    """Every unreadable file, and no other, stands in rows of {path: reason}."""
    unreadable = {path: reason for path, reason in reasons.items() if reason}
    assert rows.keys() == unreadable.keys()
    for path, reason in unreadable.items():
        assert re.search(reason, rows[path]), path


@pytest.mark.slow
def test_training_completes_with_the_rest_and_lists_each(corpus, tmp_path):
    folder, reasons = corpus
    rows = [f'"{path}"' for path in reasons]
    rows += [f'"{path}"' for path in sorted((CLIPS / "train/walk").iterdir())[:12]]
    manifest = tmp_path / "train.csv"
    manifest.write_text("\n".join(rows), encoding="utf-8")
    cli.main(
        [
            "train",
            f"--workdir={tmp_path / 'run'}",
            *SMALL,
            "--config.steps=8",  # two epochs
            f"--config.data.train={manifest}",
            f"--config.data.eval={CLIPS / 'val/walk'}",
            "--config.data.memory_gb=0",
            "--config.data.max_bad_share=0.5",
        ]
    )
    found = losses(tmp_path / "run")
    assert sorted(found) == list(range(1, 9))
    assert all(np.isfinite(float.fromhex(loss)) for loss, _ in found.values())
    with open(tmp_path / "run/bad_videos.csv", newline="", encoding="utf-8") as lines:
        assert_named({row["path"]: row["reason"] for row in csv.DictReader(lines)}, reasons)


def test_evaluation_says_how_many_and_scores_the_rest(corpus, classifier, tmp_path, capsys):
    folder, reasons = corpus
    bad, total = sum(map(bool, reasons.values())), len(reasons)
    scores = {}
    readable = folder / "readable.csv"
    lines = (folder / "corpus.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line, reason in zip(lines, reasons.values(), strict=True) if not reason]
    readable.write_text("".join(kept), encoding="utf-8")
    for manifest in (folder / "corpus.csv", readable):
        out = tmp_path / manifest.stem
        command = ["evaluate", "--checkpoint", classifier[0], "--manifest", manifest]
        cli.main([*map(str, command), "--views", "2x3", "--json", f"{out}.json", "--out", str(out)])
        scores[manifest] = json.loads(Path(f"{out}.json").read_text())
    said = capsys.readouterr().out
    assert f"{total - bad} of {total} videos\n" in said
    assert f"{bad} of {total} videos unreadable" in said and "unreadable.csv" in said
    with_bad, without = scores.values()
    assert_named(with_bad["unreadable"], reasons)
    assert sum(row["count"] for row in with_bad["classes"]) == total - bad
    assert (with_bad["top1"], with_bad["classes"]) == (without["top1"], without["classes"])
    assert tuple(row["name"] for row in with_bad["classes"]) == KINDS


def test_the_check_names_each_and_leaves_a_clean_list(corpus, tmp_path, capsys):
    folder, reasons = corpus
    out = tmp_path / "found"
    command = ["data", "check", folder / "corpus.csv", "--out", out, "--min-frames", 1]
    cli.main(list(map(str, command)))
    with open(out / "bad.csv", newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["kind"] for row in rows} == {"unreadable"}
    assert_named({row["path"]: row["reason"] for row in rows}, reasons)
    assert f"{len(READABLE)} of {len(reasons)} videos are clean" in capsys.readouterr().out

    cli.main(["data", "check", str(out / "clean.csv"), "--out", str(tmp_path / "again")])
    with open(tmp_path / "again/bad.csv", newline="", encoding="utf-8") as lines:
        rows = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(lines)}
    assert rows == {
        "one_frame.mp4": "1 frame, fewer than 16",
        "fewer_than_a_clip.mp4": "5 frames, fewer than 16",
    }


def test_a_file_replaced_while_training(tmp_path):
    paths = [write_video(tmp_path / f"{n}.mp4", count=FRAMES, shift=40 * n) for n in range(4)]
    videos = Videos(paths=tuple(paths), labels=None, class_names=None, name="test")
    bad = BadVideos(videos, max_share=0.5, file=tmp_path / "bad_videos.csv")
    sample = PretrainSampler(frames=4, stride=2, height=32, width=32, channels=3, train=True)
    batches = clip_batches(
        videos, sampler=sample, batch_size=4, seed=0, start_step=0, num_steps=40, bad=bad, threads=1
    )
    ids = [next(batches)["id"]]
    assert sorted(ids[0]) == [0, 1, 2, 3]
    (tmp_path / "new").write_text("no longer a video")
    os.replace(tmp_path / "new", paths[1])
    os.replace(write_video(tmp_path / "new.mp4", count=3, width=64, height=48), paths[2])
    for batch in batches:
        ids.append(batch["id"])
        assert all(video.std() > 1 for video in batch["video"])  # none is blank
    assert len(ids) == 40 and 1 not in ids[-1] and 2 in np.concatenate(ids[-4:])
    assert list(bad.reasons) == [paths[1]] and "invalid data" in bad.reasons[paths[1]]
    assert paths[1] in (tmp_path / "bad_videos.csv").read_text()
