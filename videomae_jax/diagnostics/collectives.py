"""What a compiled step sends between devices, read from its HLO text."""

import math
import re
from typing import NamedTuple

import numpy as np

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_INSTRUCTION = re.compile(rf" = (.*?) ({_KINDS})(-start)?\((.*)")
# Between TPU slices: what a slice has reduced goes to its host, which exchanges it with the others.
_SEND = re.compile(r" = \((.*?), u32\[\].* send\(.*_xla_megascale_transfer_type=\"(\w+)\"")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALL = re.compile(r"(?:body|calls|to_apply|\w+_computations?)=(%[\w.\-]+|\{[^}]*\})")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """All collectives of one kind: what one device sends in a step, on a ring.

    remote: whether the devices that exchange are in different slices or hosts.
    """

    kind: str
    remote: bool
    calls: int
    bytes: float


def read_collectives(text: str, *, places: list[int]) -> list[Collective]:
    """Add up the collectives of a compiled module; bodies of loops count once per turn.

    places: the slice or host of each device, in the order of the mesh. The largest come first.
    """
    bodies = _computations(text)
    turns = _turns(bodies)
    # One collective may stand in several fusions, from its start to its end: its channel and shape
    # tell. Outside of fusions each is one, even where, as those of a psum, all have one channel.
    found, whole, fused = {}, set(), _fused(bodies)
    for name, lines in sorted(bodies.items(), key=lambda body: body[0] in fused):
        for line in lines:
            if send := _SEND.search(line):
                size, kind = _bytes(send[1]), send[2].lower().replace("_", "-")
                sent = _sent(kind, size, len(set(places)), start=False)
                found[name, line] = kind, True, sent, turns[name]
            match = _INSTRUCTION.search(line)
            if not match or not turns[name]:
                continue
            shape, kind, start, rest = match.groups()
            group = _group(rest, len(places))
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
            remote = len({places[device] for device in group}) > 1
            if key not in found or found[key][-1] < turns[name]:
                found[key] = kind, remote, sent, turns[name]
    sums = {}
    for kind, remote, sent, times in found.values():
        calls, total = sums.get((kind, remote), (0, 0.0))
        sums[kind, remote] = calls + times, total + sent * times
    rows = [Collective(*key, *value) for key, value in sums.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def _sent(kind: str, size: float, group: int, *, start: bool) -> float:
    """Bytes a device sends around a ring, from those of an instruction's result."""
    others = (group - 1) / group
    if start and kind != "all-reduce":  # its result is a pair, operand and result
        size *= {"all-gather": group, "reduce-scatter": 1}.get(kind, (group + 1) / 2) / (group + 1)
    if kind == "all-reduce":
        return 2 * others * size
    if kind == "reduce-scatter":
        return (group - 1) * size
    return size if kind == "collective-permute" else others * size


def _bytes(shape: str) -> float:
    """Bytes of all arrays of a shape such as "(f32[8,2]{1,0}, bf16[])"."""
    total = 0.0
    for name, bits, sizes in _SHAPE.findall(shape):
        width = {"pred": 1, "bf16": 2}.get(name) or int(bits) / 8
        total += width * math.prod(map(int, sizes.split(","))) if sizes else width
    return total


def _group(text: str, devices: int) -> tuple[int, ...]:
    """The devices of one group of a collective; XLA writes groups in three ways."""
    if "source_target_pairs=" in text:
        source, target = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text).groups()
        return int(source), int(target)
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
    """Devices in the order of "<=[4,2]T(1,0)": counted up in that shape, then transposed."""
    sizes = [int(size) for size in re.search(r"<=\[([\d,]+)\]", text)[1].split(",")]
    ids = np.arange(devices).reshape(sizes)
    turned = re.search(r"T\(([\d,]+)\)", text)
    return (ids.transpose([int(a) for a in turned[1].split(",")]) if turned else ids).ravel()


def _computations(text: str) -> dict[str, list[str]]:
    """Split a module into its computations; the entry's name is ""."""
    bodies, lines = {}, []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")):
            lines = bodies["" if line.startswith("ENTRY ") else _COMPUTATION.match(line)[1]] = []
        elif line.startswith(" "):
            lines.append(line)
    return bodies


def _fused(bodies: dict[str, list[str]]) -> set[str]:
    """The computations that are the inside of a fusion."""
    calls = (line for lines in bodies.values() for line in lines if " fusion(" in line)
    return {name for line in calls for name in re.findall(r"calls=%([\w.\-]+)", line)}


def _turns(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in a step."""
    callers: dict[str, list[tuple[str, int]]] = {name: [] for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            times = _trip_count(line, bodies) if " while(" in line else 1
            for call in _CALL.findall(line):
                for called in re.findall(r"%([\w.\-]+)", call):
                    callers[called].append((name, times))
    turns = {"": 1}

    def count(name):
        if name not in turns:
            turns[name] = sum(count(caller) * times for caller, times in callers[name])
        return turns[name]

    return {name: count(name) for name in bodies}


def _trip_count(line: str, bodies: dict[str, list[str]]) -> int:
    """Turns of a `while`; 1 where they are not written.

    XLA for TPU writes them only into the condition, as the bound of a counter from 0.
    """
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(match[1])
    condition = bodies[re.search(r"condition=%([\w.\-]+)", line)[1]]
    bounds = [int(n) for row in condition for n in re.findall(r"constant\((\d+)\)", row)]
    return bounds[0] if len(bounds) == 1 else 1
