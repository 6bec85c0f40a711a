"""One table of names, shapes and layouts between our parameters and everybody else's.

Three families of files hold the same numbers: the releases of MCG-NJU ("mcg": V1 and V2,
pre-training and fine-tuning), transformers ("hf") and MMAction2 ("mm"). `TABLE` and `BLOCK`
say for each of our layers what the others call it and how it is laid out; both directions
follow from them. Nothing is matched loosely: what does not fit is reported, all of it at once.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.models.tokens import Triple, sincos_positions
from videomae_jax.models.vit import SIZES, Size

DIALECTS = {"mcg": "MCG-NJU release", "hf": "transformers", "mm": "MMAction2"}

# A row: ours | layout | their shape | name in mcg, hf, mm ("" where there is none).
# Layouts "norm" and "linear" (and "conv") have a weight and a bias, the others are one tensor.
# Shapes: D, E widths of encoder and decoder, M, N those of their MLPs (in BLOCK: W and H),
# C channels, t h w the patch, P its values, K classes.
# Names: # is the layer, {a,b} are tensors joined along the first axis, a|b two spellings.
TABLE = (
    (
        "encoder/embed",
        "conv",
        "D C t h w",
        "encoder.patch_embed.proj",
        "videomae.embeddings.patch_embeddings.projection",
        "patch_embed.projection",
    ),
    ("encoder/blocks", "blocks", "D M", "encoder.blocks", "videomae.encoder.layer", "blocks"),
    ("encoder/norm", "norm", "D", "encoder.norm", "videomae.layernorm", ""),
    ("encoder_to_decoder/kernel", "dense", "E D", *["encoder_to_decoder.weight"] * 2, ""),
    ("mask_token", "flat", "1 1 E", "mask_token", "mask_token", ""),
    ("decoder/blocks", "blocks", "E N", "decoder.blocks", "decoder.decoder_layers", ""),
    ("decoder/norm", "norm", "E", "decoder.norm", "decoder.norm", ""),
    ("decoder/head", "linear", "P E", "decoder.head", "decoder.head", ""),
    ("fc_norm", "norm", "D", "fc_norm", "fc_norm", "fc_norm"),
    ("head", "linear", "K D", "head", "classifier", "cls_head.fc_cls"),
)
_HF = "attention.attention."
BLOCK = (
    ("norm1", "norm", "W", "norm1", "layernorm_before", "norm1"),
    (
        "attn/qkv",
        "qkv",
        "3W W",
        "attn.qkv.weight",
        _HF + "{query,key,value}.weight",
        "attn.qkv.weight",
    ),
    # transformers 4 and the files on its hub | transformers 5.
    ("attn/q_bias", "heads", "W", "attn.q_bias", f"{_HF}q_bias|{_HF}query.bias", "attn.q_bias"),
    ("attn/v_bias", "heads", "W", "attn.v_bias", f"{_HF}v_bias|{_HF}value.bias", "attn.v_bias"),
    ("attn/proj", "linear", "W W", "attn.proj", "attention.output.dense", "attn.proj"),
    ("norm2", "norm", "W", "norm2", "layernorm_after", "norm2"),
    ("mlp/fc1", "linear", "H W", "mlp.fc1", "intermediate.dense", "mlp.layers.0.0"),
    ("mlp/fc2", "linear", "W H", "mlp.fc2", "output.dense", "mlp.layers.1"),
)
# What a file may hold beyond that, and must be so that nothing is lost by leaving it out.
KEY_BIAS = re.compile(r"\.(key\.bias|k_bias)$")  # zero: ours has none, as the reference
POSITIONS = re.compile(r"(^|\.)(pos_embed|position_embeddings)$")  # the sine-cosine table
# Wrappers around the model: torch.compile, DistributedDataParallel, V2 and MMAction2.
PREFIXES = re.compile(r"^((_orig_mod|module|backbone)\.)+")
MAX_DEPTH = 200  # the deepest published has 40
MAX_POSITIONS = 1 << 23  # numbers in a position table; 32 frames at 384 pixels have 7 million
FLOATS = {np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)}


class Rule(NamedTuple):
    """One of our arrays: its path, its layout, and shape and name elsewhere (see `TABLE`)."""

    ours: str
    layout: str
    shape: str
    names: dict[str, str]

    @property
    def part(self) -> str:
        """What the array belongs to: encoder, norm (the encoder's last), decoder or head."""
        if self.ours.startswith("encoder/"):
            return "norm" if self.ours.startswith("encoder/norm/") else "encoder"
        return "head" if self.ours.startswith(("fc_norm/", "head/")) else "decoder"

    @property
    def width(self) -> str:
        """The letter of the width that the heads divide."""
        return "E" if self.part == "decoder" else "D"


# From their weight [out, ...] of one layer to ours; heads: of the transformer it is in.
READ = {
    "same": lambda x, heads: x,
    "flat": lambda x, heads: x.reshape(-1),
    "dense": lambda x, heads: x.T,
    "heads": lambda x, heads: x.reshape(heads, -1),
    "qkv": lambda x, heads: x.T.reshape(x.shape[1], 3, heads, -1),
    "conv": lambda x, heads: x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]),
}
# And back; shape: theirs.
WRITE = {
    "same": lambda x, shape: x,
    "flat": lambda x, shape: x.reshape(shape),
    "dense": lambda x, shape: x.T,
    "heads": lambda x, shape: x.reshape(shape),
    "qkv": lambda x, shape: x.reshape(shape[::-1]).T,
    "conv": lambda x, shape: x.reshape(*shape[2:], *shape[1::-1]).transpose(4, 3, 0, 1, 2),
}


