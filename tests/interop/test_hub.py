"""hf:// addresses, against a stand-in for the API of the hub on 127.0.0.1."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from golden import DATA
from hub_server import TOKEN
from ml_collections import ConfigDict
from runs import fails

import videomae_jax as vm
from videomae_jax import cli
from videomae_jax.commands.options import name_checkpoint
from videomae_jax.config import load_config_and_given
from videomae_jax.errors import UserError
from videomae_jax.interop.checkpoint_files import load_checkpoint, read_geometry, save_checkpoint
from videomae_jax.interop.hub import Address, download, parse_address
from videomae_jax.interop.init_from import with_source_geometry
from videomae_jax.interop.publish import first_source, read_scores
from videomae_jax.training.checkpoint import load_params, save_params


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of transformers, {name: content}, with code in it."""
    folder = tmp_path_factory.mktemp("folder") / "hf"
    source = load_checkpoint(
        str(DATA / "finetune_tiny_deepspeed.pth"), num_heads=3, frames=8, image_size=64
    )
    save_checkpoint(str(folder), source, to="hf")
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    return content | {"modeling_tiny.py": b"raise SystemExit('this was run')", "tf.h5": b"0"}


@pytest.fixture(autouse=True)
def forgets_requests(hub):
    hub.requests.clear()


