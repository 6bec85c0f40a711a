"""The commands write to a bucket what they write to a disk, resume there, and load from there."""

import io
import json

import numpy as np
import pytest
from buckets import download, upload
from runs import KINDS, fails, rows

import videomae_jax as vm
from videomae_jax import cli, paths
from videomae_jax.config import load_config
from videomae_jax.data.sources import read_videos
from videomae_jax.inference import resumable
from videomae_jax.inference.evaluate import evaluate
from videomae_jax.inference.extract import extract
from videomae_jax.interop.checkpoint_files import load_checkpoint, read_geometry, save_checkpoint
from videomae_jax.interop.init_from import with_source_geometry

slow = pytest.mark.slow


@pytest.fixture(params=["gcs", pytest.param("s3", marks=slow)])
def bucket(request):
    """A folder in either."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def listed(window_list, bucket):
    """The videos of `window_list`, in a bucket."""
    return f"{upload(window_list.parent, f'{bucket.url}/videos')}/list.csv"


def run(*words):
    cli.main(list(map(str, words)))


def arrays(data: bytes) -> dict[str, np.ndarray]:
    return dict(np.load(io.BytesIO(data)))


def test_features_are_those_of_a_disk_and_a_stopped_command_resumes(
    classifier, window_list, listed, bucket, tmp_path, monkeypatch
):
    folder, *_ = classifier
    out = f"{bucket.url}/out/x.npz"
    how = ["--checkpoint", folder, "--hop=4", "--batch-size=8"]
    run("extract", window_list, *how, "--out", tmp_path / "x.npz")
    monkeypatch.setattr(resumable, "SECONDS", 0.0)
    calls = []
    model = vm.load(folder)
    stopped = extract(
        model._network,
        model.params,
        model.config,
        read_videos(listed),
        out=out,
        hop=4,
        batch_size=8,
        stopped=lambda: calls.append(0) or len(calls) >= 2,
    )
    assert stopped is None and not paths.exists(out)
    before = download(f"{out}.parts")
    assert {"settings.json", "000000.npz", "000001.npz"} <= before.keys()
    run("extract", listed, *how, "--out", out, "--json", f"{bucket.url}/out/x.json")
    assert paths.names(f"{bucket.url}/out") == ["x.json", "x.npz", "x.npz.unreadable.csv"]
    found = arrays(paths.read_bytes(out))
    expected = arrays((tmp_path / "x.npz").read_bytes())
    for name, array in expected.items():
        if name not in ("paths", "facts"):
            np.testing.assert_array_equal(found[name], array)
    assert [path.removeprefix(f"{listed.rpartition('/')[0]}/") for path in found["paths"]] == [
        path.removeprefix(f"{window_list.parent}/") for path in expected["paths"]
    ]
    result = json.loads(paths.read_bytes(f"{bucket.url}/out/x.json"))
    assert result["file"] == out and len(result["unreadable"]) == 2


def test_a_table_that_is_there_is_not_replaced(classifier, listed, bucket, capsys):
    paths.write_whole(f"{bucket.url}/x.npz", b"mine")
    command = ["extract", listed, "--checkpoint", classifier[0], "--out", f"{bucket.url}/x.npz"]
    assert "x.npz exists: give a new name" in fails(capsys, *command)
    assert paths.read_bytes(f"{bucket.url}/x.npz") == b"mine"


@slow
def test_parquet_in_a_bucket(classifier, listed, bucket):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = f"{bucket.url}/x.parquet"
    run("extract", listed, "--checkpoint", classifier[0], "--out", out)
    table = parquet.read_table(io.BytesIO(paths.read_bytes(out)))
    assert table.num_rows and table["path"][0].as_py().startswith(bucket.url)


@slow
def test_a_stopped_evaluation_resumes_in_a_bucket(
    classifier, bucket, tmp_path, monkeypatch, capsys
):
    folder, *_ = classifier
    (tmp_path / "list.csv").write_text(rows("val", KINDS, range(8)) + "\nbad.mp4 roll")
    (tmp_path / "bad.mp4").write_text("")
    there, here = f"{bucket.url}/a", tmp_path / "b"
    monkeypatch.setattr(resumable, "SECONDS", 0.0)

    def command(out):
        options = ["--manifest", tmp_path / "list.csv", "--views=2x1", "--batch-size=8"]
        results = ["--out", out, "--json", f"{out}.json"]
        return [*map(str, ["evaluate", "--checkpoint", folder, *options, *results])]

    calls = []
    model = vm.load(folder)
    stopped = evaluate(
        model._network,
        model.params,
        model.config,
        read_videos(tmp_path / "list.csv"),
        source=str(folder),
        views="2x1",
        batch_size=8,
        out=there,
        stopped=lambda: calls.append(0) or len(calls) >= 2,
    )
    assert stopped is None
    saved = len(paths.names(f"{there}/scores")) - 1
    assert 1 <= saved < 4
    cli.main(command(there))
    assert f"{8 * saved} videos were scored before" in capsys.readouterr().out
    cli.main(command(here))
    found = download(there)
    assert {name for name in found if "/" not in name} == {
        path.name for path in here.iterdir() if path.is_file()
    }
    assert found["confusion.csv"] == (here / "confusion.csv").read_bytes()
    assert found["unreadable.csv"] == (here / "unreadable.csv").read_bytes()
    assert paths.read_bytes(f"{there}.json") == (tmp_path / "b.json").read_bytes()
    assert "views 2x1, this command has 1x1" in fails(capsys, *command(there), "--views=1x1")


FILES = {"native": "run", "mcg": "model.pth", "safetensors": "model.safetensors", "hf": "model"}


@pytest.mark.parametrize(
    "to", ["hf", *(pytest.param(to, marks=slow) for to in ("native", "mcg", "safetensors"))]
)
def test_a_model_goes_into_a_bucket_and_back(classifier, bucket, to, capsys):
    folder, params, config = classifier
    address = f"{bucket.url}/models/{FILES[to]}"
    run("convert", folder, address, "--to", to)
    assert f"wrote {address} ({to})" in capsys.readouterr().out
    said = fails(capsys, "convert", folder, address, "--to", to)
    assert f"{address} exists: give a new path" in said
    how = dict(frames=4, image_size=16, num_heads=config.model.encoder.heads)
    found = load_checkpoint(address, **how)
    if to != "native":
        assert address in found.report and "/tmp" not in found.report
    for name, leaf in params["encoder"]["blocks"]["mlp"]["fc1"].items():
        np.testing.assert_array_equal(found.params["encoder"]["blocks"]["mlp"]["fc1"][name], leaf)
    video = np.random.default_rng(0).integers(0, 255, (1, 4, 16, 16, 3), dtype=np.uint8)
    loaded = vm.load(address, **how)
    expected = np.asarray(vm.load(folder).features(video))
    np.testing.assert_allclose(loaded.features(video), expected, atol=1e-5)
    if to in ("native", "hf"):  # the other files do not say their heads
        assert read_geometry(address)["model.patch"] == tuple(config.model.patch)


def test_a_training_run_copies_its_start_once(classifier, bucket, monkeypatch):
    """Its geometry is read before its weights."""
    address = f"{bucket.url}/models/model.safetensors"
    run("convert", classifier[0], f"{bucket.url}/models", "--to", "hf")
    asked = []
    read = paths.read_bytes
    monkeypatch.setattr(paths, "read_bytes", lambda path, *a: asked.append(path) or read(path, *a))
    for _ in range(2):
        config = with_source_geometry(
            load_config("finetune:b,custom", [f"--config.init_from={bucket.url}/models"]), set()
        )
        assert config.clip.frames == 4 and config.clip.height == 16
        load_checkpoint(config.init_from)
    assert asked.count(address) == 2  # once for each run, as another may be there


@slow
def test_a_file_of_several_parts_and_a_damaged_one(classifier, bucket, tmp_path):
    checkpoint = load_checkpoint(str(classifier[0]))
    save_checkpoint(str(tmp_path / "hf"), checkpoint, to="hf")
    url = upload(tmp_path / "hf", f"{bucket.url}/hf")
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tmp_path / "hf/model.safetensors")
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / part)
        paths.write_whole(f"{url}/{part}", (tmp_path / part).read_bytes())
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    paths.write_whole(f"{url}/model.safetensors.index.json", json.dumps(index))
    paths.remove(f"{url}/model.safetensors")
    found = load_checkpoint(url)
    expected = load_checkpoint(str(tmp_path / "hf"))
    for one, other in zip(
        *(map(np.asarray, _leaves(c.params)) for c in (found, expected)), strict=1
    ):
        np.testing.assert_array_equal(one, other)
    paths.write_whole(f"{url}/two.safetensors", b"\0" * 100)
    with pytest.raises(vm.UserError, match=rf"^{url}/two.safetensors is not a valid") as error:
        load_checkpoint(url)
    assert "/tmp" not in str(error.value)


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


@slow
def test_predictions_and_pictures_in_a_bucket(classifier, pretrained, listed, bucket, capsys):
    url, video = bucket.url, f"{listed.rpartition('/')[0]}/long.mp4"
    run("predict", video, "--checkpoint", classifier[0], "--json", f"{url}/out/p.json")
    assert f"{video}  (" in capsys.readouterr().out
    (found,) = json.loads(paths.read_bytes(f"{url}/out/p.json"))
    assert found["video"] == video and found["top"]
    with pytest.raises(SystemExit):
        run("predict", f"{video}x", "--checkpoint", classifier[0])
    assert f"cannot read {video}x: no such object" in capsys.readouterr().err
    picture = f"{url}/out/p.png"
    run("visualize", "--checkpoint", pretrained, video, "--out", picture, "--max-frames=4")
    assert paths.read_bytes(picture).startswith(b"\x89PNG")
    assert vm.read_clip(video, frames=4, size=16).shape == (4, 16, 16, 3)


@slow
def test_a_detector_and_its_files_in_a_bucket(detector, listed, bucket, tmp_path):
    url, video = bucket.url, f"{listed.rpartition('/')[0]}/long.mp4"
    boxes = "long,0,0.1,0.1,0.5,0.9,1,0\nlong,2,0.2,0.1,0.5,0.9,2,0\n"
    paths.write_whole(f"{url}/videos/boxes.csv", boxes)
    files = ["--out", f"{url}/o/d.mp4", "--detections", f"{url}/o/d.csv"]
    command = ["predict", video, "--checkpoint", detector[0], "--boxes"]
    run(*command, f"{url}/videos/boxes.csv", *files, "--json", f"{url}/o/d.json")
    assert {"d.mp4", "d.csv", "d.json"} == set(paths.names(f"{url}/o"))
    assert vm.read_clip(f"{url}/o/d.mp4", frames=4, size=16).shape == (4, 16, 16, 3)
    manifest = f"{url}/videos/boxes.csv"
    run("evaluate", "--checkpoint", detector[0], "--manifest", manifest, "--out", f"{url}/e")
    assert {"classes.csv", "classes.png", "detections.csv", "scores"} <= set(
        paths.names(f"{url}/e")
    )
    run("data", "check", manifest, "--out", f"{url}/c")
    assert paths.read_bytes(f"{url}/c/boxes.png").startswith(b"\x89PNG")
    run("data", "pack", manifest, f"{url}/packed")
    run("evaluate", "--checkpoint", detector[0], "--manifest", f"{url}/packed", "--out", f"{url}/f")
    found = (paths.read_bytes(f"{url}/{name}/detections.csv") for name in "ef")
    assert len({text.count(b"\n") for text in found}) == 1


def test_a_denied_bucket_is_one_line(classifier, listed, bucket, tmp_path, capsys):
    bucket.faults.status = 403
    model = ["--checkpoint", classifier[0]]
    for command in (
        ["evaluate", *model, "--manifest", listed],
        ["extract", listed, *model, "--out", tmp_path / "x.npz"],
        ["predict", listed.replace("list.csv", "long.mp4"), *model],
        ["convert", classifier[0], f"{bucket.url}/a.pth"],
        ["convert", f"{bucket.url}/a.pth", tmp_path / "a"],
        ["data", "check", listed],
    ):
        said = fails(capsys, *command)
        assert "access denied" in said and "check the credentials" in said, said
