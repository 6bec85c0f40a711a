"""Convert parameters between our names, shapes and layouts and those of other projects.

Three families of files contain the same numbers: the releases of MCG-NJU ("mcg": V1 and V2,
pre-training and fine-tuning), transformers ("hf") and MMAction2 ("mm"). `TABLE` and `BLOCK`
give the name and the layout of each of our layers in the others; both directions of the
conversion use them. Matching is strict: every tensor that does not fit is reported at once.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from videomae_jax.data.ava_classes import AVA_CLASSES
from videomae_jax.errors import UserError
from videomae_jax.models.tokens import Triple, sincos_positions
from videomae_jax.models.vit import SIZES, Size

DIALECTS = {"mcg": "MCG-NJU release", "hf": "transformers", "mm": "MMAction2"}
TASKS = ("detect", "classify")  # of files with a head, which the names do not always tell apart

# A row: our name | layout | their shape | their name in mcg, hf, mm ("" if there is none).
# The layouts "norm", "linear" and "conv" have a weight and a bias, the others are one tensor.
# Shapes: D, E widths of encoder and decoder; M, N widths of their MLPs (W and H in BLOCK);
# C channels; t h w the patch; P values of a patch; K classes.
# Names: # is the layer; {a,b} are tensors concatenated along the first axis; a|b two spellings.
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
# Tensors without a row, which can be left out: positions only if they have these values.
KEY_BIAS = re.compile(r"\.(key\.bias|k_bias)$")  # any: it does not change the softmax
POSITIONS = re.compile(r"(^|\.)(pos_embed|position_embeddings)$")  # the sine-cosine table
# Prefixes of wrappers: torch.compile, DistributedDataParallel, V2, MMAction2, and Lightning and
# V2's own code on the hub ("model.").
PREFIXES = re.compile(r"^((_orig_mod|module|backbone|model)\.)+")
# Keys of files under which the model is; the first that is there is read.
WRAPPERS = ("model", "module", "state_dict", "model_ema", "state_dict_ema")
MAX_WRAPPERS = 4  # a pickle can make a dict that contains itself
MAX_DEPTH = 200  # the deepest published has 40
MAX_POSITIONS = 1 << 23  # values of a position table; 32 frames at 384 pixels have 7 million
FLOATS = {np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)}


class Rule(NamedTuple):
    """One of our arrays: path, layout, and its shape and names in other files, see `TABLE`."""

    ours: str
    layout: str
    shape: str
    names: dict[str, str]

    @property
    def part(self) -> str:
        """The part of the model: encoder, norm (the encoder's last), decoder, fc_norm or head."""
        first, second, *_ = f"{self.ours}/".split("/")
        if first == "encoder":
            return "norm" if second == "norm" else "encoder"
        return first if first in ("fc_norm", "head") else "decoder"

    @property
    def width(self) -> str:
        """The letter of the width that is split into heads."""
        return "E" if self.part == "decoder" else "D"


# From their weight [out, ...] of one layer to ours; heads: of the encoder or decoder.
READ = {
    "same": lambda x, heads: x,
    "flat": lambda x, heads: x.reshape(-1),
    "dense": lambda x, heads: x.T,
    "heads": lambda x, heads: x.reshape(heads, -1),
    "qkv": lambda x, heads: x.T.reshape(x.shape[1], 3, heads, -1),
    "conv": lambda x, heads: x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]),
}
# From ours to theirs, of the given shape.
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
    """The keys of one rule in one layer of a file, for each spelling."""

    rule: Rule
    spellings: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class LoadTable:
    """What every tensor of a file was converted to; `str` gives the table to print."""

    title: str
    rows: tuple[tuple[str, str], ...]  # our name and shape, their names and shape
    notes: tuple[str, ...]

    def __str__(self) -> str:
        left = max((len(ours) for ours, _ in self.rows), default=0)
        rows = [f"  {ours:{left}}  <-  {theirs}" for ours, theirs in self.rows]
        return "\n".join([self.title, *rows, *(f"  note: {note}" for note in self.notes)])


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """The model in a file, by the names and shapes of its tensors.

    task: "pretrain", "classify", "detect", or "encoder" for an encoder alone. dialect: a key of
    `DIALECTS`. decoder: None if there is none. classes: 0 without a head. table: its rows are
    those of the tensors that were converted.
    """

    task: str
    dialect: str
    encoder: Size
    decoder: Size | None
    patch: Triple
    channels: int
    classes: int
    table: LoadTable