def _expand() -> Iterator[Rule]:
    """Yield the rule of every single array."""

    def module(ours, layout, shape, names):
        if layout in ("norm", "linear", "conv"):
            first, kind = ("scale", "same") if layout == "norm" else ("kernel", layout)
            kind = "dense" if layout == "linear" else kind
            weights, biases = (
                {dialect: name and f"{name}.{suffix}" for dialect, name in names.items()}
                for suffix in ("weight", "bias")
            )
            yield Rule(f"{ours}/{first}", kind, shape, weights)
            yield Rule(f"{ours}/bias", "same", shape.split()[0], biases)
        else:
            yield Rule(ours, layout, shape, names)

    for ours, layout, shape, *names in TABLE:
        roots = dict(zip(DIALECTS, names, strict=True))
        if layout != "blocks":
            yield from module(ours, layout, shape, roots)
            continue
        width, hidden = shape.split()
        for inner, kind, letters, *suffixes in BLOCK:
            inside = {
                dialect: "|".join(f"{roots[dialect]}.#.{s}" for s in suffix.split("|"))
                for dialect, suffix in zip(DIALECTS, suffixes, strict=True)
                if roots[dialect]
            }
            letters = letters.replace("W", width).replace("H", hidden)
            inside = {dialect: inside.get(dialect, "") for dialect in DIALECTS}
            yield from module(f"{ours}/{inner}", kind, letters, inside)


RULES = tuple(_expand())


