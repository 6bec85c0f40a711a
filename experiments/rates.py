"""Measure how fast clips are read, ours and by other readers of the same videos: docs/rates.json.

python experiments/rates.py FOLDER [--extra DIR] [--videos N] [--rounds N] [--json FILE]

FOLDER gets the corpus, 456x256 H.264 with a key frame every 250 frames, 10 s each, and its
packings; what is there is used again, and --rounds 0 only makes it. A clip is 16 frames at stride
4 from a random start, in the crop of pre-training, resized to 224 by the same function for all.
Each reader is a process of its own, tied to one or two cores; they take turns, on the same clips.
decord, decord2 and OpenCV take part where they can be imported; decord2 has the module name of
decord, so --extra is a folder that has it (pip install --target DIR --no-deps decord2
opencv-python-headless).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
from PIL import Image

from videomae_jax.data.decode import read_clip
from videomae_jax.data.samplers import PretrainSampler
from videomae_jax.data.sources import read_videos
from videomae_jax.data.videos import Videos
from videomae_jax.host import count_cores

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT, FRAMES, GOP = 456, 256, 300, 250
SAMPLE = PretrainSampler(frames=16, stride=4, height=224, width=224, channels=3, train=True)
SEED, BATCH = 0, 8
STEPS, PACKED_STEPS = 10, 40  # of a turn: long beside the making of the pipeline
PEERS = ("decord", "decord2", "opencv")
# Name: format, quality. The first has no packing: it is the list of files.
OURS = {
    "manifest": None,
    "jpeg 85": ("jpeg", 85),
    "mp4": ("mp4", 21),
}


def write_corpus(folder: Path, *, videos: int) -> None:
    """Write `videos` files of real motion, a clip of the demo's data there and back again.

    Over it a still texture that the camera pans across and a little noise that changes, without
    which rendered pictures would take a tenth of the bytes that filmed ones do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips = sorted((ROOT / "data" / "mocap_studio" / "val").rglob("*.mp4"))
    for index in range(videos):
        path = folder / f"{index:03}.mp4"
        if path.exists():
            continue
        rng = np.random.default_rng(index)
        texture = smooth_noise(rng, HEIGHT + 128, WIDTH + 384)
        unfinished = path.with_suffix(".new")
        with av.open(str(unfinished), "w", format="mp4") as container:
            options = {"crf": "23", "threads": "1", "sc_threshold": "0"}
            stream = container.add_stream("libx264", rate=30, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.gop_size = GOP
            pictures = read_clip(str(clips[index * 17 % len(clips)]), np.arange)
            pictures = np.concatenate([pictures, pictures[::-1]])  # there and back: no cuts
            for place in range(FRAMES):
                small = Image.fromarray(pictures[place % len(pictures)])
                picture = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
                x, y = place, int(32 * (1 + np.sin(place / 40)))
                change = texture[y : y + HEIGHT, x : x + WIDTH] + rng.normal(0, 2, (HEIGHT, WIDTH))
                mixed = np.clip(picture + change[..., None], 0, 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(mixed, format="rgb24")
                frame.pts, frame.time_base = place, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        unfinished.rename(path)


def smooth_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise with as much at each scale, as in pictures of the world: float64, deviation 12."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    spectrum = np.fft.rfft2(rng.normal(size=(height, width)))
    noise = np.fft.irfft2(spectrum / np.maximum(np.hypot(down, across), 1 / width), (height, width))
    return 12 * (noise - noise.mean()) / noise.std()


def write_packings(videos: Path, folder: Path) -> dict[str, int]:
    """Pack the videos in each way; return the bytes of each, those of the files among them."""
    from videomae_jax.data.pack import Settings, pack

    sizes = {}
    for name, how in OURS.items():
        if how is None:
            sizes[name] = sum(file.stat().st_size for file in videos.iterdir())
            continue
        form, quality = how
        index = pack(
            read_videos(videos),
            str(folder / name.replace(" ", "")),
            settings=Settings(form, 256, 96, quality),
            shards=1,
            process_index=0,
            process_count=1,
            verify=False,
            threads=count_cores(),
            report=lambda done: None,
        )
        sizes[name] = index["bytes"]
    return sizes


def be_child(name: str, folder: Path) -> None:
    """Say what there is, then answer each line that asks for clips with the time they took."""
    videos = folder / "videos"
    try:
        peer = open_peer(name) if name in PEERS else None
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    how = OURS.get(name)
    source = read_videos(videos if how is None else folder / name.replace(" ", ""))
    read = (
        (lambda ask: read_by(peer, source, ask)) if peer else (lambda ask: read_ours(source, ask))
    )
    print(json.dumps({"versions": peer.versions if peer else {}}), flush=True)
    for line in sys.stdin:
        print(json.dumps(read(json.loads(line))), flush=True)


def read_ours(videos: Videos, ask: dict) -> dict:
    """Batches as training gets them, from making the pipeline to the last batch."""
    from videomae_jax.data.pipeline import clip_batches
    from videomae_jax.data.unreadable import BadVideos

    began = time.perf_counter()
    batches = clip_batches(
        videos,
        sampler=SAMPLE,
        batch_size=BATCH,
        seed=SEED,
        start_step=ask["step"],
        num_steps=ask["steps"],
        bad=BadVideos(videos, max_share=0.0),
    )
    ids, seen = zip(*((batch["id"], sparse(batch["video"])) for batch in batches), strict=True)
    seconds = time.perf_counter() - began
    means = [float(clip.mean()) for clips in seen for clip in clips]
    return {"seconds": seconds, "ids": np.concatenate(ids).tolist(), "means": means}


def sparse(clips: np.ndarray) -> np.ndarray:
    """A pixel of 64, to tell clips by: to keep them whole would time the system's memory too."""
    return clips[..., ::8, ::8, :].copy()


def read_by(peer, videos: Videos, ask: dict) -> dict:
    """The same clips: `peer` reads the frames, the rest is as ours."""
    first = ask["step"] * BATCH

    def clip(row, index):
        rng = np.random.default_rng([SEED, first + row, 0])
        frames = peer(videos.paths[index], SAMPLE.choose(videos, index, [rng]))
        return sparse(SAMPLE.crop(frames, SAMPLE.crop_boxes(WIDTH, HEIGHT, [rng]))["video"][0])

    began = time.perf_counter()
    with ThreadPoolExecutor(count_cores()) as pool:
        clips = list(pool.map(clip, range(len(ask["ids"])), ask["ids"]))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "means": [float(clip.mean()) for clip in clips]}


def open_peer(name: str):
    """A function (path, choose) -> frames uint8 [F, H, W, 3]."""
    if name == "opencv":
        import cv2

        cv2.setNumThreads(1)

        def read(path, choose):
            video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            wanted = choose(int(video.get(cv2.CAP_PROP_FRAME_COUNT))).tolist()
            video.set(cv2.CAP_PROP_POS_FRAMES, wanted[0])
            frames = []
            for place in range(wanted[0], wanted[-1] + 1):
                video.grab()
                if place in wanted:
                    frames.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
            return np.stack(frames)

        read.versions = {"opencv": cv2.__version__}
        return read
    import decord

    major = int(decord.__version__.split(".")[0])
    if (name == "decord2") != (major > 0):
        raise ImportError(f"this decord is {decord.__version__}")

    def read(path, choose):
        video = decord.VideoReader(path, num_threads=1)
        return video.get_batch(choose(len(video)).tolist()).asnumpy()

    read.versions = {name: decord.__version__}
    return read


class Child:
    """A reader on its cores."""

    def __init__(self, name: str, folder: Path, *, cores: list[int], extra: str | None):
        path = [str(ROOT)] + ([extra] if extra and name in ("decord2", "opencv") else [])
        command = [sys.executable, __file__, str(folder), "--child", name]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "TF_CPP_MIN_LOG_LEVEL": "3"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self.facts = self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} ended: see above")
        return json.loads(line)

    def ask(self, **what) -> dict:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.answer()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extra")
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "rates.json")
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        be_child(args.child, args.folder)
        return
    write_corpus(args.folder / "videos", videos=args.videos)
    sizes = write_packings(args.folder / "videos", args.folder)
    if not args.rounds:
        return
    there = sorted(os.sched_getaffinity(0))
    children, missing, versions = {}, {}, {}
    for name in (*OURS, *PEERS):
        for count in (1, 2)[: len(there)]:
            child = Child(name, args.folder, cores=there[:count], extra=args.extra)
            if "missing" in child.facts:
                missing[name] = child.facts["missing"]
                break
            children[name, count] = child
            versions |= child.facts["versions"]
    ids = children["manifest", 1].ask(step=0, steps=1)["ids"]
    for child in children.values():  # what is done once is done, and files are in memory
        child.ask(step=0, steps=1, ids=ids)
    rates = {key: [] for key in children}
    for turn in range(1, args.rounds + 1):
        order = list(children)
        answers = {}
        for key in order[:1] + (order[1:] if turn % 2 else order[:0:-1]):
            ids = answers[order[0]]["ids"] if answers else None
            steps = PACKED_STEPS if OURS.get(key[0]) else STEPS
            answers[key] = children[key].ask(step=turn * PACKED_STEPS, steps=steps, ids=ids)
            rates[key].append(BATCH * steps / answers[key]["seconds"])
        for (name, _), answer in answers.items():
            first = answers[order[0]]["means"]
            off = np.abs(np.subtract(answer["means"][: len(first)], first)).max()
            limit = 0.5 if name in PEERS or OURS[name] is None else 3
            if off > limit:
                raise SystemExit(f"{name} read other clips: means differ by {off:.2f} levels")
    result = {
        "rows": rows(rates, sizes, args.videos),
        "missing": missing,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "versions": {x: version(x) for x in ("av", "pillow", "numpy", "tensorflow-cpu")} | versions,
        "clips_a_turn": {"files": BATCH * STEPS, "packed": BATCH * PACKED_STEPS},
        "date": time.strftime("%Y-%m-%d"),
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(text(result))


def rows(rates: dict, sizes: dict[str, int], videos: int) -> list[dict]:
    """A row for each reader: medians, and the ratio to the fastest peer of each turn."""
    found = []
    for name in dict.fromkeys(name for name, _ in rates):
        row = {"reader": name}
        for count in (1, 2):
            own = rates.get((name, count))
            peers = [rates[peer, count] for peer in PEERS if (peer, count) in rates]
            if own:
                row[f"cores_{count}"] = statistics.median(own)
                row[f"of_each_turn_{count}"] = own
            if own and peers:
                best = [max(turn) for turn in zip(*peers, strict=True)]
                pairs = zip(own, best, strict=True)
                row[f"ratio_{count}"] = statistics.median(a / b for a, b in pairs)
        if "cores_2" in row:
            pairs = zip(rates[name, 2], rates[name, 1], strict=True)
            row["scaling"] = statistics.median(a / b for a, b in pairs)
        if name in sizes:
            row["megabytes_a_video"] = sizes[name] / videos / 1e6
            row["bytes_ratio"] = sizes[name] / sizes["manifest"]
        found.append(row)
    return found


def text(result: dict) -> str:
    """The table of docs/data.md."""
    lines = [
        "| reader | clips/s, 1 core | x fastest peer | 2 cores | x fastest peer | 2 cores / 1 "
        "| MB a video | x the files |",
        "|---|---|---|---|---|---|---|---|",
    ]
    keys = ("cores_1", "ratio_1", "cores_2", "ratio_2", "scaling", "megabytes_a_video")
    for row in result["rows"]:
        cells = [f"{row[key]:.3g}" if key in row else "" for key in (*keys, "bytes_ratio")]
        lines.append(f"| {row['reader']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
