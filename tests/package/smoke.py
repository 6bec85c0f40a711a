"""Run every command of the installed package once on real clips; needs no pytest.

    python tests/package/smoke.py CHECKOUT OUT

CHECKOUT holds data/mocap_studio and tests/files; OUT, a new folder, takes everything written.
A deprecated call of JAX, Flax, Optax or Orbax is an error, as it is under pytest.
"""

import importlib
import os
import pkgutil
import shutil
import sys
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# JAX has computed before the second `videomae train`: it could no longer be connected to others.
os.environ["JAX_NUM_PROCESSES"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Compiling takes most of the time.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

for library in ("jax", "flax", "optax", "orbax", "videomae_jax"):
    warnings.filterwarnings("error", category=DeprecationWarning, module=rf"{library}(\.|$)")

import numpy as np  # noqa: E402

import videomae_jax as vm  # noqa: E402
from videomae_jax import cli  # noqa: E402

KINDS = ("jump", "roll", "walk")
CLIP = [f"--config.clip.{key}" for key in ("frames=4", "height=16", "width=16")]
SMALL = [
    *CLIP,
    "--config.model.patch=(2,8,8)",
    "--config.model.encoder.depth=1",
    "--config.batch_size=4",
    "--config.warmup_steps=1",
    "--config.log_every=1",
]
PRETRAIN = ["--config=demo", *SMALL]
PRETRAIN += ["--config.model.decoder.depth=1", "--config.model.positions=1d"]
FINETUNE = ["--config=finetune:tiny,custom", *SMALL, "--config.views=1x1"]
# A module that only PyTorch's own interpreter runs.
SKIPPED = {"videomae_jax.diagnostics.peer_torch"}


def run(*arguments) -> None:
    print("videomae", *arguments, flush=True)
    cli.main(list(map(str, arguments)))


def import_everything() -> None:
    for module in pkgutil.walk_packages(vm.__path__, "videomae_jax."):
        if module.name not in SKIPPED:
            importlib.import_module(module.name)


def use_data(clips: Path, out: Path) -> None:
    for kind in KINDS:
        (out / "videos" / kind).mkdir(parents=True)
        for path in sorted((clips / "train" / kind).iterdir())[:4]:
            shutil.copy(path, out / "videos" / kind)
    train, val = out / "train.csv", out / "val.csv"
    run("data", "list", out / "videos", "--out", train, "--val", val, "--holdout", 0.25)
    run("data", "check", train, "--against", val)
    assert len((out / "train_check/clean.csv").read_text().splitlines()) == 9
    for form in ("mp4", "jpeg"):
        run("data", "pack", train, out / form, "--format", form, "--short-side", 64)


def use_training(out: Path) -> None:
    lists = [f"--config.data.train={out}/train.csv", f"--config.data.eval={out}/val.csv"]
    pretrain = ["train", *PRETRAIN, f"--workdir={out}/pretrained", *lists]
    run(*pretrain, "--config.steps=3")
    run(*pretrain, "--config.steps=4")  # resumes
    packed = [f"--config.data.train={out}/jpeg", "--config.data.eval=", "--config.data.holdout=0"]
    run("train", *PRETRAIN, *packed, f"--workdir={out}/packed", "--config.steps=2")
    finetune = ["train", *FINETUNE, *lists, f"--config.init_from={out}/pretrained"]
    names = [f"--config.model.classes={len(KINDS)}", f"--config.data.class_names={KINDS}"]
    run(*finetune, *names, f"--workdir={out}/classifier", "--config.steps=2")


def use_checkpoints(out: Path) -> None:
    video = next((out / "videos/walk").iterdir())
    pretrained, classifier = (
        [f"--checkpoint={out}/{name}"] for name in ("pretrained", "classifier")
    )
    for name in ("film.gif", "film.mp4", "sheet.png"):
        run("visualize", video, *pretrained, "--out", out / name)
    run("evaluate", *classifier, "--manifest", out / "val.csv", "--json", out / "eval.json")
    run("predict", video, *classifier)
    for name in ("features.npz", "features.parquet"):
        run("extract", out / "val.csv", *pretrained, "--out", out / name)
    run("knn", *pretrained, "--train", out / "train.csv", "--eval", out / "val.csv", "--k", 1)

    clip = np.random.default_rng(0).integers(0, 256, (1, 4, 16, 16, 3), np.uint8)
    for source in ("pretrained", "classifier"):
        features = vm.load(out / source).features(clip)
        for form, name in (("mcg", "x.pth"), ("hf", "hf"), ("safetensors", "x.safetensors")):
            there, back = out / f"{source}_{name}", out / f"{source}_{form}_native"
            run("convert", out / source, there, "--to", form)
            heads = ["--num-heads", 4, "--decoder-num-heads", 2] if form != "hf" else []
            run("convert", there, back, *heads, "--frames", 4, "--image-size", 16)
            np.testing.assert_array_equal(vm.load(back).features(clip), features)
    run("convert", out / "classifier", out / "served", "--to", "stablehlo")


def use_golden(files: Path) -> None:
    golden = np.load(files / "finetune_tiny.npz")
    model = vm.load(files / "finetune_tiny_deepspeed.pth", num_heads=3)
    np.testing.assert_allclose(
        model.logits(golden["video_uint8"]), golden["logits"], rtol=1e-3, atol=1e-5
    )


def main(checkout: Path, out: Path) -> None:
    print(vm.__file__, flush=True)
    import_everything()
    use_data(checkout / "data/mocap_studio", out)
    use_training(out)
    use_checkpoints(out)
    use_golden(checkout / "tests/files")
    run("plan", *PRETRAIN, f"--config.data.train={out}/train.csv", "--topology", "here")
    run("doctor")
    run("benchmark", "--model", "tiny", "--batch", 1, "--repeats", 3, *CLIP)
    feed = ["--seconds", 0.5, f"--config.data.train={out}/mp4", "--config.data.eval="]
    run("data", "benchmark", *PRETRAIN, *feed)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
