"""Read the communication between devices from the HLO text of a compiled step."""

import math
import re
from typing import NamedTuple

import numpy as np

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_INSTRUCTION = re.compile(rf" = (.*?) ({_KINDS})(-start)?\((.*)")
# Between TPU slices: the hosts exchange what each slice has reduced.
_SEND = re.compile(r" = \((.*?), u32\[\].* send\(.*_xla_megascale_transfer_type=\"(\w+)\"")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALL = re.compile(r"(?:body|calls|to_apply|\w+_computations?)=(%[\w.\-]+|\{[^}]*\})")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """All collectives of one kind; `bytes` is what one device sends per step, on a ring.

    remote: whether the devices are in different slices or hosts.
    """

    kind: str
    remote: bool
    calls: int
    bytes: float


def read_collectives(text: str, *, hosts: list[int]) -> list[Collective]:
    """Add up the collectives of a compiled module; the body of a loop counts once per iteration.

    hosts: the slice or host of each device, in the order of the mesh. Sorted by bytes.
    """
    bodies = _computations(text)
    iterations = _iterations(bodies)
    # One collective may appear in several fusions, between its start and its end: count it once per
    # channel and shape. Outside fusions count each, even with equal channels, as those of a psum.
    found: dict[tuple[str, str], tuple[str, bool, float, int]] = {}
    whole: set[tuple[str, str]] = set()
    fused = _fused(bodies)
    for name, lines in sorted(bodies.items(), key=lambda body: body[0] in fused):
        for line in lines:
            if send := _SEND.search(line):
                size, kind = _bytes(send[1]), send[2].lower().replace("_", "-")
                sent = _sent(kind, size, len(set(hosts)), start=False)
                found[name, line] = kind, True, sent, iterations[name]
            match = _INSTRUCTION.search(line)
            if not match or not iterations[name]:
                continue
            shape, kind, start, rest = match.groups()
            group = _group(rest, len(hosts))
            if name.startswith("all-reduce-scatter"):
                kind, sent = "reduce-scatter", _bytes(shape) * (1 - 1 / len(group))
            else:
                sent = _sent(kind, _bytes(shape), len(group), start=bool(start))
            channel = re.search(r"channel_id=\d+", rest)
            key = (channel[0], shape) if channel else (name, line)
            if name not in fused:
                whole.add(key)
                key = name, line
            elif key in whole:
                continue
            remote = len({hosts[device] for device in group}) > 1
            if key not in found or found[key][-1] < iterations[name]:
                found[key] = kind, remote, sent, iterations[name]
    sums: dict[tuple[str, bool], tuple[int, float]] = {}
    for kind, remote, sent, times in found.values():
        calls, total = sums.get((kind, remote), (0, 0.0))
        sums[kind, remote] = calls + times, total + sent * times
    rows = [Collective(*key, *value) for key, value in sums.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def _sent(kind: str, size: float, group: int, *, start: bool) -> float:
    """Return the bytes a device sends around a ring, from the bytes of the result."""
    others = (group - 1) / group
    if start and kind != "all-reduce":  # the result is a pair, operand and result
        size *= {"all-gather": group, "reduce-scatter": 1}.get(kind, (group + 1) / 2) / (group + 1)
    if kind == "all-reduce":
        return 2 * others * size
    if kind == "reduce-scatter":
        return (group - 1) * size
    return size if kind == "collective-permute" else others * size


def _bytes(shape: str) -> float:
    """Return the bytes of all arrays of a shape such as "(f32[8,2]{1,0}, bf16[])"."""
    total = 0.0
    for name, bits, sizes in _SHAPE.findall(shape):
        width = {"pred": 1, "bf16": 2}.get(name) or int(bits) / 8
        total += width * math.prod(map(int, sizes.split(","))) if sizes else width
    return total


def _group(text: str, devices: int) -> tuple[int, ...]:
    """Return the devices of one group of a collective; XLA has three notations for groups."""
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return int(match[1]), int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return tuple(map(int, match[1].split(",")))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\](<=\S+)", text):
        return tuple(_iota(match[2], devices)[: int(match[1])].tolist())
    if match := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\))\))? \{(.*?)\}", text
    ):
        axes, order, chosen = match.groups()
        chosen = dict(re.findall(r"('\w+')(?::\((\d+\)\d+))?", chosen))
        sizes, inside = [], []
        for axis, size in re.findall(r"('\w+')=(\d+)", axes):
            parts = [int(size)]
            if chosen.get(axis):  # a part of an axis, as (major)part
                major, part = map(int, chosen[axis].split(")"))
                parts = [major, part, int(size) // major // part]
            inside += [axis in chosen] if len(parts) == 1 else [False, True, False]
            sizes += parts
        ids = _iota(f"<={order}", devices) if order else np.arange(devices)
        first = tuple(slice(None) if whole else 0 for whole in inside)
        return tuple(ids.reshape(sizes)[first].ravel().tolist())
    return tuple(range(devices))


def _iota(text: str, devices: int) -> np.ndarray:
    """Return the devices of "<=[4,2]T(1,0)": arange in that shape, transposed, flattened."""
    sizes = [int(size) for size in _search(r"<=\[([\d,]+)\]", text)[1].split(",")]
    ids = np.arange(devices).reshape(sizes)
    turned = re.search(r"T\(([\d,]+)\)", text)
    return (ids.transpose([int(a) for a in turned[1].split(",")]) if turned else ids).ravel()


def _computations(text: str) -> dict[str, list[str]]:
    """Split a module into its computations; the entry's name is ""."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")):
            name = "" if line.startswith("ENTRY ") else _search(_COMPUTATION, line)[1]
            lines = bodies[name] = []
        elif line.startswith(" "):
            lines.append(line)
    return bodies


def _fused(bodies: dict[str, list[str]]) -> set[str]:
    """Return the names of the computations that are bodies of fusions."""
    calls = (line for lines in bodies.values() for line in lines if " fusion(" in line)
    return {name for line in calls for name in re.findall(r"calls=%([\w.\-]+)", line)}


def _iterations(bodies: dict[str, list[str]]) -> dict[str, int]:
    """Return how often each computation runs in a step."""
    callers: dict[str, list[tuple[str, int]]] = {name: [] for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            times = _trip_count(line, bodies) if " while(" in line else 1
            for call in _CALL.findall(line):
                for called in re.findall(r"%([\w.\-]+)", call):
                    callers[called].append((name, times))
    iterations = {"": 1}

    def count(name):
        if name not in iterations:
            iterations[name] = sum(count(caller) * times for caller, times in callers[name])
        return iterations[name]

    return {name: count(name) for name in bodies}


def _trip_count(line: str, bodies: dict[str, list[str]]) -> int:
    """Return the iterations of a `while`, 1 if the text does not contain them.

    XLA for TPU writes them only in the condition, as the bound of a counter from 0.
    """
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(match[1])
    condition = bodies[_search(r"condition=%([\w.\-]+)", line)[1]]
    bounds = [int(n) for row in condition for n in re.findall(r"constant\((\d+)\)", row)]
    return bounds[0] if len(bounds) == 1 else 1


def _search(pattern: str | re.Pattern[str], text: str) -> re.Match[str]:
    """Return the match of a pattern that HLO text must have."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern} in the HLO text {text!r}")
    return match
