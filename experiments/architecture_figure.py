"""Draw docs/architecture.svg, who imports whom, and docs/batch.svg, the path of a batch.

python experiments/architecture_figure.py

Text is dark on light boxes and arrows are grey: both can be read on a white and on a dark page.
"""

from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).parent.parent / "docs"
INK, GREY = "#1d2b36", "#8492a0"
BLUE, GREEN, ORANGE, SAND = "#cfe2f5", "#d3ecd5", "#fbdfbd", "#eceadf"
WIDTH, GAP, LEFT = 520, 12, 10

LAYERS = (
    ("commands", "the command line: options and printing"),
    ("diagnostics", "plan, doctor, benchmarks"),
    ("api", "vm.load, Model"),
    ("interop", "checkpoints of other projects"),
    ("training", "the loop, the step, checkpoints"),
    ("inference", "trained models: scores, features"),
    ("tasks", "what is learned"),
)
ROOMS = (
    ("models", "pure Flax modules"),
    ("augment", "on the device"),
    ("data", "videos to batches"),
    ("devices", "mesh, sharding"),
    ("metrics", "kNN, mAP, top-k"),
    ("pictures", "GIF, PNG, curves"),
)
BASE = "errors, paths, config, host, progress, drawing"

STEPS = (
    (GREEN, "videos", "a list, a folder, packed records"),
    (GREEN, "pipeline", "shuffle, decode, crop: uint8 [b, 16, 224, 224, 3]"),
    (BLUE, "devices", "one array over data and fsdp: uint8 [B, F, H, W, C]"),
    (BLUE, "patchify", "[B, 1568, 1536], still uint8"),
)
BRANCHES = (
    ((ORANGE, "visible", "160 patches"), (SAND, "hidden", "1,408 patches")),
    ((ORANGE, "encoder", "[B, 160, D]"), (SAND, "targets", "normalized pixels")),
    ((ORANGE, "decoder", "1,568 tokens"), None),
)
END = (
    (ORANGE, "loss", "squared error of the hidden patches, as sums"),
    (BLUE, "step", "gradients, AdamW, metrics: one jax.jit"),
)


def box(x: float, y: float, width: float, height: float, color: str, name: str, note: str) -> str:
    """Return a box with a name and, below it or beside it, a note."""
    beside = width > WIDTH / 2
    middle = y + height / 2
    texts = [(x + 14, middle + 5, name, 600), (x + 130, middle + 5, note, 400)]
    if not beside:
        texts = [(x + 14, middle - 4, name, 600), (x + 14, middle + 15, note, 400)]
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    lines = [
        f'<text x="{tx:g}" y="{ty:g}" font-weight="{weight}" fill="{INK}">{escape(text)}</text>'
        for tx, ty, text, weight in texts
    ]
    return "\n".join([f'<rect {place} rx="7" fill="{color}"/>', *lines])


def arrow(x: float, y: float, end: float) -> str:
    """Return a vertical arrow from y down to end."""
    line = f'<path d="M{x:g} {y:g}V{end - 5:g}" stroke="{GREY}" stroke-width="2"/>'
    return f'{line}\n<path d="M{x - 5:g} {end - 6:g}h10l-5 6z" fill="{GREY}"/>'


def picture(height: float, title: str, parts: list[str]) -> str:
    """Return an SVG file."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
            f'width="{WIDTH}" font-family="system-ui, sans-serif" font-size="14">',
            f"<title>{escape(title)}</title>",
            *parts,
            "</svg>\n",
        ]
    )


def layers() -> str:
    """Return the picture of the folders: each imports only from those below."""
    wide, y, parts = WIDTH - 2 * LEFT, 4.0, []
    for name, note in LAYERS:
        parts += [box(LEFT, y, wide, 36, BLUE, name, note), arrow(WIDTH / 2, y + 36, y + 36 + GAP)]
        y += 36 + GAP
    third = (wide - 2 * GAP) / 3
    for place, (name, note) in enumerate(ROOMS):
        row, column = divmod(place, 3)
        color = ORANGE if name == "models" else GREEN if name == "data" else SAND
        x, top = LEFT + column * (third + GAP), y + row * (52 + GAP)
        parts.append(box(x, top, third, 52, color, name, note))
    y += 2 * (52 + GAP)
    parts.append(box(LEFT, y, wide, 36, SAND, "bottom", BASE))
    return picture(y + 40, "Folders of the package; each imports only from those below", parts)


def batch() -> str:
    """Return the picture of the path of a batch in pre-training."""
    wide, y, parts = WIDTH - 2 * LEFT, 4.0, []
    half = (wide - GAP) / 2
    columns = LEFT, LEFT + half + GAP
    for number, step in enumerate(STEPS):
        parts.append(box(LEFT, y, wide, 36, *step))
        ends = [WIDTH / 2] if number < len(STEPS) - 1 else [x + half / 2 for x in columns]
        parts += [arrow(x, y + 36, y + 36 + 2 * GAP) for x in ends]
        y += 36 + 2 * GAP
    for row in BRANCHES:
        for x, cell in zip(columns, row, strict=True):
            if cell:
                parts.append(box(x, y, half, 52, *cell))
            parts.append(arrow(x + half / 2, y + (52 if cell else -2 * GAP), y + 52 + 2 * GAP))
        y += 52 + 2 * GAP
    for number, step in enumerate(END):
        parts.append(box(LEFT, y, wide, 36, *step))
        if number < len(END) - 1:
            parts.append(arrow(WIDTH / 2, y + 36, y + 36 + 2 * GAP))
        y += 36 + 2 * GAP
    return picture(y - 2 * GAP + 4, "The path of a batch in pre-training", parts)


if __name__ == "__main__":
    (DOCS / "architecture.svg").write_text(layers())
    (DOCS / "batch.svg").write_text(batch())