class Matches(NamedTuple):
    """The tensors of a file that make up each of our arrays.

    arrays: by our path, the rule and for each layer the keys of the tensors. heads: by the letter
    of the width.
    """

    arrays: dict[str, tuple[Rule, list[list[str]]]]
    heads: dict[str, int]


def to_native(
    tensors: Mapping[str, Any],
    *,
    source: str = "the file",
    task: str | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    config_heads: tuple[int | None, int | None] = (None, None),
) -> tuple[dict[str, Any], ModelFacts]:
    """Convert the tensors of a file to our parameters, float32; return them and the model.

    See `match_tensors` for the arguments and errors.
    """
    facts, matches = match_tensors(
        tensors,
        source=source,
        task=task,
        num_heads=num_heads,
        decoder_num_heads=decoder_num_heads,
        config_heads=config_heads,
    )
    params: dict[str, Any] = {}
    rows = []
    for ours, (rule, layers) in matches.arrays.items():
        leaf = _read(rule, layers, tensors, matches.heads[rule.width])
        _insert(params, ours, leaf)
        theirs = " + ".join(name.replace(".0.", ".#.", 1) for name in layers[0])
        rows.append((f"{ours} {list(leaf.shape)}", f"{theirs} {tensors[layers[0][0]].shape}"))
    table = dataclasses.replace(facts.table, rows=tuple(rows))
    return params, dataclasses.replace(facts, table=table)


def match_tensors(
    tensors: Mapping[str, Any],
    *,
    source: str = "the file",
    task: str | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    config_heads: tuple[int | None, int | None] = (None, None),
) -> tuple[ModelFacts, Matches]:
    """Find the model that the tensors of a file are, and the tensors of each of our arrays.

    Only a few small tensors are read. tensors: by name; any objects with a shape and a dtype that
    `np.asarray` accepts. task: one of `TASKS`, what a file with a head is; None decides, see
    `_choose_task`. num_heads, decoder_num_heads: needed for sizes that are not published, because
    no tensor has that axis. config_heads: both, from a config in the same folder. Raises UserError
    that lists every missing, unexpected, duplicate or wrongly shaped key.
    """
    keys, problems = _strip(tensors)
    dialect, drop = _detect(keys)
    depths = {part: _depth(part, dialect, drop, keys) for part in ("encoder", "decoder")}
    slots = [slot for rule in RULES for slot in _slots(rule, dialect, drop, depths)]
    outputs = _dimensions(slots, keys, tensors).get("K")
    task, slots = _choose_task(slots, keys, dialect, given=task, outputs=outputs, source=source)
    dims = _dimensions(slots, keys, tensors)

    arrays, used, misfits = _match(slots, keys, tensors, dims)
    notes, unexpected = _explain(keys.keys() - used, keys, tensors)
    heads, wrong_heads = _heads(dims, depths, (num_heads, decoder_num_heads), config_heads)
    if task == "pretrain" and "encoder/norm/scale" not in arrays and not misfits:
        notes.append(
            "the encoder has no final norm, as in transformers with use_mean_pooling true; it is "
            "used without one"
        )
    required = ("encoder", "decoder") if task == "pretrain" else ("encoder",)
    empty = [f"missing     every block of the {part}" for part in required if not depths[part]]
    if problems := [*problems, *misfits, *empty[:1], *unexpected, *wrong_heads]:
        title = f"{source} does not fit ({DIALECTS[dialect]} names, {task}):"
        raise UserError("\n  ".join([title, *sorted(problems, key=_natural)]))

    names = [name for _, layers in arrays.values() for layer in layers for name in layer]
    dtypes = {str(tensors[name].dtype) for name in names}
    if dtypes != {"float32"}:
        notes.append(f"{', '.join(sorted(dtypes))} became float32")
    if task == "encoder":
        notes.append("an encoder only: the file holds no decoder and no head")
        if "fc_norm/scale" in arrays:
            notes.append("features are the mean token after fc_norm, as in V2's code on the hub")
    decoder = None
    if task == "pretrain":
        decoder = Size(dims["E"], depths["decoder"], heads["E"], dims["N"])
    title = (
        f"{source}: {DIALECTS[dialect]} names, {task}, {len(used)} tensors in {len(arrays)} arrays"
    )
    facts = ModelFacts(
        task=task,
        dialect=dialect,
        encoder=Size(dims["D"], depths["encoder"], heads["D"], dims["M"]),
        decoder=decoder,
        patch=(dims["t"], dims["h"], dims["w"]),
        channels=dims["C"],
        classes=dims["K"] if task in TASKS else 0,
        table=LoadTable(title, (), tuple(notes)),
    )
    return facts, Matches(arrays, heads)


