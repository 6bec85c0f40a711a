"""`videomae data benchmark`: the rates of the stages, and whether a step is fed."""

import json

import pytest
from videos import write_video

from videomae_jax.cli import main
from videomae_jax.config import load_config
from videomae_jax.diagnostics.feeding import Feeding, Rate, verdict

SMALL = ["--config=pretrain:tiny,custom", "--config.data.holdout=0", "--seconds=0.2"]
SMALL += [f"--config.clip.{side}=32" for side in ("height", "width")]
SMALL += ["--config.clip.frames=4", "--config.clip.stride=2"]
SMALL += [f"--config.model.{part}.depth=1" for part in ("encoder", "decoder")]


def measure(tmp_path, source, *flags):
    out = tmp_path / "out.json"
    main(["data", "benchmark", *SMALL, f"--config.data.train={source}", f"--json={out}", *flags])
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of nine videos, one of them text."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(8):
        write_video(folder / f"{index}.mp4", count=20, shift=17 * index)
    (folder / "text.mp4").write_text("dear diary")
    return folder


def check(got, *, stages):
    assert list(got["rates"]) == stages and got["needed"] > 0
    for name, rate in got["rates"].items():
        assert rate["clips"] > 0 and rate["bytes"] > 0
        assert (rate["core"] is None) == (name == "transfer")
    # What arrives is uint8 clips and a few numbers for each.
    together = got["rates"]["together"]
    assert together["bytes"] / together["clips"] == pytest.approx(4 * 32 * 32 * 3, rel=0.01)
    assert got["fed"] == (together["clips"] >= got["needed"])
    assert got["verdict"].startswith("fed" if got["fed"] else "starved")


ALL = ["read", "decode", "augment", "transfer", "together"]


@pytest.mark.slow
def test_files_and_their_memory(tmp_path, videos, capsys):
    got = measure(tmp_path, videos, "--config.data.memory_gb=1", "--config.data.max_bad_share=0.5")
    check(got, stages=ALL)
    assert got["packed"] is None and got["memory_share"] == 1
    size = sum(file.stat().st_size for file in videos.glob("?.mp4")) / 8
    read = got["rates"]["read"]
    assert read["bytes"] / read["clips"] == pytest.approx(size, rel=0.3)  # and ten bytes of text
    assert got["verdict"] in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("format", ["jpeg", "mp4"])
def test_packed_records_and_repeats(tmp_path, videos, format):
    packed = tmp_path / "packed"
    flags = [f"--format={format}", "--short-side=48", "--clip-frames=8"]
    main(["data", "pack", str(videos), str(packed), *flags])
    got = measure(tmp_path, packed, "--config.repeats=2", "--config.data.max_bad_share=0.5")
    check(got, stages=ALL)
    assert got["packed"] == format and got["step_clips"] == 16


@pytest.mark.slow
def test_synthetic_clips_are_neither_read_nor_cut(tmp_path):
    check(measure(tmp_path, "synthetic"), stages=["transfer", "together"])


def feeding(*, together, needed=100.0, packed=None, **changes):
    rates = dict(read=9e4, decode=50.0, augment=900.0, transfer=5e3, together=together)
    rates = {name: Rate(rate, rate, rate) for name, rate in rates.items()}
    whole = dict(step_clips=8, cores=2, threads=2, packed=packed, memory_share=None)
    return Feeding(rates=rates, needed=needed, **whole | changes)


@pytest.mark.parametrize(
    "found,begins,holds",
    [
        (feeding(together=150), "fed: 150 clips/s for the 100", "1.5 x"),
        (feeding(together=105), "fed, but only just", "pack the videos"),
        (feeding(together=40), "starved: 40 clips/s", "wait 60% of the time"),
        (feeding(together=40), "starved", "pack the videos (videomae data pack), or use 6 cores"),
        (feeding(together=40, packed="mp4"), "starved", "slowest stage: use 6 cores instead of 2"),
        (feeding(together=40, threads=1), "starved", "data.threads=0"),
    ],
)
def test_the_verdict_says_what_to_change(found, begins, holds):
    config = load_config("pretrain:tiny,custom")
    sentence = verdict(config, found)
    assert sentence.startswith(begins) and holds in sentence
    assert ("slowest" in sentence) == (found.rates["together"].clips < 110)