class Slot(NamedTuple):
    """The place of one rule, in one layer, in one file: its spellings, each of some keys."""

    rule: Rule
    spellings: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class LoadTable:
    """What became of every tensor of a file; print it."""

    title: str
    rows: tuple[tuple[str, str], ...]  # ours with its shape, theirs with its shape
    notes: tuple[str, ...]

    def __str__(self) -> str:
        left = max((len(ours) for ours, _ in self.rows), default=0)
        rows = [f"  {ours:{left}}  <-  {theirs}" for ours, theirs in self.rows]
        return "\n".join([self.title, *rows, *(f"  note: {note}" for note in self.notes)])


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What the tensors of a file say about the model.

    task: "pretrain", "classify", or "encoder" for an encoder alone. dialect: key of
    `DIALECTS`. decoder: None without one. classes: 0 without a head.
    """

    task: str
    dialect: str
    encoder: Size
    decoder: Size | None
    patch: Triple
    channels: int
    classes: int
    table: LoadTable


def to_native(
    tensors: Mapping[str, Any],
    *,
    source: str = "the file",
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    said_heads: tuple[int | None, int | None] = (None, None),
) -> tuple[dict, ModelFacts]:
    """Convert the tensors of a file to our parameters, float32, and say what they are.

    tensors: by name; whatever has a shape and a dtype and `np.asarray` takes. num_heads,
    decoder_num_heads: what no tensor shows, needed for sizes that are not published.
    said_heads: the same from a config beside the file. Raises UserError with every missing,
    unexpected, doubled or wrongly shaped key at once.
    """
    keys, problems = _strip(tensors)
    dialect, drop = _detect(keys)
    depths = {part: _depth(part, dialect, drop, keys) for part in ("encoder", "decoder")}
    slots = [slot for rule in RULES for slot in _slots(rule, dialect, drop, depths)]
    task, slots = _choose_task(slots, keys)
    dims = _dimensions(slots, keys, tensors)

    found, used, misfits = _match(slots, keys, tensors, dims)
    notes, unexpected = _explain(keys.keys() - used, keys, tensors)
    heads, wrong_heads = _heads(dims, depths, (num_heads, decoder_num_heads), said_heads)
    if not depths["encoder"] or (task == "pretrain" and not depths["decoder"]):
        misfits.append(
            f"missing     every block of the {'decoder' if depths['encoder'] else 'encoder'}"
        )
    if problems := [*problems, *misfits, *unexpected, *wrong_heads]:
        title = f"{source} does not fit ({DIALECTS[dialect]} names, {task}):"
        raise UserError("\n  ".join([title, *sorted(problems, key=_natural)]))

    params, rows = {}, []
    for ours, (rule, layers) in found.items():
        leaf = _read(rule, layers, tensors, heads[rule.width])
        _insert(params, ours, leaf)
        theirs = " + ".join(name.replace(".0.", ".#.", 1) for name in layers[0])
        rows.append((f"{ours} {list(leaf.shape)}", f"{theirs} {tensors[layers[0][0]].shape}"))
    kinds = {str(tensors[name].dtype) for _, layers in found.values() for name in sum(layers, [])}
    if kinds != {"float32"}:
        notes.append(f"{', '.join(sorted(kinds))} became float32")
    if task == "encoder":
        notes.append("an encoder only: the file holds no decoder and no head")

    decoder = None
    if task == "pretrain":
        decoder = Size(dims["E"], depths["decoder"], heads["E"], dims["N"])
    title = (
        f"{source}: {DIALECTS[dialect]} names, {task}, {len(used)} tensors in {len(rows)} arrays"
    )
    return params, ModelFacts(
        task=task,
        dialect=dialect,
        encoder=Size(dims["D"], depths["encoder"], heads["D"], dims["M"]),
        decoder=decoder,
        patch=(dims["t"], dims["h"], dims["w"]),
        channels=dims["C"],
        classes=dims["K"] if task == "classify" else 0,
        table=LoadTable(title, tuple(rows), tuple(notes)),
    )


def from_native(params: Mapping[str, Any], dialect: str, *, patch: Triple) -> dict[str, np.ndarray]:
    """Name and lay out our parameters as a dialect does: float32 arrays by key.

    All spellings of a tensor are written. patch: (frames, height, width), which our embedding
    matrix does not show. Raises UserError for parameters the dialect has no names for.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in _leaves(params)}
    if any("/cross/" in path for path in leaves):
        raise UserError(
            f"{DIALECTS[dialect]} has no decoder with cross-attention, which "
            "model.decoder_attention=cross has: use native, or stablehlo for the features"
        )
    drop = "encoder." if dialect == "mcg" and "head/kernel" in leaves else ""
    dims = _native_dimensions(leaves, patch)
    tensors = {}
    for rule in RULES:
        leaf = leaves.pop(rule.ours, None)
        if leaf is None:
            continue
        if not rule.names[dialect]:
            raise UserError(f"{DIALECTS[dialect]} has no name for {rule.ours}: use mcg or hf")
        depths = dict.fromkeys(("encoder", "decoder"), len(leaf))
        slots = _slots(rule, dialect, drop, depths)
        layers = leaf if "#" in rule.names[dialect] else [leaf]
        for slot, layer in zip(slots, layers, strict=True):
            whole = WRITE[rule.layout](layer, _shape(slot, dims, 1))
            for spelling in slot.spellings:
                parts = np.split(whole, len(spelling)) if len(spelling) > 1 else [whole]
                tensors |= zip(spelling, map(np.ascontiguousarray, parts), strict=True)
    if leaves:
        raise UserError(f"{DIALECTS[dialect]} files cannot hold {', '.join(leaves)}")
    if dialect == "mm":
        # Its recognizer has two halves; the table has the names within them.
        return {k if k.startswith("cls_head.") else f"backbone.{k}": x for k, x in tensors.items()}
    return tensors