def from_native(params: Mapping[str, Any], dialect: str, *, patch: Triple) -> dict[str, np.ndarray]:
    """Return our parameters with the names and layouts of a dialect: float32 arrays by key.

    All spellings of a tensor are written. patch: (frames, height, width), which the shape of our
    embedding matrix does not show. The heads of contrastive pre-training and of AMD, which have
    served, are left out. Raises UserError for parameters without a name in the dialect.
    """
    leaves = {
        path: np.asarray(leaf)
        for path, leaf in _leaves(params)
        if not path.startswith(("projector/", "predictor/", "feature_heads/"))
    }
    if any("/cross/" in path for path in leaves):
        raise UserError(
            f"{DIALECTS[dialect]} has no decoder with cross-attention, which "
            "model.decoder_attention=cross has: use native, or stablehlo for the features"
        )
    if dialect == "mcg" and "decoder/norm/scale" in leaves and "encoder/norm/scale" not in leaves:
        raise UserError(
            f"{DIALECTS[dialect]} has no pre-training model without the encoder's final norm: use "
            "hf or native"
        )
    if dialect != "mcg" and "fc_norm/scale" in leaves and "head/kernel" not in leaves:
        raise UserError(f"{DIALECTS[dialect]} has no fc_norm without a head: use mcg or native")
    if dialect != "mcg" and "head/kernel" in leaves and "fc_norm/scale" not in leaves:
        raise UserError(
            f"{DIALECTS[dialect]} has no action detector: use mcg, safetensors or native"
        )
    is_trained_on_labels = "fc_norm/scale" in leaves or "head/kernel" in leaves
    drop = "encoder." if dialect == "mcg" and is_trained_on_labels else ""
    dims = _native_dimensions(leaves, patch)
    tensors: dict[str, np.ndarray] = {}
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
        # Its recognizer has a backbone and a head; the names in the table are inside these.
        return {k if k.startswith("cls_head.") else f"backbone.{k}": x for k, x in tensors.items()}
    return tensors


def choose_heads(
    side: str, width: int, depth: int, given: int | None, from_config: int | None = None
) -> int:
    """Return the number of heads of an encoder or decoder: given, from a config, or published.

    Raises UserError for a number that contradicts the published sizes, for an unknown one, and
    for one that does not divide the width.
    """
    flag = "--num-heads" if side == "encoder" else "--decoder-num-heads"
    published: dict[int, tuple[int, str]] = {}
    for name, size in SIZES.items():
        part = getattr(size, side)
        # "tiny" is our own size: models of others may have its width with other heads.
        if name != "tiny" or part.depth == depth:
            published.setdefault(part.width, (part.heads, name))
    heads = from_config if given is None else given
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
            f"the {side} has width {width}, no published size ({', '.join(map(str, published))}), "
            f"and no tensor shows its heads: give {flag} N "
            f"(in Python {flag[2:].replace('-', '_')}=N)"
        )
    if heads < 1 or width % heads:
        below = [n for n in range(1, min(width, max(heads, 1)) + 1) if width % n == 0]
        raise UserError(f"{heads} heads do not divide the {side}'s {width}: use {below[-1]}")
    return heads


