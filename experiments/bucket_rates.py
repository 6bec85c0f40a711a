"""Measure how fast clips are read from a bucket that takes 20 ms for every answer, and from a disk.

The bucket is a folder, served on this machine as Google Cloud Storage would. Prints a row for each
source: clips a second, and clips a second of CPU time, of the disk, of the bucket, and of the
bucket without the threads that wait for it. Needs gcsfs.

    python experiments/bucket_rates.py FOLDER list.csv packed/jpeg
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

PAUSE = 0.02  # seconds before every answer
STEPS, BATCH, WARM_UP = 12, 32, 2


def describe(file: Path, name: str) -> dict:
    """Return the metadata of an object."""
    when = "2026-01-01T00:00:00Z"
    dates = {"updated": when, "timeCreated": when, "generation": "1"}
    return {"name": name, "bucket": "bench", "size": str(file.stat().st_size), **dates}


def answer(folder: Path, address: str, span: str) -> tuple[int, bytes]:
    """Answer a request to list objects, or for the metadata or the bytes of one."""
    url = urllib.parse.urlsplit(address)
    query = dict(urllib.parse.parse_qsl(url.query))
    name = urllib.parse.unquote(url.path.partition("/b/bench/o")[2][1:])
    if not name:
        files = {str(file.relative_to(folder)): file for file in folder.rglob("*")}
        found = [name for name in files if name.startswith(query.get("prefix", ""))]
        items = [describe(files[name], name) for name in found if files[name].is_file()]
        return 200, json.dumps({"items": items}).encode()
    file = folder / name
    if not file.is_file():
        return 404, b"{}"
    if query.get("alt") != "media":
        return 200, json.dumps(describe(file, name)).encode()
    if not span:
        return 200, file.read_bytes()
    first, last = span.removeprefix("bytes=").split("-")
    with open(file, "rb") as content:
        content.seek(int(first))
        return 206, content.read(int(last) - int(first) + 1 if last else -1)


async def serve(folder: Path) -> None:
    """Serve the folder, and print the port."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            span = ""
            while header := (await reader.readline()).decode().strip():
                if header.lower().startswith("range:"):
                    span = header.partition(":")[2].strip()
            await asyncio.sleep(PAUSE)
            status, body = answer(folder, line.split()[1].decode(), span)
            writer.write(
                f"HTTP/1.1 {status} -\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await writer.drain()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def rate(source: str, *, waiting: int) -> tuple[float, float]:
    """Return clips a second, and a second of CPU time. waiting: threads beside the decoders."""
    from videomae_jax.data import pipeline, storage
    from videomae_jax.data.samplers import PretrainSampler
    from videomae_jax.data.sources import read_videos
    from videomae_jax.data.unreadable import BadVideos

    storage.READERS = waiting
    videos = read_videos(source)
    shape = dict(frames=16, stride=2, height=112, width=112, channels=3)
    batches = pipeline.clip_batches(
        videos,
        sampler=PretrainSampler(**shape, train=True),
        batch_size=BATCH,
        seed=0,
        start_step=0,
        num_steps=WARM_UP + STEPS,
        bad=BadVideos(videos, max_share=0),
    )
    for _ in range(WARM_UP):
        next(batches)
    began, began_cpu = time.perf_counter(), time.process_time()
    clips = BATCH * sum(1 for _ in batches)
    return clips / (time.perf_counter() - began), clips / (time.process_time() - began_cpu)


def main() -> None:
    """Serve a folder, or start the server and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="what the bucket contains")
    parser.add_argument("sources", nargs="*", help="lists and packed records in it")
    args = parser.parse_args()
    if not args.sources:
        asyncio.run(serve(args.folder))
    command = [sys.executable, __file__, str(args.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            os.environ["STORAGE_EMULATOR_HOST"] = (
                f"http://127.0.0.1:{server.stdout.readline()}".strip()
            )
            for name in args.sources:
                rates = [
                    rate(str(args.folder / name), waiting=0),
                    rate(f"gs://bench/{name}", waiting=32),
                    rate(f"gs://bench/{name}", waiting=0),
                ]
                print(name, *(f"{clips:.1f} ({cpu:.0f})" for clips, cpu in rates), flush=True)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
