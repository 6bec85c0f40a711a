"""What the results say about each claim of the paper, decided by 95 % intervals."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from scipy import stats

from experiments.study.forms import LONG, MOCO, SCRATCH, VIDEOMAE
from experiments.study.lists import CONTROLS

HOLDS, FAILS, UNKNOWN = "holds here", "does not hold here", "cannot be told here"
LEVEL = 0.95
Rows = list[dict[str, Any]]


class Interval(NamedTuple):
    """A mean and its interval of confidence; both ends are NaN where there is too little."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Say whether the mean is above zero."""
        if self.low > 0:
            return HOLDS
        return FAILS if self.high < 0 else UNKNOWN


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the t interval of a mean."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return _interval(mean, error, freedom=len(values) - 1)


def difference(ours: Sequence[float], others: Sequence[float]) -> Interval:
    """Return the interval of a difference of means of independent seeds: Welch's t."""
    mean = statistics.mean(ours) - statistics.mean(others)
    if min(len(ours), len(others)) < 2:
        return Interval(mean, math.nan, math.nan)
    parts = [statistics.variance(values) / len(values) for values in (ours, others)]
    if not sum(parts):
        return Interval(mean, mean, mean)
    sizes = [len(values) - 1 for values in (ours, others)]
    spread = sum(part**2 / size for part, size in zip(parts, sizes, strict=True))
    return _interval(mean, math.sqrt(sum(parts)), freedom=sum(parts) ** 2 / spread)


def _interval(mean: float, error: float, *, freedom: float) -> Interval:
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return Interval(mean, mean - reach, mean + reach)


def select(
    rows: Rows,
    labels: str,
    arm: str,
    measure: str = "fine-tuned",
    *,
    share: float = 1.0,
    mask: str = "",
    pretrain: float | None = None,
) -> Rows:
    """Return the rows of the seeds of an arm. pretrain: its seconds; None takes the most."""
    found = [
        row
        for row in rows
        if (row["labels"], row["arm"], row["measure"]) == (labels, arm, measure)
        and (row["share"], row["mask"]) == (share, mask)
    ]
    longest = max((row["pretrain"] for row in found), default=0.0)
    return [row for row in found if row["pretrain"] == (longest if pretrain is None else pretrain)]


def scores(rows: Rows, column: str = "top1") -> list[float]:
    """Return one column of the rows that have it, in the order of the seeds."""
    return [row[column] for row in sorted(rows, key=lambda row: row["seed"]) if column in row]


class Claim(NamedTuple):
    """A claim. published: numbers of the paper, in %. measure: returns the interval that is above
    zero if it holds on one label set, None if it was not run.
    """

    text: str
    published: str
    measure: Callable[[Rows, str], Interval | None]


def compare(ours: dict[str, Any], others: dict[str, Any]) -> Callable[[Rows, str], Interval | None]:
    """Return the measure of a claim that one arm is better than another; see `select`."""

    def measure(rows: Rows, labels: str) -> Interval | None:
        found = [select(rows, labels, **arm) for arm in (ours, others)]
        return difference(scores(found[0]), scores(found[1])) if all(found) else None

    return measure


def longer(rows: Rows, labels: str) -> Interval | None:
    """Compare the longest pre-training with the shortest."""
    lengths = curve(rows, labels)
    if len(lengths) < 2:
        return None
    groups = list(lengths.values())
    return difference(groups[-1], groups[0])


def curve(rows: Rows, labels: str) -> dict[float, list[float]]:
    """Return the fine-tuned accuracies by the seconds of pre-training, from short to long."""
    found = {row["pretrain"] for row in rows if row["labels"] == labels and row["arm"] == VIDEOMAE}
    lengths = {
        length: scores(select(rows, labels, VIDEOMAE, pretrain=length)) for length in sorted(found)
    }
    return {length: values for length, values in lengths.items() if values}


def few_labels(rows: Rows, labels: str) -> Interval | None:
    """Compare with scratch in the same time at the smallest share of the labels."""
    share = min(row["share"] for row in rows)
    found = [select(rows, labels, arm, share=share) for arm in (VIDEOMAE, LONG)]
    return difference(scores(found[0]), scores(found[1])) if share < 1 and all(found) else None


def needs(control: str) -> Callable[[Rows, str], Interval | None]:
    """Return the measure of what a control takes from the pre-trained model, seed by seed."""

    def measure(rows: Rows, labels: str) -> Interval | None:
        found = [row for row in select(rows, labels, VIDEOMAE) if control in row]
        return mean_interval([row["top1"] - row[control] for row in found]) if found else None

    return measure


def by_mask(mask: str) -> dict[str, Any]:
    """Return the arm of one of the masks that are compared."""
    return {"arm": VIDEOMAE, "mask": mask}


TUBE = by_mask("tube 0.9")
PRETRAINED: dict[str, Any] = {"arm": VIDEOMAE}
FULL = "SSv2 69.6 against 32.6, K400 80.0 against 68.8"
CLAIMS = (
    Claim(
        "With the same fine-tuning, pre-training on the training clips beats scratch",
        FULL,
        compare(PRETRAINED, {"arm": SCRATCH}),
    ),
    Claim(
        "In the same total time, pre-training beats scratch",
        f"{FULL}; time not equal",
        compare(PRETRAINED, {"arm": LONG}),
    ),
    Claim("Longer pre-training is better", "-", longer),
    Claim(
        "In the same total time, pre-training beats scratch with few labels",
        "UCF101 91.3 against 51.4, HMDB51 62.6 against 18.0; time not equal",
        few_labels,
    ),
    Claim(
        "Fine-tuned, VideoMAE beats MoCo v3 pre-trained for the same time",
        "SSv2 69.6 against 54.2; time not equal",
        compare(PRETRAINED, {"arm": MOCO}),
    ),
    Claim(
        "A linear probe of VideoMAE beats one of MoCo v3",
        "SSv2 38.9 against 33.7",
        compare(PRETRAINED | {"measure": "linear"}, {"arm": MOCO, "measure": "linear"}),
    ),
    Claim(
        "Tubes at 90 % beat tubes at 75 %",
        "SSv2 69.6 against 68.0, K400 80.0 against 79.8",
        compare(TUBE, by_mask("tube 0.75")),
    ),
    Claim(
        "Tubes beat random masks",
        "SSv2 69.6 against 68.3, K400 80.0 against 79.5",
        compare(TUBE, by_mask("random 0.9")),
    ),
    Claim(
        "Tubes beat frame masks",
        "SSv2 69.6 against 61.5, K400 80.0 against 76.5",
        compare(TUBE, by_mask("frame 0.75")),
    ),
    *(
        Claim(
            f"The pre-trained model is worse on {control} frames: it uses motion",
            "-",
            needs(control),
        )
        for control in CONTROLS
    ),
)


def bar(rows: Rows, labels: str, share: float) -> float | None:
    """Return the gain over scratch in the same time, in pooled standard deviations."""
    ours, others = (scores(select(rows, labels, arm, share=share)) for arm in (VIDEOMAE, LONG))
    if min(len(ours), len(others)) < 2:
        return None
    pooled = math.sqrt((statistics.variance(ours) + statistics.variance(others)) / 2)
    gain = statistics.mean(ours) - statistics.mean(others)
    return gain / pooled if pooled else math.copysign(math.inf, gain)
