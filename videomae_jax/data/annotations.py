"""Annotations and person boxes of action detection -> key frames of videos."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from videomae_jax.data.ava_classes import AVA_CLASSES
from videomae_jax.data.box_files import read_table
from videomae_jax.data.box_table import Table
from videomae_jax.data.class_lists import name_classes, read_class_list
from videomae_jax.data.key_frames import Key, KeyFrames, moment_key
from videomae_jax.data.manifest import MOST_LABELS
from videomae_jax.data.probing import read_durations, read_frame_times, read_sizes
from videomae_jax.data.sources import find_videos, nearest_path, read_videos
from videomae_jax.data.videos import SUFFIXES, ClipReader, Videos, pick_videos
from videomae_jax.errors import UserError, did_you_mean
from videomae_jax.paths import as_path, exists, full_path, is_folder, is_remote

# Corners above this are pixels: fractions of a detector may be a little above 1.
FRACTION = 1.5
# The second at which copies of AVA's movies are often cut.
CUT = 900.0
# Videos of a list that are opened to find the second at which they begin.
OPENED = 64
# Seconds by which a key frame may be after the end of its video: durations are rounded.
SLACK = 0.5
# How far a box may reach beyond the image without a note: corners are rounded.
BORDER = 0.01
# Fraction of detected boxes that may be empty.
EMPTY = 0.01

_SEGMENT = re.compile(r"(.+)_(\d{6})_(\d{6})")  # of AVA-Kinetics: id, first and last second
_FLOAT = re.compile(r"^(\d+)\.0+$")  # how pandas writes ids if one of the column is missing


def read_key_frames(
    source: str | os.PathLike[str],
    *,
    videos: str = "",
    start: str | float = "auto",
    classes: str | tuple[str, ...] = "",
    excluded: str = "",
) -> Videos:
    """Open the annotations of a data set: videos with `key_frames`, one for each annotated moment.

    source: a file in one of the formats of `box_files`, or such a file packed with its videos by
    `videomae data pack`. videos: the folder of the videos, by default that of the file; they are
    found by their names without the suffix. start: the second of the annotations at which the
    video files begin, "auto" to find it. classes: a class list, or the names of ids 1, 2, ...; by
    default the ids or the names of the file. excluded: a csv of `video,second` rows, the key frames
    to leave out.
    `notes` says what was decided. Missing videos keep their expected paths and are unreadable
    later. Raises UserError for a bad file, unknown classes, boxes that are not of these videos, if
    no video is found, and if all key frames are beyond the end of the videos.
    """
    name = os.path.expanduser(os.fspath(source))
    if is_folder(name):
        return _open_packed(name, classes, excluded)
    path = full_path(name)
    if not exists(path):
        raise UserError(f"no such annotation file: {path}{nearest_path(path)}")
    found = Findings()
    table = _leave_out(read_table(path), excluded)
    films, missing = _find_films(table, path, videos)
    class_names, numbers = _number_classes(table, classes, path, found)
    table = _to_fractions(table, films, path, found)
    key_frames, paths = _group(table, films, numbers, len(class_names), found)
    files = [film for film in paths if film not in missing]
    remedy = "give the second at which the files begin as config.data.start (--start)"
    key_frames = _set_seconds(key_frames, paths, files, table, start, path, found, remedy=remedy)
    if missing:
        found.faults[f"videos are missing, first {min(missing)}"] = len(missing)
    return Videos(
        paths=tuple(paths),
        labels=None,
        class_names=class_names,
        name=str(path),
        notes=found.notes(),
        key_frames=replace(key_frames, notes=found.notes()),
    )


def _open_packed(folder: str, classes: str | tuple[str, ...], excluded: str) -> Videos:
    """Open packed records of annotations, with the ids of `classes`."""
    videos = read_videos(folder)
    frames = videos.key_frames
    if frames is None:
        raise UserError(f"{folder} has no boxes: give an annotation file, or records packed of one")
    if excluded:
        # Not all of them: records may have been packed without the excluded ones.
        kept = _find_kept(frames.keys, excluded)
        videos = pick_videos(videos, np.flatnonzero(kept).tolist())
        frames = frames.pick(np.flatnonzero(kept))
    old = videos.class_names or ()
    new = classes if isinstance(classes, tuple) else ()
    if isinstance(classes, str) and classes:
        new = name_classes(read_class_list(classes))
    if not new or new == old:
        return videos
    indices = _class_indices(new)
    used = np.flatnonzero(frames.targets.any(axis=0)).tolist()
    unknown = [old[number] for number in used if old[number] not in indices]
    if unknown:
        raise UserError(f"{folder}: {_unknown_action(unknown[0], new)}")
    targets = np.zeros((len(frames.targets), len(new)), bool)
    for number, name in enumerate(old):
        if name in indices:
            targets[:, indices[name]] |= frames.targets[:, number]
    return replace(videos, class_names=new, key_frames=replace(frames, targets=targets))


def _class_indices(names: Sequence[str]) -> dict[str, int]:
    """Return the position of each class by its name, and by its id."""
    indices = {str(number): number - 1 for number in range(1, len(names) + 1)}
    return indices | {name: number for number, name in enumerate(names)}


def _unknown_action(action: str, names: Sequence[str]) -> str:
    meant = did_you_mean(action, names) or f"; their ids are 1 to {len(names)}"
    return f"action {action!r} is not among the {len(names)} classes{meant}"


def read_excluded(path: str | os.PathLike[str]) -> set[Key]:
    """Return the (video, second) of key frames that are left out. Raises UserError."""
    table = read_table(full_path(path))
    return set(table.keys)


def read_detections(source: str | os.PathLike[str], videos: Videos) -> KeyFrames:
    """Open the boxes of a person detector, in one of the formats of `box_files`.

    videos: key frames of the same data set, for the size and the times of the videos: corners in
    pixels become fractions. Boxes of other videos are left out. `seconds` are those of the files;
    targets are bool [total, 0]; `notes` say what was decided and left out. Raises UserError if no
    box is of these videos.
    """
    path = full_path(source)
    found = Findings()
    table = read_table(path, images=as_path(videos.name))
    clocks = _Clocks(videos)
    films = [clocks.find(*pair) for pair in zip(table.names, table.moments.tolist(), strict=True)]
    known = np.array([film is not None for film in films], bool)
    if not known.any():
        raise UserError(
            f"{path}: none of its {len(set(table.names)):,} videos is in {videos.name}, first "
            f"{table.names[0]!r}{did_you_mean(table.names[0], clocks.names)}"
        )
    found.decisions.append(f"{path.name}: {table.kind}")
    if not known.all():
        first = table.names[int(np.flatnonzero(~known)[0])]
        found.faults[f"boxes are of other videos, first {first}"] = int((~known).sum())
    table = _pick_rows(table, known)
    paths = [film for film in films if film is not None]
    table = _to_fractions(table, paths, path, found, videos.reader)
    key_frames, paths = _group(table, paths, [[]] * len(paths), 0, found)
    if table.by_frame:
        key_frames = _time_frames(key_frames, paths, path)
    else:
        key_frames = replace(key_frames, seconds=clocks.seconds(key_frames, paths))
    return replace(key_frames, notes=found.notes())


def read_film_detections(source: str | os.PathLike[str], film: str) -> KeyFrames:
    """Open the detected boxes of one video file, see `read_detections`.

    They are found by the name of the file. Raises UserError if the video has no boxes, and if all
    are beyond the end of the video.
    """
    path = full_path(source)
    found = Findings()
    table = read_table(path)
    segment = _SEGMENT.fullmatch(Path(film).stem)

    def is_of_film(name: str, moment: float) -> bool:
        if segment and name == segment[1]:
            return float(segment[2]) <= moment <= float(segment[3])
        return name == Path(film).stem or Path(name).name == Path(film).name

    rows = zip(table.names, table.moments.tolist(), strict=True)
    known = np.array([is_of_film(*row) for row in rows], bool)
    if not known.any():
        names, name = set(table.names), Path(film).stem
        meant = did_you_mean(name, names) or f"; the first is {table.names[0]!r}"
        raise UserError(f"{path} has boxes of {len(names):,} videos, none is named {name!r}{meant}")
    table = _pick_rows(table, known)
    films = [film] * len(table.names)
    table = _to_fractions(table, films, path, found)
    key_frames, paths = _group(table, films, [[]] * len(films), 0, found)
    remedy = "subtract the second at which the file begins"
    key_frames = _set_seconds(key_frames, paths, paths, table, "auto", path, found, remedy=remedy)
    return replace(key_frames, notes=found.notes())


def with_detections(videos: Videos, detections: KeyFrames, *, min_score: float) -> Videos:
    """Return videos with detected boxes of at least `min_score` instead of the annotated ones.

    The result has a key frame for each moment with such boxes, annotated or not; the targets are
    False. The last note counts the boxes, and the annotated key frames without any. Raises
    UserError if no box has such a score, and if all annotated key frames have none.
    """
    assert videos.key_frames is not None
    high = detections.scores >= min_score
    if not high.any():
        best = f"the highest is {detections.scores.max():.3g}" if len(high) else "there are none"
        raise UserError(f"no box has a score of {min_score:g} or more, {best}: use --min-score")
    kept = detections.keep(high)
    kept = replace(
        kept, targets=np.zeros((len(kept.boxes), videos.key_frames.targets.shape[1]), bool)
    )
    clocks = _Clocks(videos)
    paths = [clocks.find(*pair) for pair in zip(kept.names, kept.stamps.tolist(), strict=True)]
    annotated = set(videos.key_frames.keys)
    empty = len(annotated - set(kept.keys))
    if empty == len(annotated):
        raise UserError(
            f"no detected box is at the second of an annotated key frame: boxes begin at second "
            f"{kept.stamps.min():g}, annotations at {videos.key_frames.stamps.min():g}"
        )
    note = (
        f"{len(kept.boxes):,} of {len(high):,} detected boxes have a score of {min_score:g} or "
        f"more, in {len(kept):,} key frames; {empty:,} of {len(annotated):,} annotated ones have "
        "none"
    )
    return replace(
        videos,
        paths=tuple(path for path in paths if path is not None),
        notes=(*videos.notes, *detections.notes, note),
        key_frames=kept,
    )


@dataclass
class Findings:
    """Decisions about a file, and how often each fault is in it."""

    decisions: list[str] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)

    def notes(self) -> tuple[str, ...]:
        """Return a text for each decision and each fault."""
        faults = [f"{number:,} {what}" for what, number in self.faults.items()]
        return (*self.decisions, *faults)


class _Clocks:
    """Find the video of a moment among key frames, and the second in its file."""

    def __init__(self, videos: Videos):
        assert videos.key_frames is not None
        self.names: dict[str, set[str]] = {}
        self._exact: dict[Key, str] = {}
        self._starts: dict[str, float] = {}
        frames = videos.key_frames
        starts = (frames.stamps - frames.seconds).tolist()
        for path, key, start in zip(videos.paths, frames.keys, starts, strict=True):
            self._exact[key] = path
            self.names.setdefault(key[0], set()).add(path)
            self._starts.setdefault(path, start)

    def find(self, name: str, stamp: float) -> str | None:
        """Return the path of the video of a moment; None if it is not among them."""
        paths = self.names.get(name, set())
        exact = self._exact.get(moment_key(name, stamp))
        return exact or (next(iter(paths)) if len(paths) == 1 else None)

    def seconds(self, key_frames: KeyFrames, paths: Sequence[str]) -> np.ndarray:
        """Return the seconds in the files, float64 [n]."""
        return key_frames.stamps - np.array([self._starts[path] for path in paths])


def _leave_out(table: Table, excluded: str) -> Table:
    if not excluded:
        return table
    kept = _find_kept(table.keys, excluded)
    if kept.all():
        raise UserError(f"{excluded} excludes no key frame of these annotations: is it of them?")
    return _pick_rows(table, kept)


def _find_kept(keys: Sequence[Key], excluded: str) -> np.ndarray:
    """Return which moments are not excluded, bool [n]. Raises UserError if all are."""
    out = read_excluded(excluded)
    kept = np.array([key not in out for key in keys], bool)
    if not kept.any():
        raise UserError(f"{excluded} excludes all key frames of these annotations")
    return kept


def _pick_rows(table: Table, kept: np.ndarray) -> Table:
    rows = np.flatnonzero(kept).tolist()
    return replace(
        table,
        lines=table.lines[rows],
        names=[table.names[row] for row in rows],
        moments=table.moments[rows],
        corners=table.corners[rows],
        actions=[table.actions[row] for row in rows],
        persons=table.persons[rows],
        scores=None if table.scores is None else table.scores[rows],
    )


def _find_films(table: Table, path: Path, folder: str) -> tuple[list[str], set[str]]:
    """Return the path of the video of each row, and the paths that do not exist.

    A network disk takes milliseconds for each file: those that the folder lists are not checked
    again. Raises UserError if no video is found.
    """
    root = full_path(folder) if folder else path.parent
    if not is_folder(root):
        raise UserError(f"no such folder of videos: {root}")
    stems: dict[str, list[str]] = {}
    segments: dict[str, list[tuple[float, float, str]]] = {}
    for file in find_videos(root):
        stem = Path(file).stem
        stems.setdefault(stem, []).append(file)
        if match := _SEGMENT.fullmatch(stem):
            segments.setdefault(match[1], []).append((float(match[2]), float(match[3]), file))
    found: dict[tuple[str, float], str] = {}
    missing: set[str] = set()

    def find(name: str, moment: float) -> str:
        if name in segments and name not in stems:
            for first, last, file in segments[name]:
                if first <= moment <= last:
                    return str(root / file)
        same = os.path.splitext(name)[0] if _is_file(name) else name
        files = stems.get(os.path.basename(same), [])
        if len(files) > 1:
            # `train.csv` beside `train/` and `val/`; or a path, maybe of another suffix.
            inside = [
                file
                for file in files
                if file.startswith(f"{path.stem}{os.sep}") or os.path.splitext(file)[0] == same
            ]
            files = inside if len(inside) == 1 else files
        if len(files) > 1:
            raise UserError(
                f"{name} is there {len(files)} times below {root}: {files[0]}, {files[1]}; name a "
                "folder that has one of each as config.data.videos (--videos)"
            )
        if files:
            return str(root / files[0])
        film = str(root / (name if _is_file(name) else f"{name}.mp4"))
        # The listing of a bucket has every object.
        if is_remote(film) or not os.path.exists(film):
            missing.add(film)
        return film

    for name, moment in zip(table.names, table.moments.tolist(), strict=True):
        key = (name, moment) if name in segments else (name, 0.0)
        if key not in found:
            found[key] = find(name, moment)
    if missing.issuperset(found.values()):
        name = table.names[0]
        near = did_you_mean(name, [*stems, *segments])
        raise UserError(
            f"{path}: none of its {len(set(table.names)):,} videos is in {root}, first {name!r}"
            f"{near}; give their folder as config.data.videos (--videos)"
        )
    keys = zip(table.names, table.moments.tolist(), strict=True)
    films = [found[(name, moment) if name in segments else (name, 0.0)] for name, moment in keys]
    return films, missing


def _is_file(name: str) -> bool:
    return name.lower().endswith(tuple(f".{suffix}" for suffix in SUFFIXES))


def _to_fractions(
    table: Table,
    films: Sequence[str],
    path: Path,
    found: Findings,
    reader: ClipReader | None = None,
) -> Table:
    """Return the table with corners as fractions in 0 to 1. reader: of the videos, if not files.

    A few empty boxes of a detector are left out. Raises UserError for other corners that are out of
    order, and if most boxes are outside of the images.
    """
    corners = table.corners.copy()
    boxed = ~np.isnan(corners[:, 0])
    if not boxed.any():
        return table
    wrong = boxed & ~((corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3]))
    if wrong.any() and table.scores is not None and wrong.sum() <= EMPTY * boxed.sum():
        found.faults["boxes are empty, and are left out"] = int(wrong.sum())
        corners[wrong] = np.nan
    elif wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        cells = ", ".join(f"{value:g}" for value in corners[row])
        raise UserError(
            f"{path} line {table.lines[row]}: corners {cells} are out of order, as are those of "
            f"{int(wrong.sum()):,} of {int(boxed.sum()):,} boxes: x1 < x2 and y1 < y2 are needed, "
            "not x, y, width, height"
        )
    largest = float(np.nanmax(corners))
    said = "corners are fractions of width and height"
    if largest > FRACTION:
        sizes = read_sizes(films, reader)
        if not sizes:
            raise UserError(
                f"{path}: corners are pixels (up to {largest:g}), and no video can be read for its "
                "size; give fractions of width and height"
            )
        if reader and reader.shrunk_to:
            # Sides of an mp4 are even, so at most one pixel less.
            resized = [film for film, size in sizes.items() if min(size) >= reader.shrunk_to - 1]
            if resized:
                raise UserError(
                    f"{path}: corners are pixels (up to {largest:g}) of the video, and the packed "
                    f"frames of {resized[0]} may be smaller than it; give fractions of width and "
                    "height"
                )
        common = next(iter(sizes.values()))
        whole = np.array([sizes.get(film, common) for film in films], float)
        corners /= whole[:, [1, 0, 1, 0]]
        said = f"corners are pixels (up to {largest:g})"
    found.decisions.append(said)
    beyond = boxed & ((corners < -BORDER) | (corners > 1 + BORDER)).any(axis=1)
    gone = boxed & ((corners[:, :2] >= 1).any(axis=1) | (corners[:, 2:] <= 0).any(axis=1))
    if gone.sum() * 2 > boxed.sum():
        row = int(np.flatnonzero(gone)[0])
        raise UserError(
            f"{path}: {int(gone.sum()):,} of {int(boxed.sum()):,} boxes are outside of the image, "
            f"first line {table.lines[row]}; {said}: are they of videos of another size?"
        )
    if (beyond & ~gone).any():
        what = "boxes reach beyond the image, and are cut at its border"
        found.faults[what] = int((beyond & ~gone).sum())
    if gone.any():
        found.faults["boxes are outside of the image, and are left out"] = int(gone.sum())
        corners[gone] = np.nan
    return replace(table, corners=np.clip(corners, 0, 1))


def _number_classes(
    table: Table, classes: str | tuple[str, ...], path: Path, found: Findings
) -> tuple[tuple[str, ...], list[list[int]]]:
    """Return class names, and the classes of each row counted from 0."""
    split = {
        action: [_FLOAT.sub(r"\1", part.strip()) for part in action.split("|")]
        for action in set(table.actions)
    }
    used = {part for parts in split.values() for part in parts if part}
    if isinstance(classes, str) and classes:
        names = name_classes(read_class_list(classes))
        said = f"{len(names)} classes of {classes}"
    elif classes:
        names = tuple(classes)
        said = f"{len(names)} classes of {'AVA' if names == AVA_CLASSES else 'training'}"
    elif used and all(part.isdecimal() for part in used):
        largest = max(map(int, used))
        if largest > MOST_LABELS:
            raise UserError(f"{path}: action {largest} is not an id of 1 to {MOST_LABELS:,}")
        names = tuple(map(str, range(1, largest + 1)))
        said = f"no class list: classes are ids 1 to {len(names)}"
    else:
        names = tuple(sorted(used))
        said = f"no class list: {len(names)} classes, by name in alphabetical order"
        said = said if names else "no actions"
    indices = _class_indices(names)
    unknown = sorted(used - indices.keys())
    if unknown:
        row = next(r for r, action in enumerate(table.actions) if unknown[0] in split[action])
        raise UserError(f"{path} line {table.lines[row]}: {_unknown_action(unknown[0], names)}")
    numbers = {action: [indices[part] for part in parts if part] for action, parts in split.items()}
    found.decisions += [table.kind, said]
    return names, [numbers[action] for action in table.actions]


def _group(
    table: Table,
    films: Sequence[str],
    numbers: Sequence[Sequence[int]],
    classes: int,
    found: Findings,
) -> tuple[KeyFrames, list[str]]:
    """Join the rows of a box, and the boxes of a moment, in the order of appearance.

    films, numbers: the path and the classes of each row. Returns key frames whose `seconds` are
    still those of the file, and the path of each.
    """
    moments: dict[Key, int] = {}
    boxes: list[dict[tuple[float, ...], int]] = []  # of each moment: corners -> the first row
    labels: defaultdict[int, set[int]] = defaultdict(set)  # of the first row of each box
    paths: list[str] = []
    repeated = 0
    corners = list(map(tuple, table.corners.tolist()))
    missing = np.isnan(table.corners[:, 0]).tolist()
    for row, key in enumerate(table.keys):
        place = moments.setdefault(key, len(moments))
        if place == len(boxes):
            boxes.append({})
            paths.append(films[row])
        if missing[row]:
            continue
        first = boxes[place].setdefault(corners[row], row)
        known = labels[first]
        repeated += first != row and known.issuperset(numbers[row])
        known.update(numbers[row])
    rows = np.array([row for of in boxes for row in of.values()], np.int64)
    targets = np.zeros((len(rows), classes), bool)
    for box, row in enumerate(rows.tolist()):
        targets[box, list(labels[row])] = True
    stamps = np.array([stamp for _, stamp in moments], float)
    key_frames = KeyFrames(
        seconds=stamps,
        names=tuple(name for name, _ in moments),
        stamps=stamps,
        offsets=np.concatenate([[0], np.cumsum([len(of) for of in boxes], dtype=np.int64)]),
        boxes=table.corners[rows].astype(np.float32),
        targets=targets,
        scores=np.ones(len(rows), np.float32)
        if table.scores is None
        else table.scores[rows].astype(np.float32),
        persons=table.persons[rows],
    )
    if repeated:
        found.faults["rows repeat others"] = repeated
    return key_frames, paths


def _set_seconds(
    key_frames: KeyFrames,
    paths: Sequence[str],
    files: Sequence[str],
    table: Table,
    start: str | float,
    path: Path,
    found: Findings,
    *,
    remedy: str,
) -> KeyFrames:
    """Set the seconds in the video files.

    files: the paths of those that exist. remedy: for key frames that are all outside of them.
    """
    if table.by_frame:
        found.decisions.append("moments are numbers of frames, from 0")
        return _time_frames(key_frames, paths, path)
    key_frames, said = _start_films(key_frames, paths, files, start, path, remedy=remedy)
    found.decisions.append(said)
    return key_frames


def _time_frames(key_frames: KeyFrames, paths: Sequence[str], path: Path) -> KeyFrames:
    """Replace frame numbers by seconds, also in `stamps`."""
    times = read_frame_times(paths)
    if not times:
        raise UserError(f"{path}: no video can be read for the times of its frames")
    seconds = np.empty(len(key_frames))
    for index, (film, frame) in enumerate(zip(paths, key_frames.stamps.tolist(), strict=True)):
        known = times.get(film)
        if known is not None and not 0 <= frame < len(known) - 1:
            raise UserError(
                f"{path}: frame {frame:g} of {film}, which has {len(known) - 1:,}; use 0 to "
                f"{len(known) - 2}"
            )
        seconds[index] = 0.0 if known is None else known[int(frame)]
    return replace(key_frames, seconds=seconds, stamps=seconds)


def _start_films(
    key_frames: KeyFrames,
    paths: Sequence[str],
    files: Sequence[str],
    start: str | float,
    path: Path,
    *,
    remedy: str,
) -> tuple[KeyFrames, str]:
    """Subtract the second at which the video files begin.

    Raises UserError if all key frames are then beyond the end of the videos that are opened.
    """
    stamps = key_frames.stamps
    segments = {film: _SEGMENT.fullmatch(Path(film).stem) for film in set(paths)}
    cut = np.array(
        [
            float(m[2]) if (m := segments[film]) and m[1] == name else 0.0
            for film, name in zip(paths, key_frames.names, strict=True)
        ]
    )
    said = "seconds count from the beginning of the files"
    if cut.any():
        said = "seconds count from the first second in the names of the files"
    elif start != "auto":
        try:
            cut = np.full(len(stamps), float(start))
        except ValueError:
            raise UserError(f"data.start {start!r}: use auto or a number, such as 900") from None
        said = f"files begin at second {cut[0]:g} (data.start)"
    distinct = list(dict.fromkeys(files))
    durations = read_durations(distinct[:: -(-len(distinct) // OPENED)])
    ends = np.array([durations.get(film, np.nan) for film in paths]) + SLACK
    known = ~np.isnan(ends)
    seconds = stamps - cut
    fits = (seconds >= -1e-6) & (seconds <= ends)
    if not known.any() or fits[known].any():
        late = int((known & ~fits).sum())
        if late:
            said += f"; {late:,} of {int(known.sum()):,} key frames looked at are beyond the end"
        return replace(key_frames, seconds=seconds), said
    moved = stamps - CUT
    if start == "auto" and not cut.any() and ((moved >= 0) & (moved <= ends))[known].all():
        said = (
            f"files begin at second {CUT:g}: all {int(known.sum()):,} key frames looked at are "
            f"beyond the end, and fit after {CUT:g} is subtracted"
        )
        return replace(key_frames, seconds=moved), said
    row = int(np.flatnonzero(known)[0])
    raise UserError(
        f"{path}: all key frames are outside of their videos, first second {stamps[row]:g} of "
        f"{paths[row]}, which has {ends[row] - SLACK:.1f} s; {remedy}, "
        f"{stamps[known].min():g} at most"
    )
