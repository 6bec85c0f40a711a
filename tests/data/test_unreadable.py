"""Unreadable videos are counted once, listed once, and end a run only above the set share."""

import csv
import subprocess
import sys
import threading

import pytest
from runs import environment

from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
from videomae_jax.errors import UserError


def videos(count: int) -> Videos:
    paths = tuple(f"/data/über, {index}.mp4" for index in range(count))
    return Videos(paths=paths, labels=None, class_names=None, name="test")


def rows(file) -> list[list[str]]:
    return list(csv.reader(file.open(newline="", encoding="utf-8")))


def test_each_is_listed_once_with_its_reason_across_threads_and_restarts(tmp_path):
    file = tmp_path / "bad_videos.csv"
    some = videos(100)
    first = BadVideos(some, max_share=0.5, file=file, process_index=2)
    threads = [
        threading.Thread(target=lambda: [first.add(path, "why") for path in some.paths[:20]])
        for _ in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    again = BadVideos(some, max_share=0.5, file=file, process_index=0)
    assert len(again) == 20 and again.share == 0.2
    again.add(some.paths[0], "why")
    again.add(some.paths[20], 'a "new", one')
    table = rows(file)
    assert table[0] == ["path", "reason", "process"]
    assert sorted(row[0] for row in table[1:]) == sorted(some.paths[:21])
    assert table[1][1:] == ["why", "2"] and table[-1][1:] == ['a "new", one', "0"]


def test_rows_about_other_videos_do_not_count(tmp_path):
    file = tmp_path / "bad_videos.csv"
    BadVideos(videos(9), max_share=1, file=file).add(videos(9).paths[8], "why")
    assert len(BadVideos(videos(8), max_share=1, file=file)) == 0


@pytest.mark.parametrize(
    "count,bad,share,ends",
    [
        (408, 20, 0.05, False),
        (408, 21, 0.05, True),
        (3, 1, 0.05, False),  # one of three is 33 %, but one bad file is no reason to stop
        (3, 2, 0.05, True),
        (1000, 1, 0.0, True),
        (10, 9, 1.0, False),
    ],
)
def test_the_share_rule(count, bad, share, ends):
    some = videos(count)
    record = BadVideos(some, max_share=share)
    for path in some.paths[:bad]:
        record.add(path, "why")
    if not ends:
        record.check()
        return
    with pytest.raises(UserError) as caught:
        record.check()
    assert f"{bad} of {count} videos unreadable" in str(caught.value)
    assert f"max_bad_share={share:g}" in str(caught.value) and "\n" not in str(caught.value)
    assert "`videomae data check` lists the readable ones" in str(caught.value)


def test_the_message_names_the_list(tmp_path):
    record = BadVideos(videos(10), max_share=0.1, file=tmp_path / "bad_videos.csv")
    record.add(videos(10).paths[0], "why")
    record.add(videos(10).paths[1], "why")
    with pytest.raises(UserError, match=rf"2 of 10 .*\(20.0%\).*{tmp_path}/bad_videos.csv"):
        record.check()


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path):
    record = BadVideos(videos(3), max_share=1, file=tmp_path / "gone" / "bad_videos.csv")
    with pytest.raises(UserError, match="cannot list an unreadable video in .*No such file"):
        record.add(videos(3).paths[0], "why")


def test_processes_share_one_list(tmp_path):
    file = tmp_path / "bad_videos.csv"
    some = videos(200)
    code = f"""
import sys
from videomae_jax.data.unreadable import BadVideos
from videomae_jax.data.videos import Videos
paths = {some.paths}
videos = Videos(paths=paths, labels=None, class_names=None, name="test")
record = BadVideos(videos, max_share=1, file=sys.argv[1], process_index=int(sys.argv[2]))
for path in paths[int(sys.argv[2]) :: 2]:
    record.add(path, "why")
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(file), str(index)], env=environment(__file__)
        )
        for index in range(2)
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert len(BadVideos(some, max_share=1, file=file)) == 200
    assert all(len(row) == 3 for row in rows(file))
