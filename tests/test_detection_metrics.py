"""Frame mAP: the vectors of the official evaluators, a plain loop, and what must not matter.

The values of the vectors were computed with the evaluators of ActivityNet and of
VideoMAE-Action-Detection. One vector, the toy files of mmaction2, is not here: its numbers are
not stored in this project.
"""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from videomae_jax.detection_metrics import (
    AVA_EVALUATED,
    PROTOCOLS,
    Boxes,
    group_precisions,
    is_ava,
    mean_average_precision,
)
from videomae_jax.errors import UserError

SCENES = Path(__file__).parent.parent / "data/mocap_scenes"
B = (0.1, 0.1, 0.5, 0.5)
HALF = (0, 0, 0.5, 0.5)
OFFICIAL, PUBLISHED, MMACTION2 = "official", "published", "mmaction2"


def key(second, video="v"):
    return video, round(float(second), 6)


def boxes(rows, numbers, classes, absent):
    """Return rows (key, corners, class from 1 on, value) as a box each."""
    values = np.full((len(rows), classes), absent)
    for row, (_, _, label, value) in enumerate(rows):
        values[row, label - 1] = value
    frames = np.array([numbers[key] for key, *_ in rows], np.int64)
    return Boxes(frames, np.array([corners for _, corners, *_ in rows]).reshape(-1, 4), values)


def score(truth, found, *, protocol=PUBLISHED, classes=3, empty=(), excluded=(), **options):
    """Evaluate rows: truth (key, corners, class), found (key, corners, class, score)."""
    truth = [(*row, True) for row in truth]
    keys = sorted({row[0] for row in (*truth, *found)} | set(empty) | set(excluded))
    numbers = {name: number for number, name in enumerate(keys)}
    result = mean_average_precision(
        boxes(truth, numbers, classes, False),
        boxes(found, numbers, classes, math.nan),
        protocol=protocol,
        listed=np.array([numbers[name] for name in empty], np.int64),
        excluded=np.array([numbers[name] for name in excluded], np.int64),
        **options,
    )
    return result.value, {c.label + 1: c.precision for c in result.classes}