def choose_heads(
    side: str, width: int, depth: int, given: int | None, said: int | None = None
) -> int:
    """Return the head count of an encoder or decoder: given, said by a config, or published.

    Raises UserError for a count that contradicts the published sizes, for none at all, and
    for one that does not divide the width.
    """
    flag = "--num-heads" if side == "encoder" else "--decoder-num-heads"
    published = {}
    for name, size in SIZES.items():
        part = getattr(size, side)
        # Ours is too small a name to forbid others the width.
        if name != "tiny" or part.depth == depth:
            published.setdefault(part.width, (part.heads, name))
    heads = said if given is None else given
    if width in published:
        right, name = published[width]
        if heads not in (None, right):
            raise UserError(
                f"{heads} heads for the {side} of width {width}, but ViT-{name} has "
                f"{right}: use {flag} {right}"
            )
        return right
    if heads is None:
        raise UserError(
            f"the {side} is {width} wide, no published size ({', '.join(map(str, published))}), "
            f"and no tensor shows its heads: give {flag} N "
            f"(in Python {flag[2:].replace('-', '_')}=N)"
        )
    if heads < 1 or width % heads:
        below = [n for n in range(1, min(width, max(heads, 1)) + 1) if width % n == 0]
        raise UserError(f"{heads} heads do not divide the {side}'s {width}: use {below[-1]}")
    return heads


def find_tensors(tree: Any, *, source: str) -> tuple[dict[str, np.ndarray], str]:
    """Find the model in what a .pth holds; return its tensors and the key they were under.

    Files are bare, or a dict with the model under "model", "module" or "state_dict" and the
    optimizer and others beside it.
    """
    where = []
    while isinstance(tree, dict):
        inside = next((key for key in ("model", "module", "state_dict") if key in tree), None)
        if not isinstance(tree.get(inside), dict):
            break
        where.append(inside)
        tree = tree[inside]
    if not isinstance(tree, dict) or not any(isinstance(v, np.ndarray) for v in tree.values()):
        raise UserError(f"{source} holds no model: no dict of tensors, bare or under 'model'")
    wrong = [key for key, value in tree.items() if not isinstance(value, np.ndarray)]
    if wrong or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{source} holds more than tensors in its model: {wrong[:5]}")
    return tree, ".".join(where)


