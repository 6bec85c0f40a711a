"""Cells of the tables of results."""

import statistics


def spread(values: list[float]) -> str:
    """Return "mean ± deviation (each)" in %."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f} ({each})"