def find_tensors(tree: Any, *, source: str) -> tuple[dict[str, np.ndarray], str]:
    """Find the model in the content of a .pth; return its tensors and the keys they are under.

    The content is the model itself, or a dict with the model under one of `WRAPPERS` next to the
    optimizer and others.
    """
    where: list[str] = []
    while isinstance(tree, dict) and len(where) < MAX_WRAPPERS:
        inner = [key for key in WRAPPERS if isinstance(tree.get(key), dict) and tree[key]]
        if not inner:
            break
        where.append(inner[0])
        tree = tree[inner[0]]
    if not isinstance(tree, dict) or not any(isinstance(v, np.ndarray) for v in tree.values()):
        raise UserError(f"{source} holds no model: no dict of tensors, bare or under 'model'")
    tensors = {
        key: value
        for key, value in tree.items()
        if isinstance(key, str) and isinstance(value, np.ndarray)
    }
    return tensors, ".".join(where)


def _strip(tensors: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Map each key without its prefixes to the key itself; list those that collide."""
    keys: dict[str, str] = {}
    problems = []
    for key in tensors:
        short = PREFIXES.sub("", key)
        if short in keys:
            problems.append(f"doubled     {key} and {keys[short]} are the same tensor")
        keys[short] = key
    return keys, problems


def _detect(keys: Mapping[str, str]) -> tuple[str, str]:
    """Return the dialect of most keys, and the prefix that its names lack in this file.

    Fine-tuned releases lack "encoder.", a bare VideoMAEModel lacks "videomae.".
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
    """Yield the slot of a rule in each layer, or without depths one slot with # as the layer."""
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
    """Count the layers of which a file has any tensor."""
    name = next(r.names[dialect] for r in RULES if r.ours.startswith(f"{part}/blocks"))
    root = re.escape(name.removeprefix(drop).partition("#")[0])
    layers = {m[1] for m in (re.match(rf"{root}(\d+)\.", key) for key in keys) if name and m}
    if len(layers) > MAX_DEPTH:
        raise UserError(
            f"{len(layers)} blocks in the {part}: more than {MAX_DEPTH} are no VideoMAE"
        )
    return len(layers)


def _dimensions(
    slots: list[Slot], keys: Mapping[str, str], tensors: Mapping[str, Any]
) -> dict[str, int]:
    """Return the value of each letter of the shapes, by a majority vote of the tensors.

    With a vote, only the one wrong tensor is reported, not all that disagree with it.
    """
    votes: dict[str, Counter] = {}
    for slot in slots:
        letters = _terms(slot.rule.shape)
        for names in slot.spellings:
            if not all(k in keys for k in names):
                continue
            shape = tensors[keys[names[0]]].shape
            if len(shape) != len(letters):
                continue
            for axis, ((factor, letter), size) in enumerate(zip(letters, shape, strict=True)):
                size = size * len(names) if axis == 0 else size
                if letter and size and size % factor == 0:
                    votes.setdefault(letter, Counter())[size // factor] += 1
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
    """Return the shape of each part of a tensor, or its letters if one of them is unknown."""
    terms = _terms(slot.rule.shape)
    if any(letter and letter not in dims for _, letter in terms):
        return f"({slot.rule.shape})"
    first, *rest = [factor * dims.get(letter, 1) for factor, letter in terms]
    return (first // parts, *rest)


def _terms(shape: str) -> list[tuple[int, str]]:
    """Parse "3W 1 W" as [(3, "W"), (1, ""), (1, "W")]."""
    return [
        (int(factor or 1), letter)
        for term in shape.split()
        for factor, letter in re.findall(r"^(\d*)(\D?)", term)
    ]


def _choose_task(
    slots: list[Slot],
    keys: Mapping[str, str],
    dialect: str,
    *,
    given: str | None,
    outputs: int | None,
    source: str,
) -> tuple[str, list[Slot]]:
    """Return the task of a file, and the slots that such a file must fill.

    A released action detector has `norm` and `head` and no `fc_norm`. So has a classifier that
    does not pool its tokens, which is no model of ours: only the number of outputs tells them
    apart. Raises UserError if it does not, and the user did not say the task.
    """
    present = {
        slot.rule.part
        for slot in slots
        if any(key in keys for spelling in slot.spellings for key in spelling)
    }
    has_head = "head" in present and "decoder" not in present
    if given and not (has_head and (given == "classify" or dialect == "mcg")):
        kind = "action detector" if given == "detect" else "classifier"
        raise UserError(f"{source} holds no {kind}: leave out --task {given}")
    if "decoder" in present:
        # Only transformers makes such models without the encoder's final norm.
        norm = present & {"norm"} if dialect == "hf" else {"norm"}
        task, wanted = "pretrain", {"encoder", "decoder"} | norm
    elif "head" in present or (dialect != "mcg" and "fc_norm" in present):
        task = given or "classify"
        if not given and dialect == "mcg" and "norm" in present and "fc_norm" not in present:
            if outputs not in (None, len(AVA_CLASSES)):
                raise UserError(
                    f"{source} has norm and head, but no fc_norm, and {outputs} outputs, not "
                    f"the {len(AVA_CLASSES)} of AVA: if it is an action detector, convert it to a "
                    "work directory with --task detect (in Python task='detect')"
                )
            task = "detect"
        wanted = {"encoder", "head", "norm" if task == "detect" else "fc_norm"}
    else:
        task, wanted = "encoder", {"encoder"} | present
    return task, [slot for slot in slots if slot.rule.part in wanted]


def _match(
    slots: list[Slot],
    keys: Mapping[str, str],
    tensors: Mapping[str, Any],
    dims: Mapping[str, int],
) -> tuple[dict[str, tuple[Rule, list[list[str]]]], set[str], list[str]]:
    """Find the tensors of every slot: (`Matches.arrays`, the short keys used, the problems)."""
    found: dict[str, tuple[Rule, list[list[str]]]] = {}
    used: set[str] = set()
    problems: list[str] = []
    for slot in slots:
        whole = [names for names in slot.spellings if all(key in keys for key in names)]
        # An incomplete tensor is reported in the spelling of which most parts are there.
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
    """Check the tensors without a rule: (notes on those that can be left out, problems)."""
    notes, problems, key_biases = [], [], []
    for short in sorted(rest, key=_natural):
        key, tensor = keys[short], tensors[keys[short]]
        if KEY_BIAS.search(short):
            key_biases.append(key)
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
    if key_biases:
        notes.append(
            f"biases on keys ({len(key_biases)}, such as {key_biases[0]}) are left out, exactly: "
            "each adds one number to all scores of a query, and the softmax does not change"
        )
    return notes, problems


def _may_be_table(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and 0 < math.prod(shape) <= MAX_POSITIONS


def _heads(
    dims: Mapping[str, int],
    depths: Mapping[str, int],
    given: tuple[int | None, int | None],
    from_config: tuple[int | None, int | None],
) -> tuple[dict[str, int], list[str]]:
    """Return the heads of the encoder and the decoder by the letter of the width, and problems."""
    heads, problems = {}, []
    for index, (side, letter) in enumerate((("encoder", "D"), ("decoder", "E"))):
        if letter in dims:
            try:
                heads[letter] = choose_heads(
                    side, dims[letter], depths[side], given[index], from_config[index]
                )
            except UserError as problem:
                problems.append(f"heads       {problem}")
    return heads, problems


def _read(
    rule: Rule, layers: list[list[str]], tensors: Mapping[str, Any], heads: int
) -> np.ndarray:
    """Concatenate, cast and lay out the tensors of one of our arrays."""

    def layer(names):
        parts = [np.asarray(tensors[name]).astype(np.float32) for name in names]
        return READ[rule.layout](parts[0] if len(parts) == 1 else np.concatenate(parts), heads)

    if "/blocks/" not in rule.ours:
        return np.ascontiguousarray(layer(layers[0]))
    # One layer at a time: stacking a list would need the memory twice.
    first = layer(layers[0])
    leaf = np.empty([len(layers), *first.shape], np.float32)
    leaf[0] = first
    for index, names in enumerate(layers[1:], start=1):
        leaf[index] = layer(names)
    return leaf


def _natural(text: str) -> list:
    """Sort layer 2 before layer 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


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
