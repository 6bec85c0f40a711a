"""The documentation names files that exist, and commands, options and keys that still do."""

import re
from pathlib import Path

import jax
import pytest
from documented import FENCE, ROOT, Reader, all_options, blocks, commands, extras, read, spans

from videomae_jax.config import flatten, load_config
from videomae_jax.errors import UserError
from videomae_jax.models.flops import finetune_flops
from videomae_jax.models.vit import SIZES
from videomae_jax.tasks import pretrain

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")})
PAGES = [page for page in PAGES if "_build" not in page.parts]
PAGES += sorted(ROOT.glob("docs/tutorials/*.ipynb"))
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
TOP = "configs|data|docs|examples|experiments|launch|tests|videomae_jax"
PATH = re.compile(rf"`((?:(?:{TOP})/[\w./-]+)|[a-z_]+/[a-z_]+\.py)`")
# Each key of a config is in one of these.
RECIPES = (
    "demo",
    "pretrain:s,custom",
    "pretrain:s,ssv2,amd",
    "contrast:b,k400",
    "finetune:s,custom",
    "probe:linear,s,custom",
    "detect:b,ava",
)
# What pages name without the program: options of sbatch, of pytest and of other implementations
# of VideoMAE, and the name of a file.
FOREIGN = {"--time", "--signal", "--ff", "--lf", "--1"}
FOREIGN |= {"--data_set", "--nb_classes", "--update_freq", "--accum_iter"}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_that_are_named_exist(page):
    """From the root of the repository, or modules from that of the package."""
    for path in PATH.findall(read(page)):
        if "NAME" not in path:
            assert (ROOT / path).exists() or (ROOT / "videomae_jax" / path).exists(), path


@pytest.fixture
def reader(monkeypatch, capsys):
    return Reader(monkeypatch, capsys)


@pytest.mark.parametrize("page", [*PAGES, *WORKFLOWS], ids=name)
def test_the_parsers_of_the_commands_in_blocks_know_them(page, reader):
    for block in blocks(page):
        for command in commands(block):
            reader.read(command, whole=True)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_parsers_of_the_commands_in_sentences_know_them(page, reader):
    for span in spans(page):
        for command in commands(span):
            reader.read(command, whole=False)


@pytest.fixture(scope="module")
def known():
    """All options of `videomae`, and all keys of configs."""
    keys = {key for recipe in RECIPES for key in flatten(load_config(recipe))}
    return all_options() | FOREIGN | {f"--config.{key}" for key in [*keys, "KEY"]}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_and_keys_that_are_named_alone_exist(page, known):
    for span in spans(page):
        if span.startswith("--"):
            options = re.findall(r"(?<!\S)--[\w.-]+", span)
            assert set(options) <= known, span


@pytest.mark.parametrize(
    "command",
    [
        "videomae evaluate --checkpoint RUN --manifest LIST --viewz 2x1",
        "videomae benchmark --what walk",
        "videomae train --config=demo --workdir=RUN --config.sterps=2",
        "videomae benchmark --config.clip.frame=8",
        "videomae train --config=demo",
        "make tests",
        "make study FORM=long",
        "make demo VIDEOS=mine",
        "python experiments/gone.py",
        "python experiments/detection.py --rate 3",
        "python experiments/scaling.py compile",
        "python experiments/paper_page.py --out docs",
        "python -m experiments.study.run --form long",
        "pip install -e '.[gcp]'",
        "launch/local.bash 1 WORKDIR",
        "launch/local.sh 1 WORKDIR --config=pretrain:b,custom --config.data.trains=VIDEOS",
    ],
)
def test_a_command_that_no_longer_exists_is_found(command, reader):
    (words,) = commands(command)
    with pytest.raises((AssertionError, UserError)):
        reader.read(words, whole=True)


def test_commands_are_found_in_pages():
    """Behind a prompt, with others in a line, and over two lines."""
    text = (
        "$ A=1 make demo && pip install .  # or\n  .venv/bin/videomae doctor \\\n    RUN | less\n"
    )
    assert commands(text) == [
        ["make", "demo"],
        ["pip", "install", "."],
        [".venv/bin/videomae", "doctor", "RUN"],
    ]


def test_every_extra_is_explained():
    text = "".join(map(read, PAGES))
    found = [extra for extra in extras() if re.search(rf"\[{extra}\]|`{extra}`", text)]
    assert len(found) > 5 and found == extras()


def test_every_picture_of_the_pages_is_made_by_a_script_that_is_named():
    table = (ROOT / "experiments/README.md").read_text()
    pictures = [path for path in ROOT.glob("docs/**/*.png") if "_build" not in path.parts]
    unknown = [name(path) for path in pictures if path.name not in table]
    assert len(pictures) >= 5 and unknown == []


def table_below(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table of a section, without its head."""
    section = page.read_text().partition(f"\n{heading}\n")[2]
    lines = [line for line in section.partition("\n#")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_sizes_is_what_the_models_have():
    rows = table_below(ROOT / "README.md", "## Sizes")
    assert [row[0] for row in rows] == ["s", "b", "l", "h", "g"]
    for size, *cells in rows:
        config = load_config(f"pretrain:{size},k400{',v2' * (size == 'g')}")
        task = pretrain.build_task(config)
        params = jax.eval_shape(task.init, jax.random.key(0))
        encoder, both = (
            sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params["encoder"], params)
        )
        frames, height, width = config.model.patch
        tokens = 16 // frames * (224 // height) * (224 // width)
        values = 3 * frames * height * width
        encode, _ = finetune_flops(SIZES[size].encoder, tokens=tokens, values=values, classes=0)
        found = [encoder / 1e6, both / 1e6, encode / 1e9, task.train_flops / 1e9]
        assert cells == [f"{x:,.{digits}f}" for x, digits in zip(found, (1, 1, 0, 0), strict=True)]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900
