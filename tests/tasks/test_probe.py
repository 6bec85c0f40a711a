"""Probes: heads beside each other as if alone, on an encoder that does not move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import KINDS, fails, held_out, losses, rows

from videomae_jax import cli
from videomae_jax.config import load_config
from videomae_jax.devices.sharding import make_mesh, path_name, state_sharding
from videomae_jax.models.probe import Head
from videomae_jax.tasks import probe
from videomae_jax.training.checkpoint import load_params
from videomae_jax.training.optim import make_optimizer
from videomae_jax.training.step import make_state
from videomae_jax.training.workdir import read_metrics

TINY = [
    "--config.clip.frames=4",
    *(f"--config.clip.{side}=16" for side in ("height", "width")),
    *(f"--config.clip.source_{side}=20" for side in ("height", "width")),
    "--config.model.encoder.depth=1",
    "--config.batch_size=8",
    "--config.log_every=1",
]


def arguments(workdir, start, *more, head="linear", steps=6):
    return [
        "train",
        f"--config=probe:{head},tiny,custom",
        f"--workdir={workdir}",
        f"--config.init_from={start}",
        f"--config.steps={steps}",
        *TINY,
        *map(str, more),
    ]


@pytest.fixture(scope="module")
def probed(tmp_path_factory, pretrained, labelled):
    """A linear probe with two heads."""
    workdir = tmp_path_factory.mktemp("probed")
    two = ["--config.rates=(0.5,2.0)", "--config.save_every=3"]
    cli.main(arguments(workdir, pretrained, *labelled, *two))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_heads_trained_together_are_heads_trained_alone(
    head,
    probed,
    pretrained,
    labelled,
    tmp_path,
):
    def train(rates):
        workdir = tmp_path / f"{rates}"
        cli.main(arguments(workdir, pretrained, *labelled, f"--config.rates={rates}", head=head))
        return load_params(str(workdir))[0]

    together = load_params(str(probed))[0] if head == "linear" else train((0.5, 2.0))
    moved = np.abs(together["heads"]["linear"]["kernel"]).max(axis=(1, 2))
    assert moved[1] > 2 * moved[0] > 0
    alone = train((2.0,))
    assert set(alone["heads"]) == ({"linear"} if head == "linear" else {"linear", "query", "value"})
    # Products of two heads are summed in another order than those of one.
    jax.tree.map(
        lambda one, both: np.testing.assert_allclose(one[0], both[1], atol=1e-5),
        alone["heads"],
        together["heads"],
    )


@pytest.mark.slow
def test_the_encoder_stays_bit_for_bit_and_has_no_moments(probed, pretrained):
    before, after = (load_params(str(path))[0]["encoder"] for path in (pretrained, probed))
    assert "norm" in after
    jax.tree.map(np.testing.assert_array_equal, before, after)
    config = load_config("probe:attentive,s,k400", ["--config.model.classes=400"])
    task = probe.build_task(config)
    optimizer = make_optimizer(config, task)
    state = jax.eval_shape(lambda: make_state(task, optimizer, seed=0))
    leaves = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert not [name for name in leaves if "blocks" in name or "embed" in name]
    assert sum("heads/value" in name for name in leaves) == 2  # the two moments
    shardings = state_sharding(state, make_mesh(dict(data=2, fsdp=4, tensor=1)))
    assert len(jax.tree.leaves(shardings)) == len(jax.tree.leaves(state))


@pytest.mark.slow
def test_every_rate_is_reported_and_the_best_is_named(probed):
    (row,) = held_out(probed)
    every = {rate: row[f"eval/top1_x{rate:g}"] for rate in (0.5, 2.0)}
    assert row["eval/top1"] == max(every.values()) == every[row["eval/best_rate"]]
    first = next(row for row in read_metrics(probed) if "loss" in row)
    assert first["loss"] == pytest.approx(np.log(3))  # three classes, heads of zeros


def test_the_best_rate_is_the_first_of_the_best():
    sums = {"count": 4.0, "error": 0.0}
    for rate, right, error in ((0.1, 2, 8), (1.0, 3, 4), (10.0, 3, 2)):
        sums |= {f"top1_x{rate:g}": float(right), f"error_x{rate:g}": float(error)}
    found = probe.summarize(sums, rates=(0.1, 1.0, 10.0))
    assert (found["top1"], found["best_rate"], found["loss"]) == (0.75, 1.0, 1.0)
    assert list(found)[0] == "loss" and found["top1_x0.1"] == 0.5
    assert probe.summarize({"count": 4.0, "error": 12.0}, rates=(0.1, 1.0)) == {"loss": 1.5}


def test_a_query_attends_as_keys_and_values_of_every_token_would():
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 8))
    head = Head("attentive", 3, 2)
    params = head.init(jax.random.key(1), tokens)["params"]
    params["linear"]["kernel"] = jax.random.normal(jax.random.key(2), (8, 3))
    # A cross-attention with key matrices that give the folded queries: q_h K_h = query_h.
    keys = jax.random.normal(jax.random.key(3), (2, 8, 4))
    queries = jax.vmap(lambda k, q: jnp.linalg.lstsq(k, q)[0])(keys, params["query"])
    folded = dict(params, query=jnp.einsum("hwd,hd->hw", keys, queries))
    every_key = jnp.einsum("bnw,hwd->bnhd", tokens, keys)
    every_value = jnp.einsum("bnw,whd->bnhd", tokens, params["value"])
    weights = jax.nn.softmax(jnp.einsum("bnhd,hd->bhn", every_key, queries) * 8**-0.5)
    pooled = jnp.einsum("bhn,bnhd->bhd", weights, every_value).reshape(2, 8)
    logits = head.apply({"params": folded}, tokens)
    np.testing.assert_allclose(logits, pooled @ params["linear"]["kernel"], atol=1e-5)


@pytest.mark.slow
def test_a_resumed_probe_goes_on_bit_for_bit(
    probed,
    pretrained,
    labelled,
    tmp_path,
):
    (tmp_path / "checkpoints").mkdir()
    (probed / "checkpoints/3").rename(tmp_path / "checkpoints/3")
    two = "--config.rates=(0.5,2.0)"
    cli.main(arguments(tmp_path, pretrained, *labelled, two))
    ours, theirs = (load_params(str(path))[0] for path in (tmp_path, probed))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert losses(tmp_path) == {s: v for s, v in losses(probed).items() if s > 3}
    assert held_out(tmp_path) == held_out(probed)


@pytest.mark.slow
def test_mistakes_are_one_line(probed, pretrained, labelled, tmp_path, capsys):
    def says(*more, start=pretrained):
        return fails(capsys, *arguments(tmp_path / "run", start, *labelled, *more))

    assert "config.init_from is not set" in says(start="")
    assert "use linear or attentive" in says("--config.model.head=bilinear")
    assert "rates is (1.0, 1.0)" in says("--config.rates=(1.0,1.0)")
    assert "rates is ()" in says("--config.rates=()")
    said = says("--config.model.encoder.width=64")
    assert "another model, of " in said and "blocks of width 64: encoder/" in said
    # What a probe leaves is of no other use, and names what is.
    said = says(start=probed)
    assert f"holds probes of the encoder of {pretrained}: give that one" in said
    clip = f"{rows('val', KINDS[:1], [0]).split()[0]}"
    assert "metrics.jsonl" in fails(capsys, "predict", clip, "--checkpoint", probed)
    other = arguments(probed, pretrained, *labelled, "--config.rates=(0.5,)", steps=9)
    assert "rates=(0.5, 2.0), the config says (0.5,)" in fails(capsys, *other)
    none = tmp_path / "none.csv"
    none.write_text(rows("train", KINDS, range(2), label=lambda _: ""))
    assert "has no labels" in says(f"--config.data.train={none}")


@pytest.mark.slow
def test_heads_of_several_labels_are_compared_by_map(pretrained, tmp_path):
    lines = rows("train", KINDS, range(4)).splitlines()
    lines[0] += "|walk"
    (tmp_path / "list.csv").write_text("\n".join(lines))
    data = [f"--config.data.{part}={tmp_path}/list.csv" for part in ("train", "eval")]
    two = "--config.rates=(0.5,2.0)"
    cli.main(arguments(tmp_path / "run", pretrained, *data, two, steps=3))
    (row,) = held_out(tmp_path / "run")
    every = {rate: row[f"eval/map_x{rate:g}"] for rate in (0.5, 2.0)}
    assert row["eval/map"] == max(every.values()) == every[row["eval/best_rate"]]
    assert "eval/top1" not in row
    first = next(row for row in read_metrics(tmp_path / "run") if "loss" in row)
    assert first["loss"] == pytest.approx(np.log(2))  # heads of zeros
