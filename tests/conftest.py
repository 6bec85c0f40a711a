"""Every test runs on eight emulated CPU devices, and a deprecated call is a failure."""

import os
import sys
import tempfile
from importlib.metadata import version

# Before anything imports TensorFlow: its start-up notes would drown a failure's report.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling takes most of the time of these small models: a third of all is saved.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):
    FAST += " --xla_cpu_use_fusion_emitters=false"  # a third again; 0.12 has no such flag
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}"
# JAX runs before a test calls `videomae train`, and could no longer be connected to others.
os.environ["JAX_NUM_PROCESSES"] = "1"

import jax  # noqa: E402
import numpy as np  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# Many tests compile the same step, some of them in a process of its own: compile it once.
COMPILED = tempfile.TemporaryDirectory(prefix="videomae_compiled_")
if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

import pytest  # noqa: E402
from buckets import bucket, gcs, gcs_server, s3, s3_server  # noqa: E402, F401
from hub_server import Hub  # noqa: E402
from runs import CLASSIFIER, CLIPS, DETECTOR, KINDS, SMALL, rows  # noqa: E402
from videos import write_video  # noqa: E402

from videomae_jax.config import load_config  # noqa: E402
from videomae_jax.tasks import classify, detect, pretrain  # noqa: E402
from videomae_jax.training.checkpoint import save_params  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def clear_caches():
    """Return `jax.clear_caches`, which itself does nothing during the tests.

    A run calls it before its first step; in one process the next run would compile all again.
    """
    with pytest.MonkeyPatch.context() as patch:
        clear = jax.clear_caches
        patch.setattr(jax, "clear_caches", lambda: None)
        yield clear


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """Four clips of each of three classes to train on; two of them held out, one clip each."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "train.csv").write_text(rows("train", KINDS, range(4)))
    # Alphabetical numbers within this list would be others: roll 0, walk 1.
    (folder / "val.csv").write_text(rows("val", KINDS[1:], [0]))
    return [f"--config.data.train={folder}/train.csv", f"--config.data.eval={folder}/val.csv"]


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, labelled):
    """A folder like that of a pre-training run, with random weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    config = load_config(SMALL[0].partition("=")[2], [*SMALL[1:], *labelled])
    save_params(str(folder), pretrain.build_task(config).init(jax.random.key(0)), config)
    return folder


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A classifier with random weights: (folder, params, config)."""
    folder = tmp_path_factory.mktemp("classifier")
    config = load_config("finetune:tiny,custom", CLASSIFIER)
    params = classify.build_task(config).init(jax.random.key(0))
    # The head begins almost at zero: all videos alike.
    params["head"]["kernel"] = 2e4 * params["head"]["kernel"]
    save_params(str(folder), params, config)
    return folder, params, config


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    """A detector of three actions with random weights: (folder, params, config)."""
    folder = tmp_path_factory.mktemp("detector")
    config = load_config("detect:tiny,custom", DETECTOR)
    params = detect.build_task(config).init(jax.random.key(0))
    # The head begins almost at zero: all boxes alike.
    params["head"]["kernel"] = 2e4 * params["head"]["kernel"]
    save_params(str(folder), params, config)
    return folder, params, config


@pytest.fixture(scope="session")
def unreadable_list(tmp_path_factory):
    """Ten labelled videos, two of them unreadable (6 and 7), and two of one name (8 and 9)."""
    folder = tmp_path_factory.mktemp("unreadable")
    for name, kind in (("a", "jump"), ("b", "walk")):
        (folder / name).mkdir()
        source = CLIPS / f"val/{kind}/{kind}_001.mp4"
        (folder / name / "same.mp4").write_bytes(source.read_bytes())
    (folder / "bad.mp4").write_text("not a video")
    lines = [rows("val", KINDS, [0, 2]), "bad.mp4 roll", "gone.mp4 walk"]
    (folder / "list.csv").write_text("\n".join([*lines, "a/same.mp4 jump", "b/same.mp4 walk"]))
    return folder / "list.csv"


@pytest.fixture(scope="session")
def window_list(tmp_path_factory):
    """Videos of 100, 3 and 30 frames, the last of uneven times, and two that cannot be read."""
    folder = tmp_path_factory.mktemp("windows")
    write_video(folder / "long.mp4", count=100)
    write_video(folder / "short.mp4", count=3, shift=50)
    times = np.cumsum(1 + np.arange(30) % 3)
    write_video(folder / "uneven.mkv", count=30, shift=90, times=times)
    (folder / "bad.mp4").write_text("not a video")
    names = ["long.mp4", "bad.mp4", "short.mp4", "uneven.mkv", "gone.mp4"]
    (folder / "list.csv").write_text("\n".join(names))
    return folder / "list.csv"


def _hub_modules():
    return [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The stand-in, with huggingface_hub imported anew: it reads its settings when imported."""
    pytest.importorskip("huggingface_hub")
    server = Hub()
    home = tmp_path_factory.mktemp("hf_home")
    with pytest.MonkeyPatch.context() as patch:
        for name in _hub_modules():
            patch.delitem(sys.modules, name)
        for name, value in dict(
            HF_ENDPOINT=server.url,
            HF_HOME=str(home),
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
        ).items():
            patch.setenv(name, value)
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            patch.delenv(name, raising=False)
        yield server
        for name in _hub_modules():
            del sys.modules[name]
    server.close()
