"""Accuracies, their intervals, and votes of neighbours against a plain reference."""

import math

import numpy as np
import pytest

from videomae_jax import metrics
from videomae_jax.errors import UserError
from videomae_jax.metrics import top


def test_intervals_are_wilsons():
    half = metrics.wilson(50, 100)
    assert (round(half.low, 4), round(half.high, 4)) == (0.4038, 0.5962)
    none, all_ = metrics.wilson(0, 10), metrics.wilson(10, 10)
    assert none.low == 0 and none.high == pytest.approx(0.2775, abs=1e-4)
    assert math.isclose(all_.high, 1) and math.isclose(all_.low, 1 - none.high)
    assert str(half) == "50.0 % (40.4 % - 59.6 %)"


def test_ranks_break_ties_in_class_order():
    probabilities = np.array([[0.5, 0.5, 0], [0.2, 0.3, 0.5], [1 / 3] * 3])
    labels = np.array([1, 2, 2])
    assert metrics.top(probabilities, labels, k=1).value == pytest.approx(1 / 3)
    assert metrics.top(probabilities, labels, k=2).value == pytest.approx(2 / 3)
    assert metrics.confusion(probabilities, labels).tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1]]


def area(scores, relevant, total):
    """Integrate the curve point by point, as the definition does."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    points = [(0.0, 0.0)]  # recall, precision
    for rank in range(1, len(order) + 1):
        hits = sum(relevant[i] for i in order[:rank])
        points.append((hits / total, hits / rank))
    return sum(
        (points[i][0] - points[i - 1][0]) * max(precision for _, precision in points[i:])
        for i in range(1, len(points))
    )


def test_average_precision_is_the_area_under_the_interpolated_curve():
    hits = [True, False, True, False, True]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5]
    assert metrics.average_precision(np.array(scores), np.array(hits), total=5) == pytest.approx(
        (1 + 2 / 3 + 3 / 5) / 5, abs=1e-15
    )
    rng = np.random.default_rng(0)
    for total in range(12, 40):
        scores = rng.integers(0, 9, 30) / 8  # with ties
        relevant = rng.random(30) < 0.4
        relevant &= relevant.cumsum() <= 12
        found = metrics.average_precision(scores, relevant, total=total)
        assert found == pytest.approx(area(scores, relevant, total), abs=1e-14)
        # Only the order of the scores matters, and what is ranked below the last hit does not.
        assert found == metrics.average_precision(np.exp(scores) - 3, relevant, total=total)
        longer = np.append(scores, -1.0), np.append(relevant, False)
        assert found == metrics.average_precision(*longer, total=total)


def test_average_precision_without_relevant_examples_or_without_a_list():
    assert math.isnan(metrics.average_precision(np.ones(3), np.zeros(3, bool)))
    assert metrics.average_precision(np.zeros(0), np.zeros(0, bool), total=2) == 0


def test_the_precision_of_a_class_is_that_of_scikit_learn():
    """With ties; computed by average_precision_score of scikit-learn 1.9.1."""
    scores = [
        [3, 5, 5, 3, 2, 3, 3, 2, 0, 2, 1, 4],
        [1, 1, 5, 0, 0, 4, 5, 3, 0, 3, 0, 2],
        [5, 3, 4, 4, 1, 3, 4, 3, 3, 1, 2, 2],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    ]
    labels = [
        [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0],
        [0] * 12,
    ]
    scores, labels = np.array(scores).T, np.array(labels, bool).T
    found = metrics.class_precisions(scores, labels)
    np.testing.assert_allclose(found[:3], [0.171429, 0.544444, 0.266667], atol=1e-6)
    assert math.isnan(found[3])
    assert metrics.mean_precision(found) == pytest.approx(found[:3].mean())
    assert math.isnan(metrics.mean_precision(found[3:]))
    # Equal scores say nothing: the precision is the fraction of the class, in any order.
    order = np.random.default_rng(0).permutation(12)
    constant = metrics.class_precisions(np.zeros((12, 4)), labels[order])
    np.testing.assert_allclose(constant[:3], labels.mean(axis=0)[:3])
    np.testing.assert_allclose(metrics.class_precisions(scores[order], labels[order]), found)


def test_hits_are_counted_where_there_is_a_label():
    probabilities = np.array([[0.9, 0.8], [0.2, 0.1], [0.3, 0.4], [0.7, 0.2]])
    labels = np.array([[1, 1], [0, 1], [0, 0], [1, 0]], bool)
    found = metrics.hit(probabilities, labels)
    assert (found.value, found.count) == (2 / 3, 3)


def reference(bank, labels, queries, *, k, temperature):
    """Vote for one query and one neighbour at a time, in float64."""

    def unit(x):
        return x / np.linalg.norm(x)

    shares = np.zeros((len(queries), labels.max() + 1))
    for row, query in zip(shares, queries, strict=True):
        similar = [float(unit(query) @ unit(other)) for other in bank]
        for index in sorted(range(len(bank)), key=lambda i: (-similar[i], i))[:k]:
            row[labels[index]] += np.exp(similar[index] / temperature)
        row /= row.sum()
    return shares


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_are_those_of_the_definition(temperature, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 7)  # several chunks, the last one partial
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(40, 6)), rng.normal(size=(17, 6)) * 100
    labels = rng.integers(0, 5, 40).astype(np.int32)
    votes = metrics.neighbour_votes(bank, labels, queries, ks=(1, 3, 40), temperature=temperature)
    for k in (1, 3, 40):
        expected = reference(bank, labels, queries, k=k, temperature=temperature)
        np.testing.assert_allclose(votes[k], expected, atol=1e-5)


def test_ties_are_broken_by_order_among_neighbours_and_among_classes():
    bank = np.eye(3)[[0, 0, 1, 2]]
    labels = np.array([2, 1, 0, 1], np.int32)
    votes = metrics.neighbour_votes(bank, labels, np.eye(3)[[0]], ks=(1, 2))
    np.testing.assert_allclose(votes[1], [[0, 0, 1]])
    np.testing.assert_allclose(votes[2], [[0, 0.5, 0.5]])
    assert top(votes[2], np.array([1]), k=1).value == 1


def test_distant_neighbours_vote_at_a_low_temperature():
    """exp(-1 / 0.01) is 0 in float32, and 0 / 0 no vote."""
    bank, labels = np.eye(3)[[1, 2, 2]], np.array([0, 1, 1], np.int32)
    votes = metrics.neighbour_votes(bank, labels, np.eye(3)[[0]], ks=(1, 3), temperature=0.01)
    np.testing.assert_allclose(votes[1], [[1, 0]])
    np.testing.assert_allclose(votes[3], [[1 / 3, 2 / 3]], rtol=1e-6)


def test_every_vector_is_its_own_nearest_neighbour():
    features = np.random.default_rng(1).normal(size=(50, 8))
    labels = np.arange(50, dtype=np.int32) % 7
    votes = metrics.neighbour_votes(features, labels, features, ks=(1,))
    assert top(votes[1], labels, k=1).value == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(ks=(1, 6)), "k 6: there are 5 labelled training videos .* use 1 to 5"),
        (dict(ks=(0,)), "k 0"),
        (dict(ks=(1,), temperature=0.0), "temperature 0: use above 0"),
        (dict(ks=(1,), temperature=float("nan")), "temperature nan: use above 0"),
    ],
)
def test_impossible_neighbours_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        metrics.neighbour_votes(np.eye(5), np.zeros(5, np.int32), np.eye(5), **options)