@pytest.mark.parametrize(
    "text, address",
    [
        ("hf://a/b", Address("a/b")),
        ("hf://a/b.c-d/", Address("a/b.c-d")),
        ("hf://a/b@v1.0", Address("a/b", "v1.0")),
        ("hf://a/b@refs/pr/3/x/y.pth", Address("a/b", "refs/pr/3", "x/y.pth")),
        ("hf://a/b/x/y.pth", Address("a/b", "", "x/y.pth")),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["hf://a", "hf://a/b@", "hf://a/b/../c", "hf:///b", "hf://a/b@x@y"]
)
def test_addresses_of_another_form_are_refused(text):
    with pytest.raises(UserError, match="is no address of the hub: give hf://OWNER/NAME"):
        parse_address(text)


def test_a_model_is_downloaded_once_and_its_code_never(hub, files, capsys):
    commit = hub.add("lab/tiny", files, licence="cc-by-nc-4.0")
    m = vm.load("hf://lab/tiny")
    assert capsys.readouterr().err.strip() == (
        f"hf://lab/tiny is hf://lab/tiny@{commit}, licence: cc-by-nc-4.0"
    )
    expected = load_checkpoint(str(DATA / "finetune_tiny_deepspeed.pth"), num_heads=3)
    assert np.array_equal(m.params["head"]["kernel"], expected.params["head"]["kernel"])
    assert m.config.init_from == f"hf://lab/tiny@{commit}"
    assert name_checkpoint("hf://lab/tiny", m.config) == f"hf://lab/tiny@{commit}"
    assert name_checkpoint("runs/tiny", m.config) == "runs/tiny"
    loaded = {request.rpartition("/")[2] for request in hub.requests if "GET /lab/" in request}
    assert loaded == {"model.safetensors", "config.json", "preprocessor_config.json"}
    hub.requests.clear()
    assert read_geometry(f"hf://lab/tiny@{commit}")["model.encoder.width"] == 48
    assert not [request for request in hub.requests if "resolve" in request]


def test_a_file_a_folder_or_the_only_file_of_a_repository(hub, files):
    weights = (DATA / "finetune_tiny_deepspeed.pth").read_bytes()
    half = {"deep/x.pth": weights, "deep/preprocessor_config.json": b'{"image_mean": 0.25}'}
    hub.add("lab/one", half | {"notes.txt": b""})
    inside = {f"deep/{name}": content for name, content in files.items()}
    hub.add("lab/many", inside | half | {"y.pth": weights, "z.bin": weights})
    params = load_checkpoint("hf://lab/one", num_heads=3).params
    for address in ("hf://lab/many/deep", "hf://lab/many/y.pth", "hf://lab/many@main/z.bin"):
        found = load_checkpoint(address, num_heads=3)
        assert np.array_equal(found.params["head"]["kernel"], params["head"]["kernel"])
    # The files beside it are downloaded too.
    assert load_checkpoint("hf://lab/one", num_heads=3).config.model.mean == (0.25,) * 3
    with pytest.raises(UserError, match=r"holds \d files .* give one, hf://lab/many@main/deep/mod"):
        load_checkpoint("hf://lab/many@main")


def test_the_parts_of_an_index_are_downloaded(hub, files):
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    parts = {f"model-0000{n}-of-00002.safetensors": b"" for n in (1, 2)}
    hub.add("lab/parts", parts | {"model.safetensors.index.json": json.dumps(index).encode()})
    folder = Path(download("hf://lab/parts").path)
    assert {file.name for file in folder.iterdir()} == {*parts, "model.safetensors.index.json"}


def test_a_pickle_that_would_run_code_is_refused(hub, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", f"cos\nmkdir\n(S'{tmp_path}/owned'\ntR.")
        archive.writestr("archive/version", "3\n")
    hub.add("lab/evil", {"x.pth": (tmp_path / "x.pth").read_bytes()})
    with pytest.raises(UserError, match="names os.mkdir, which is not allowed and was not run"):
        load_checkpoint("hf://lab/evil")
    assert not (tmp_path / "owned").exists()


def test_every_problem_is_one_line(hub, files, tmp_path, capsys):
    hub.add("lab/gated", files, gated=True)
    hub.add("lab/secret", files, private=True)
    hub.add("lab/readme", {"README.md": b"", "modeling.py": b""})
    hub.add("lab/branches", files)
    hub.repositories["lab/branches"].commit(files, branch="release-1")
    for address, cause in (
        ("lab/none", "no such repository, or it is private: check the name, or log in with `hf a"),
        ("lab/secret", "no such repository, or it is private"),
        ("lab/gated", f"access to it is restricted: accept its conditions at {hub.url}/lab/gated"),
        ("lab/readme", "holds no weights: none of its files ends in .safetensors or .pth"),
        ("lab/readme/modeling.py", "is no file of weights: give one of .safetensors, .pth"),
        ("lab/branches@release1", "no such revision: use main or release-1; did you mean 'releas"),
        ("lab/branches/model.safetensor", "does not exist in the repository; did you mean 'model"),
    ):
        assert cause in fails(capsys, "convert", f"hf://{address}", tmp_path / "x"), address


def test_the_token_opens_a_private_repository(hub, files, monkeypatch):
    hub.add("lab/private", files, private=True)
    with pytest.raises(UserError, match="it is private"):
        download("hf://lab/private")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert Path(download("hf://lab/private").path, "model.safetensors").is_file()


def test_without_a_connection_the_cache_is_used(hub, files, monkeypatch, capsys):
    from huggingface_hub import constants

    commit = hub.add("lab/cached", files)
    hub.add("lab/new", files)
    path = download("hf://lab/cached").path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for address in ("hf://lab/cached", f"hf://lab/cached@{commit}"):
        assert download(address)[:2] == (path, Address("lab/cached", commit))
    load_checkpoint("hf://lab/cached")
    assert "from the cache: the hub was not reached" in capsys.readouterr().err
    for address in ("hf://lab/new", "hf://lab/cached@v2"):
        with pytest.raises(UserError, match="not in the cache, .*, and HF_HUB_OFFLINE forbids"):
            download(address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.broken = True
    try:
        assert download("hf://lab/cached").path == path
        with pytest.raises(UserError, match="and http://127.0.0.1:.* answers 503: try again"):
            download("hf://lab/new")
    finally:
        hub.broken = False
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert download("hf://lab/cached").path == path
    with pytest.raises(UserError, match="http://127.0.0.1:1 cannot be reached: check"):
        download("hf://lab/new")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'videomae_jax\[hub\]'"):
        download("hf://lab/tiny")


def test_a_run_stores_the_commit_and_keeps_it(hub, files, tmp_path, capsys):
    old = hub.add("lab/moving", files)

    def config(address, workdir):
        flags = [f"--config.init_from={address}"]
        given = load_config_and_given("finetune:b,custom", flags)
        return with_source_geometry(*given, workdir=workdir)

    first = config("hf://lab/moving", None)
    assert first.init_from == f"hf://lab/moving@{old}"
    said = capsys.readouterr().out
    assert f"hf://lab/moving is hf://lab/moving@{old}" in said and "width 768 -> 48" in said
    run = tmp_path / "run"
    save_params(str(run), {"x": np.zeros(3, np.float32)}, first)
    new = hub.repositories["lab/moving"].commit({"README.md": b"new"})
    assert config("hf://lab/moving", None).init_from == f"hf://lab/moving@{new}"
    # The same command resumes with the commit of its start, and asks nobody.
    hub.requests.clear()
    assert config("hf://lab/moving", str(run)).init_from == f"hf://lab/moving@{old}"
    assert config(f"hf://lab/moving@{new}", str(run)).init_from == f"hf://lab/moving@{new}"
    assert not hub.requests


@pytest.fixture
def run(tmp_path):
    """A work directory with scores, that started from a model of the hub."""
    params, config, *_ = load_checkpoint(
        str(DATA / "finetune_tiny_deepspeed.pth"), num_heads=3, frames=8, image_size=64
    )
    config = config.copy_and_resolve_references()
    config.data.class_names = tuple("abcdefghij")
    start = tmp_path / "start"
    config.init_from = "hf://lab/tiny"
    save_params(str(start), params, config)
    config.init_from, config.data.train = str(start), "/home/me/secret/train.csv"
    save_params(str(tmp_path / "run"), params, config)
    rows = [
        {"step": 1, "eval/loss": 2.0, "eval/top1": 0.1},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval/loss": 1.0, "eval/top1": 0.625, "eval/top5": 1.0},
    ]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "run/metrics.jsonl").write_text(lines)
    (tmp_path / "run/classes.csv").write_text("label,name,train,held_out\n0,a,7,2\n1,b,1,1\n")
    return tmp_path / "run"


def test_a_run_is_pushed_with_its_card_and_comes_back(
    hub, files, run, tmp_path, capsys, monkeypatch
):
    hub.add("lab/tiny", files, licence="cc-by-nc-4.0")
    said = fails(capsys, "convert", run, "hf://me/actions", "--to", "hf")
    assert "refuses access (401)" in said and "a token that may write there" in said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    measured = tmp_path / "measured.json"
    score = dict(value=0.5, low=0.4, high=0.6, count=100)
    measured.write_text(json.dumps(dict(top1=score, top5=score, protocol="5x3 views of 100")))
    cli.main(["convert", str(run), "hf://me/actions", "--to", "hf", "--scores", str(measured)])
    repository = hub.repositories["me/actions"]
    commit = repository.refs["main"]
    assert f"wrote hf://me/actions@{commit} (hf)" in capsys.readouterr().out
    assert repository.private
    assert repository.commits[commit].keys() == {
        *("README.md", "config.json", "preprocessor_config.json", "model.safetensors"),
    }
    assert any("PUT /objects/" in request for request in hub.requests)
    card = repository.commits[commit]["README.md"].decode()
    for line in (
        'license: "cc-by-nc-4.0"',
        'base_model: "lab/tiny"',
        "pipeline_tag: video-classification",
        "| data | train.csv: 8 labels, 3 held out |",
        "| top-1 | 62.5% | one clip of each held-out video, during training |",
        "| top-1 | 50.0% | 5x3 views of 100 |",
        "| classes | 10: a, b, c, d, e, f, g, h, i, j |",
        'm = vm.load("hf://me/actions")',
        "what that one forbids is forbidden here too",
    ):
        assert line in card, line
    assert "secret" not in card
    params, _ = load_params(str(run))
    back = load_checkpoint("hf://me/actions")
    assert np.array_equal(back.params["head"]["kernel"], params["head"]["kernel"])
    assert back.labels == tuple("abcdefghij")


def test_a_card_that_is_there_is_kept(hub, run, monkeypatch, capsys):
    hub.add("me/kept", {"README.md": b"mine"}, licence="mit")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    cli.main(["convert", str(run), "hf://me/kept", "--to", "native", "--licence", "mit"])
    assert "README.md, which was kept" in capsys.readouterr().out
    repository = hub.repositories["me/kept"]
    content = repository.commits[repository.refs["main"]]
    assert content["README.md"] == b"mine" and not repository.private
    # A work directory, of which orbax reads links into the cache.
    params, _ = load_params(str(run))
    back = load_checkpoint("hf://me/kept").params
    assert np.array_equal(back["head"]["kernel"], params["head"]["kernel"])


def test_what_cannot_be_pushed(hub, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for arguments, cause in (
        (["hf://me/x", "--to", "mcg"], "holds a folder: use --to hf or native"),
        (["hf://me/x/file"], "has a path in the repository: give hf://me/x"),
        (["hf://others/x", "--licence", "mit"], "refuses access (403)"),
        (["hf://me"], "is no address of the hub"),
        ([tmp_path / "x", "--licence", "mit"], "for the card of a model that is pushed: leave"),
    ):
        assert cause in fails(capsys, "convert", run, *arguments)
    with pytest.raises(UserError, match="`videomae convert` writes there"):
        save_checkpoint("hf://me/x", load_checkpoint(str(run)), to="hf")
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(UserError, match="has no protocol"):
        read_scores(str(run), str(tmp_path / "no.json"))
    assert not (tmp_path / "x").exists() and "me/x" not in hub.repositories


def test_a_step_has_the_scores_of_its_time(run):
    assert read_scores(f"{run}/checkpoints/1", None) == {
        "one clip of each held-out video, during training": {"top1": 0.1}
    }


def test_a_run_whose_name_is_a_number_is_no_step(run):
    numbered = run.rename(run.with_name("4711"))
    assert read_scores(str(numbered), None) == {
        "one clip of each held-out video, during training": {"top1": 0.625, "top5": 1.0}
    }


def test_a_run_from_random_weights_has_no_source_in_the_current_directory(run, monkeypatch):
    monkeypatch.chdir(run)
    assert first_source(ConfigDict({"init_from": str(run)})) == "hf://lab/tiny"
    assert first_source(ConfigDict({"init_from": ""})) == ""


def test_a_file_of_others_has_no_recipe_in_its_card(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    path = DATA / "finetune_tiny_deepspeed.pth"
    cli.main(["convert", str(path), "hf://me/copied", "--num-heads", "3"])
    repository = hub.repositories["me/copied"]
    card = repository.commits[repository.refs["main"]]["README.md"].decode()
    assert "| made from | a file of others |" in card and "epochs" not in card
    assert "have a licence of their own" in card and "license:" not in card
    assert "None were measured" in card