T, T2 = key("902"), key("903")
ELSEWHERE = [(key("999"), B, 1, 0.95), (T, B, 1, 0.9)]
WRONG = [(T, (0.6, 0.6 + i / 1000, 0.9, 0.9), 2, 0.9 + i / 1000) for i in range(50)]
CURVE = [True, False, True, False, True]
AWAY = (0.6, 0.6, 0.9, 0.9)
VECTORS = {
    "A perfect": ([(T, B, 1)], [(T, B, 1, 0.9)], 1),
    "B duplicate": (
        [(T, B, 1), (T2, B, 1)],
        [(T, B, 1, 0.9), (T, B, 1, 0.8), (T2, B, 1, 0.7)],
        0.833333,
    ),
    "C IoU exactly .5": ([(T, HALF, 1)], [(T, (0, 0, 0.5, 0.25), 1, 0.9)], 1),
    "C2 just below": ([(T, HALF, 1)], [(T, (0, 0, 0.5, 0.2499), 1, 0.9)], 0),
    "D only the largest IoU": (
        [(T, HALF, 1), (T, (0, 0, 0.5, 0.4), 1)],
        [(T, HALF, 1, 0.9), (T, (0, 0, 0.5, 0.49), 1, 0.8)],
        0.5,
    ),
    "K inverted box": ([(T, B, 1)], [(T, (0.5, 0.5, 0.1, 0.1), 1, 0.95), (T, B, 1, 0.9)], 1),
    "L curve": (
        [(key(t), B, 1) for t in range(5)],
        [(key(t), B if CURVE[t] else AWAY, 1, 0.9 - t / 10) for t in range(5)],
        0.453333,
    ),
    "M key": ([(key("902"), B, 1)], [(key("0902.000"), B, 1, 0.9)], 1),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_of_the_official_evaluators(name, protocol):
    truth, found, expected = VECTORS[name]
    assert score(truth, found, protocol=protocol)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_vector_e_a_class_that_is_never_detected(protocol):
    mean, precisions = score([(T, B, 1), (T, B, 2)], [(T, B, 1, 0.9)], protocol=protocol)
    if protocol == MMACTION2:  # left out of the mean
        assert mean == 1 and math.isnan(precisions[2])
    else:
        assert mean == 0.5 and (precisions[1], precisions[2]) == (1, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_vector_f_a_class_without_annotations(protocol):
    mean, precisions = score([(T, B, 1)], [(T, B, 1, 0.9), (T, B, 3, 0.99)], protocol=protocol)
    assert mean == 1 and math.isnan(precisions[3])


@pytest.mark.parametrize(
    ("name", "truth", "empty", "expected"),
    [
        ("G key frame not in the file", [], [], {OFFICIAL: 1, PUBLISHED: 0.5, MMACTION2: 1}),
        ("H a row without a box", [], [key("0999")], {OFFICIAL: 0.5, PUBLISHED: 0.5, MMACTION2: 1}),
        (
            "I only an unlisted class",
            [(key("999"), B, 3)],
            [],
            {OFFICIAL: 0.5, PUBLISHED: 0.5, MMACTION2: 1},
        ),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_vectors_g_h_i_detections_without_annotations(name, truth, empty, expected, protocol):
    mean, _ = score(
        [(T, B, 1), *truth], ELSEWHERE, protocol=protocol, empty=empty, evaluated=[0, 1]
    )
    assert mean == expected[protocol]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_vector_j_the_cap_of_the_official_protocol(protocol):
    mean, precisions = score([(T, B, 1), (T, B, 2)], [*WRONG, (T, B, 1, 0.5)], protocol=protocol)
    expected = (0, 0, 0) if protocol == OFFICIAL else (0.5, 1, 0)
    assert (mean, precisions[1], precisions[2]) == expected


def test_vector_o_an_excluded_key_frame():
    truth = [(T, B, 1), (T2, B, 1)]
    found = [(T2, B, 1, 0.95), (T, B, 1, 0.9)]
    assert score(truth, found, excluded=[T2])[0] == 1
    # There its annotation counts as missed.
    assert score(truth, found, excluded=[T2], protocol=MMACTION2)[0] == 0.5
    with pytest.raises(UserError, match="official protocol has no list of excluded"):
        score(truth, found, excluded=[T2], protocol=OFFICIAL)


def test_mmaction2_drops_small_scores_and_rounds():
    truth = [(T, B, 1), (T2, B, 1)]
    assert score(truth, [(T, B, 1, 0.9), (T2, B, 1, 0.0019)], protocol=MMACTION2)[0] == 0.5
    # 0.50001 and 0.50002 are equal at 4 decimals: then the earlier key frame ranks higher.
    found = [(T, AWAY, 1, 0.50001), (T2, B, 1, 0.50002)]
    assert score(truth, found)[0] == 0.5
    assert score(truth, found, protocol=MMACTION2)[0] == 0.25


def random_rows(seed, *, ties):
    """Return random annotations and detections of 12 key frames and 3 classes, as rows."""
    rng = np.random.default_rng(seed)

    def corners(count):
        low = rng.random((count, 2)) * 0.4
        return np.concatenate([low, low + 0.1 + rng.random((count, 2)) * 0.4], axis=1)

    truth, found = [], []
    for t in range(12):
        true = corners(rng.integers(0, 4))
        near = true[rng.integers(0, len(true), 6)] if len(true) else corners(3)
        near = near + rng.normal(0, 0.03, near.shape)
        truth += [
            (key(t), tuple(box), label) for box in true for label in (1, 2, 3) if rng.random() < 0.6
        ]
        for box in near:
            for label in (1, 2, 3):
                value = rng.integers(0, 5) / 4 if ties else rng.random()
                if rng.random() < 0.8:
                    found.append((key(t), tuple(box), label, value))
    return truth, found


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def plain_precision(truth, found, label):
    """Average precision of a class by loops over key frames, detections and annotations."""
    total = sum(row[2] == label for row in truth)
    ranked = []
    for t in sorted({row[0] for row in (*truth, *found)}):
        own = sorted(corners for k, corners, c in truth if (k, c) == (t, label))
        free = set(range(len(own)))
        rows = [(-s, corners) for k, corners, c, s in found if (k, c) == (t, label)]
        for minus, corners in sorted(rows):
            best = max(range(len(own)), key=lambda i: iou(corners, own[i]), default=None)
            hit = best in free and iou(corners, own[best]) >= 0.5
            free -= {best} if hit else set()
            ranked.append((minus, t, corners, hit))
    hits, points = 0, []
    for rank, (*_, hit) in enumerate(sorted(ranked), 1):
        hits += hit
        points.append((hits / total, hits / rank))
    area, before = 0.0, 0.0
    for number, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[number:])
        before = recall
    return area


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_rows_as_in_plain_loops(seed, ties):
    truth, found = random_rows(seed, ties=ties)
    mean, precisions = score(truth, found)
    for label in (1, 2, 3):
        expected = plain_precision(truth, found, label)
        assert precisions[label] == pytest.approx(expected, abs=1e-12)
    assert mean == pytest.approx(np.mean(list(precisions.values())))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_order_of_rows_and_of_columns_does_not_matter(protocol):
    truth, found = random_rows(1, ties=True)
    expected = score(truth, found, protocol=protocol)
    rng = np.random.default_rng(0)
    for _ in range(4):
        assert score(shuffled(truth, rng), shuffled(found, rng), protocol=protocol) == expected


def shuffled(rows, rng):
    return [rows[i] for i in rng.permutation(len(rows))]


def test_only_the_ranking_of_each_class_matters():
    truth, found = random_rows(2, ties=False)
    mean, precisions = score(truth, found)
    mapped = [(k, c, label, s**3 - 5 if label == 2 else s) for k, c, label, s in found]
    assert score(truth, mapped) == (mean, precisions)
    low = [(key(t), AWAY, 1, -1.0) for t in range(12)]
    assert score(truth, [*found, *low]) == (mean, precisions)
    high = [(key(0), (0.9, 0.9, 1, 1), 1, 2.0)]
    assert score(truth, [*found, *high])[1][1] < precisions[1]


def test_groups_and_the_evaluated_classes_of_ava():
    assert len(AVA_EVALUATED) == 60 and {1, 80} <= set(AVA_EVALUATED)
    assert not {2, 16, 18, 71} & set(AVA_EVALUATED)
    truth = [(T, B, label) for label in (14, 15, 63, 64)]
    found = [(T, B, label, 0.9) for label in (14, 63, 64)]
    numbers = {T: 0}
    result = mean_average_precision(
        boxes([(*row, True) for row in truth], numbers, 80, False),
        boxes(found, numbers, 80, math.nan),
    )
    groups = {"person movement": 1, "object manipulation": 0.5, "person interaction": 1}
    assert group_precisions(result.classes) == groups and result.value == 0.75
    names = [f"class {label}" for label in range(1, 81)]
    assert not is_ava(names)
    for label, name in ((1, "bend/bow"), (11, "sit"), (12, "stand"), (14, "walk"), (80, "watch")):
        names[label - 1] = name
    assert is_ava(names)


def test_mistakes_are_said():
    with pytest.raises(UserError, match="protocol 'coco' is unknown: use published"):
        score([(T, B, 1)], [], protocol="coco")
    with pytest.raises(UserError, match="no box has an action among the classes"):
        score([(T, B, 3)], [(T, B, 1, 0.9)], evaluated=[0, 1])
    assert score([(T, B, 1)], [])[0] == 0


def test_another_package_agrees_where_annotations_are_apart():
    """It also tries the second best annotation, which then never has an IoU of 0.5.

    It counts corners as whole pixels, with + 1: in large images that makes no difference.
    """
    package = pytest.importorskip("mean_average_precision")
    theirs = package.MetricBuilder.build_evaluation_metric(
        "map_2d", async_mode=False, num_classes=3
    )
    rng = np.random.default_rng(0)
    truth, found = [], []
    for t in range(20):
        places = [(x, 0.2, x + 0.2, 0.7) for x in (0.1, 0.4, 0.7)]
        true = [(place, 1 + int(label)) for place in places for label in rng.integers(0, 3, 1)]
        near = [(place, 1 + int(label)) for place in places for label in rng.integers(0, 3, 3)]
        truth += [(key(t), *row) for row in true]
        near = [(tuple(place + rng.normal(0, 0.02, 4)), c, rng.random()) for place, c in near]
        found += [(key(t), *row) for row in near]
        theirs.add(
            np.array([[*(1e6 * np.array(corners)), c - 1, s] for corners, c, s in near]),
            np.array([[*(1e6 * np.array(corners)), c - 1, 0, 0] for corners, c in true]),
        )
    value = theirs.value(iou_thresholds=0.5, mpolicy="greedy")["mAP"]
    assert score(truth, found)[0] == pytest.approx(value, abs=1e-6)


def read_scenes(name):
    """Return the rows of a file of mocap_scenes: ((video, second), corners, class, score)."""
    with open(SCENES / name, newline="") as file:
        return [
            (key(row[1], row[0]), tuple(map(float, row[2:6])), int(row[6] or 0), float(row[7]))
            for row in csv.reader(file)
        ]


@pytest.fixture(scope="module")
def scenes():
    truth = [row[:3] for row in read_scenes("val.csv")]
    detected = [(k, corners, s) for k, corners, _, s in read_scenes("val_detected.csv")]
    return truth, detected


def by_box(truth, places, scores):
    """Score dense detections, so with `places` of (key, corners), scores [places, 13]."""
    keys = {k: n for n, k in enumerate(sorted({row[0] for row in truth} | {k for k, _ in places}))}
    frames = np.array([keys[k] for k, _ in places])
    found = Boxes(frames, np.array([corners for _, corners in places]), scores)
    return mean_average_precision(
        boxes([(*row, True) for row in truth], keys, 13, False), found
    ).value


def test_reference_values_of_the_rendered_scenes_with_annotated_boxes(scenes):
    truth, _ = scenes
    places = sorted({row[:2] for row in truth})
    own = np.zeros((len(places), 13))
    for k, corners, label in truth:
        own[places.index((k, corners)), label - 1] = 1
    assert len(places) == 351 and own.mean() == pytest.approx(0.140, abs=5e-4)
    assert by_box(truth, places, own) == 1
    rng = np.random.default_rng(0)
    random = np.mean([by_box(truth, places, rng.random(own.shape)) for _ in range(20)])
    assert random == pytest.approx(0.172, abs=0.004)
    # The labels of the key frame, given to everybody in it; equal scores at random.
    same = np.array([[k == q for q, _ in places] for k, _ in places])
    frame = same @ own > 0
    everybody = [by_box(truth, places, frame + 0.1 * rng.random(own.shape)) for _ in range(5)]
    assert np.mean(everybody) == pytest.approx(0.52, abs=0.01)


def test_reference_values_of_the_rendered_scenes_with_detected_boxes(scenes):
    truth, detected = scenes
    assert sum(s >= 0.8 for *_, s in detected) == 331
    places = [(k, corners) for k, corners, _ in detected]
    person = np.array([[s] for *_, s in detected])
    rng = np.random.default_rng(0)
    random = rng.random((20, len(places), 13))
    mean = np.mean([by_box(truth, places, scores) for scores in random])
    assert mean == pytest.approx(0.145, abs=0.004)
    times = np.mean([by_box(truth, places, scores * person) for scores in random])
    # The README has 0.167, of one draw: over draws the standard deviation is 0.006.
    assert times == pytest.approx(0.155, abs=0.005)
    own = np.zeros((len(places), 13))
    for row, (k, corners) in enumerate(places):
        for label in range(13):
            same = [c for t, c, _ in truth if t == k]
            best = max(same, key=lambda c: iou(c, corners), default=None)
            if best and iou(best, corners) >= 0.5:
                own[row, label] = (k, best, label + 1) in truth
    assert by_box(truth, places, own * person) == pytest.approx(0.938, abs=0.005)
