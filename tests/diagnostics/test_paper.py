"""The commands of the paper's tables: each parses, and its config, model and step can be built."""

import argparse
import functools
import importlib.util
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from videomae_jax import cli
from videomae_jax.config import flatten
from videomae_jax.devices.sharding import make_mesh
from videomae_jax.diagnostics import paper, plan
from videomae_jax.diagnostics.paper_tables import TABLES

ROOT = Path(__file__).parents[2]
ROWS = {f"{name} {row.name}": row for name, table in TABLES.items() for row in table.rows}
RUNS = {run.name: run for row in ROWS.values() for run in paper.chain(row.runs)}
# Keys that change no shape of a step, beside those of data and of the learning rate.
SHAPELESS = r"name|init_from|data\..*|epochs|warmup_epochs|(base_|min_)?lr|views|layer_decay"


@functools.cache
def shape_key(run: paper.Run) -> tuple:
    """Return what the shapes of the step of a run depend on."""
    values = flatten(paper.run_config(run)).items()
    return tuple((key, value) for key, value in values if not re.fullmatch(SHAPELESS, key))


DISTINCT = list({shape_key(run): run for run in RUNS.values()}.values())
# One of each recipe; all of them take minutes.
FAST = {run.config.partition(":")[0]: run for run in DISTINCT}


def test_names_are_unique():
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
    for row in ROWS.values():
        assert all(RUNS[run.name] == run for run in paper.chain(row.runs))


@functools.cache
def parsed(command: str) -> argparse.Namespace:
    """Return the arguments of a command line, of which nothing runs."""
    seen = []
    parse = argparse.ArgumentParser.parse_known_args

    def parse_only(parser, *arguments, **options):
        args, rest = parse(parser, *arguments, **options)
        if "run" in args:
            args.run = seen.append
        return args, rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli._Parser, "parse_known_args", parse_only)
        cli.main(shlex.split(command)[1:])
    return seen[0]


def test_every_command_parses_and_reads_only_what_those_before_it_wrote():
    written_by = ("val", "workdir", "target")
    for row in ROWS.values():
        written = set()
        for command in paper.row_commands(row):
            args = vars(parsed(command))
            paths = set(re.findall(r"\$WORK/[\w.-]+", command))
            made = {args[name] for name in written_by if args.get(name)}
            out = args.get("out") or []  # several pictures of `visualize`
            made |= {out} if isinstance(out, str) else set(out)
            assert paths - made <= written, command
            assert re.match("pretrain|contrast|convert", command) or made or "--json" in command
            written |= made


def test_every_training_is_built():
    for run in RUNS.values():
        assert paper.run_task(run).train_flops > 0
        cost = paper.run_cost(run)
        assert cost.hours > 0 and cost.decoded > 0


def trace(run: paper.Run) -> None:
    """Trace the training step of a run on one device, and check what it returns."""
    config, task = paper.run_config(run), paper.run_task(run)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    clips = config.batch_size * config.repeats
    with jax.set_mesh(mesh):
        traced = plan.trace_step(
            config, task, mesh, clips=clips, examples=paper.DATASETS[run.data].train
        )
    state, metrics = traced.out_info
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, params)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("run", FAST.values(), ids=lambda run: run.name)
def test_the_step_of_a_recipe_has_shapes(run):
    trace(run)


@pytest.mark.slow
@pytest.mark.parametrize("run", DISTINCT, ids=lambda run: run.name)
def test_the_step_of_every_run_has_shapes(run):
    trace(run)


def test_the_published_costs_of_a_view_are_those_of_the_closed_form():
    compared = 0
    for row in ROWS.values():
        # AVA is evaluated on more than the view of which the paper gives the cost.
        if row.runs and "GFLOPs" in row.published and row.runs[0].data != "ava":
            multiplies = paper.view_flops(row.runs[0]) / 2e9
            assert multiplies == pytest.approx(row.published["GFLOPs"], rel=1e-3, abs=0.5)
            compared += 1
    assert compared == 12


@pytest.mark.parametrize("size", "sblh")
def test_the_published_parameters_are_those_of_the_models(size):
    row = ROWS[f"k400 {size}"]
    params = jax.eval_shape(paper.run_task(row.runs[0]).init, jax.random.key(0))
    millions = sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6
    assert millions == pytest.approx(row.published["M parameters"], rel=1e-2)


def test_costs_add_up():
    (row,) = (row for row in TABLES["masks"].rows if row.name == "tube-90-ssv2")
    pretrained, finetuned = paper.chain(row.runs)
    # 800 and 50 epochs of whole batches.
    assert paper.run_cost(pretrained).decoded == 800 * (169_000 // 2048) * 2048
    assert paper.run_cost(finetuned).decoded == 50 * (169_000 // 512) * 512
    clip = paper.run_task(pretrained).train_flops
    assert paper.run_cost(pretrained).flops == 800 * (169_000 // 2048) * 2048 * clip
    whole = paper.row_cost(row)
    views = 20_000 * 2 * 3 * paper.view_flops(finetuned)
    parts = [paper.run_cost(run).flops for run in (pretrained, finetuned)]
    assert whole.flops == pytest.approx(sum(parts) + views)
    assert whole.decoded == 20_000 + sum(paper.run_cost(r).decoded for r in (pretrained, finetuned))


def test_a_fine_tuning_takes_the_stride_of_its_start_unless_it_has_its_own():
    named = {run.name: paper.run_config(run) for run in RUNS.values()}
    assert named["ucf101-from-b-k400-e1600"].clip.stride == 4
    assert named["hmdb51-from-b-k400-e1600"].clip.stride == 2
    assert named["hmdb51-from-b-hmdb51-e4800"].clip.stride == 2


def test_the_page_is_that_of_the_rows():
    """After a change: python experiments/paper_page.py."""
    spec = importlib.util.spec_from_file_location("page", ROOT / "experiments/paper_page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert (ROOT / "docs/paper.md").read_text() == page.text()