def _strip(tensors: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Map each key without its prefixes to the key itself; name those that collide."""
    keys, problems = {}, []
    for key in tensors:
        short = PREFIXES.sub("", key)
        if short in keys:
            problems.append(f"doubled     {key} and {keys[short]} are the same tensor")
        keys[short] = key
    return keys, problems


def _detect(keys: Mapping[str, str]) -> tuple[str, str]:
    """Return the dialect most keys belong to, and the prefix its names lose in this file.

    Fine-tuned releases have no "encoder.", a bare VideoMAEModel no "videomae.".
    """
    variants = [("mcg", ""), ("mcg", "encoder."), ("hf", ""), ("hf", "videomae."), ("mm", "")]
    patterns = {re.sub(r"\.\d+\.", ".#.", key, count=1): None for key in keys}

    def score(variant):
        dialect, drop = variant
        slots = (s for rule in RULES for s in _slots(rule, dialect, drop, None))
        return sum(k in patterns for slot in slots for names in slot.spellings for k in names)

    best = max(variants, key=score)
    if not score(best):
        some = ", ".join(list(keys.values())[:3])
        raise UserError(f"these are no weights of a VideoMAE: none of the keys ({some} ...) is one")
    return best


def _slots(rule: Rule, dialect: str, drop: str, depths: Mapping[str, int] | None) -> Iterator[Slot]:
    """Yield the rule's place in each layer, or without depths the one with # for a layer."""
    if not rule.names[dialect]:
        return
    spellings = []
    for name in rule.names[dialect].split("|"):
        head, brace, tail = name.removeprefix(drop).partition("{")
        inner, _, tail = tail.partition("}")
        spellings.append(tuple(f"{head}{item}{tail}" for item in inner.split(",")))
    if "#" not in rule.names[dialect] or depths is None:
        yield Slot(rule, tuple(spellings))
        return
    for layer in range(depths[rule.part]):
        yield Slot(rule, tuple(tuple(k.replace("#", str(layer)) for k in s) for s in spellings))


def _depth(part: str, dialect: str, drop: str, keys: Mapping[str, str]) -> int:
    """Count the layers of which a file has anything."""
    name = next(r.names[dialect] for r in RULES if r.ours.startswith(f"{part}/blocks"))
    root = re.escape(name.removeprefix(drop).partition("#")[0])
    layers = {m[1] for m in (re.match(rf"{root}(\d+)\.", key) for key in keys) if name and m}
    if len(layers) > MAX_DEPTH:
        raise UserError(
            f"{len(layers)} blocks in the {part}: more than {MAX_DEPTH} are no VideoMAE"
        )
    return len(layers)


def _dimensions(slots: list[Slot], keys, tensors) -> dict[str, int]:
    """Read the letters of the shapes off the tensors; on each letter the majority decides.

    So that one wrong tensor is reported, not all that disagree with it.
    """
    votes: dict[str, Counter] = {}
    for slot in slots:
        letters = [re.fullmatch(r"(\d*)(\D?)", term).groups() for term in slot.rule.shape.split()]
        for names in slot.spellings:
            if not all(k in keys for k in names):
                continue
            shape = tensors[keys[names[0]]].shape
            if len(shape) != len(letters):
                continue
            for axis, ((factor, letter), size) in enumerate(zip(letters, shape, strict=True)):
                size = size * len(names) if axis == 0 else size
                if letter and size and size % int(factor or 1) == 0:
                    votes.setdefault(letter, Counter())[size // int(factor or 1)] += 1
    dims = {letter: counter.most_common(1)[0][0] for letter, counter in votes.items()}
    if all(letter in dims for letter in "Cthw"):
        dims["P"] = math.prod(dims[letter] for letter in "Cthw")
    return dims


def _native_dimensions(leaves: Mapping[str, np.ndarray], patch: Triple) -> dict[str, int]:
    kernel = leaves["encoder/embed/kernel"]
    values, width = kernel.shape
    if values % math.prod(patch):
        raise UserError(f"patch {patch} does not divide the embedding's {values} values per token")
    dims = dict(zip("thw", patch, strict=True))
    dims |= {"C": values // math.prod(patch), "P": values, "D": width}
    for letter, path in (
        ("M", "encoder/blocks/mlp/fc1/bias"),
        ("E", "mask_token"),
        ("N", "decoder/blocks/mlp/fc1/bias"),
        ("K", "head/bias"),
    ):
        if path in leaves:
            dims[letter] = leaves[path].shape[-1]
    return dims


def _shape(slot: Slot, dims: Mapping[str, int], parts: int) -> tuple[int, ...] | str:
    """Return the shape of each of the parts a tensor comes in, or its letters."""
    terms = [re.fullmatch(r"(\d*)(\D?)", term).groups() for term in slot.rule.shape.split()]
    if not all(not letter or letter in dims for _, letter in terms):
        return f"({slot.rule.shape})"
    first, *rest = [int(factor or 1) * dims.get(letter, 1) for factor, letter in terms]
    return (first // parts, *rest)


def _choose_task(slots: list[Slot], keys: Mapping[str, str]) -> tuple[str, list[Slot]]:
    """Return the task a file is for, and the slots such a file must fill."""
    present = {
        slot.rule.part
        for slot in slots
        if any(key in keys for spelling in slot.spellings for key in spelling)
    }
    if "decoder" in present:
        task, wanted = "pretrain", {"encoder", "norm", "decoder"}
    elif "head" in present:
        task, wanted = "classify", {"encoder", "head"}
    else:
        task, wanted = "encoder", {"encoder"} | present
    return task, [slot for slot in slots if slot.rule.part in wanted]


def _match(slots: list[Slot], keys: Mapping[str, str], tensors, dims):
    """Find the tensors of every slot.

    Returns what was found, {ours: (rule, [keys of a layer, ...])}, the short keys that were
    used, and the problems.
    """
    found: dict[str, tuple[Rule, list[list[str]]]] = {}
    used, problems = set(), []
    for slot in slots:
        whole = [names for names in slot.spellings if all(key in keys for key in names)]
        # A tensor of which some parts are missing is reported in the spelling it has most of.
        best = max(slot.spellings, key=lambda names: sum(key in keys for key in names))
        shape = _shape(slot, dims, len(best))
        used |= {key for names in [best, *whole] for key in names if key in keys}
        problems += [f"missing     {key} {shape}" for key in best if key not in keys]
        for names in whole:
            problems += [p for key in names for p in _misfits(keys[key], tensors, shape)]
        for names in whole[1:]:
            first, other = keys[whole[0][0]], keys[names[0]]
            if not np.array_equal(np.asarray(tensors[first]), np.asarray(tensors[other])):
                problems.append(f"doubled     {first} and {other} differ")
        layers = found.setdefault(slot.rule.ours, (slot.rule, []))[1]
        layers.append([keys.get(key, key) for key in (whole or [best])[0]])
    return found, used, problems


def _misfits(name: str, tensors: Mapping[str, Any], shape: tuple[int, ...] | str) -> list[str]:
    tensor = tensors[name]
    if tensor.shape != shape:
        return [f"reshaped    {name} is {tensor.shape}, not {shape}"]
    if tensor.dtype not in FLOATS:
        return [f"mistyped    {name} is {tensor.dtype}, not a float"]
    return []


def _explain(
    rest: Iterable[str], keys: Mapping[str, str], tensors: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Go through the tensors no rule takes: (notes on those that may be left out, problems)."""
    notes, problems = [], []
    for short in sorted(rest, key=_natural):
        key, tensor = keys[short], tensors[keys[short]]
        if KEY_BIAS.search(short):
            if np.asarray(tensor).any():
                problems.append(f"unexpected  {key} is not zero: the model has no bias on keys")
            else:
                notes.append(f"{key} is zero and left out")
        elif POSITIONS.search(short) and _may_be_table(tensor.shape):
            table = np.asarray(tensor).astype(np.float32).reshape(-1, tensor.shape[-1])
            error = np.abs(table - sincos_positions(*table.shape)).max()
            if error < 1e-5:
                notes.append(f"{key} is the sine-cosine table, computed when needed, and left out")
            else:
                problems.append(
                    f"unexpected  {key} is not the sine-cosine table, off by {error:.2g}"
                )
        else:
            problems.append(f"unexpected  {key} {tensor.shape}")
    return notes, problems


def _may_be_table(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and 0 < math.prod(shape) <= MAX_POSITIONS


def _heads(dims, depths, given, said) -> tuple[dict[str, int], list[str]]:
    """Choose the heads of each transformer there is, by the letter of its width."""
    heads, problems = {}, []
    for side, letter, *counts in zip(("encoder", "decoder"), "DE", given, said, strict=True):
        if letter in dims:
            try:
                heads[letter] = choose_heads(side, dims[letter], depths[side], *counts)
            except UserError as problem:
                problems.append(f"heads       {problem}")
    return heads, problems


def _read(rule: Rule, layers: list[list[str]], tensors: Mapping[str, Any], heads: int):
    """Join, cast and lay out the tensors of one of our arrays."""

    def layer(names):
        parts = [np.asarray(tensors[name]).astype(np.float32) for name in names]
        return READ[rule.layout](parts[0] if len(parts) == 1 else np.concatenate(parts), heads)

    if "/blocks/" not in rule.ours:
        return np.ascontiguousarray(layer(layers[0]))
    # One layer at a time: stacking a list would hold every array twice.
    first = layer(layers[0])
    leaf = np.empty([len(layers), *first.shape], np.float32)
    leaf[0] = first
    for index, names in enumerate(layers[1:], start=1):
        leaf[index] = layer(names)
    return leaf


def _natural(text: str) -> list:
    """Sort layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _insert(tree: dict, path: str, leaf: np.ndarray) -> None:
    *folders, name = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[name] = leaf


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _leaves(node, f"{prefix}{name}/")
        else:
            yield prefix + name, node
