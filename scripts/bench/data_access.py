"""Benchmark of access to data: the index of a large JSON lines file, patients of its rows, and single frames of videos.

Methods alternate, each measurement in its own process. The script ends without a table if results differ. README.md
has the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import av
import numpy as np
import psutil
from interleaved import in_fresh_process, machine, resident_memory
from PIL import Image

from mllm.dataset.patients import Patients, check_leakage
from mllm.dataset.phantoms.writers import write_avi
from mllm.dataset.readers import read_images
from mllm.dataset.single_image_dataset.vqa import VQADataset
from mllm.dataset.tables.records import Records

ROWS = 1_000_000
LENGTH, SIDE = 200, 112
"""Frames of a video and their size in pixels, as in EchoNet-Dynamic."""
FRAMES = [57, 142]
CODECS = ("mpeg4", "mjpeg")


def write_rows(path: Path, rows: int) -> None:
    """Write questions and answers about images as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {"image": f"study/{number:07}.png", "question": "Is there an effusion?", "answer": "No."}
            file.write(json.dumps({**row, "patient": f"P{number // 3}"}) + "\n")


def write_video(path: Path, codec: str) -> None:
    """Write a video of a moving bright disk."""
    y, x = np.mgrid[:SIDE, :SIDE]
    frames = []
    for number in range(LENGTH):
        distance = np.hypot(x - SIDE / 2 - 20 * np.sin(number / 5), y - SIDE / 2)
        frames.append(np.clip(255 - 4 * distance, 0, 255).astype(np.uint8))
    write_avi(path, frames, codec)


def index_rows(path: Path) -> list[Any]:
    """Open the rows by their index in the file, and read the last one."""
    records = Records(path)
    return [len(records), records[len(records) - 1]]


def load_rows(path: Path) -> list[Any]:
    """Load all rows as dicts, and read the last one."""
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    return [len(rows), rows[-1]]


def seek_frames(path: Path) -> list[Any]:
    """Read `FRAMES` of a video as the datasets do."""
    return list(read_images(path, frames=FRAMES))


def decode_all(path: Path) -> list[Any]:
    """Decode all frames of a video, and select `FRAMES`."""
    with av.open(str(path)) as container:
        images: list[Image.Image] = [frame.to_image() for frame in container.decode(video=0)]
    return [images[number] for number in FRAMES]


METHODS: dict[str, Callable[[Path], list[Any]]] = {
    "index": index_rows,
    "load": load_rows,
    "seek": seek_frames,
    "decode": decode_all,
}


def patients_seconds(path: Path, rows: int) -> float:
    """Return the CPU seconds of a check for patients in two splits, `rows` rows and 1,000.

    Each patient has three rows. They are parsed before, as by the check of all rows.
    """
    dataset = VQADataset(str(path))
    train = [f"P{number // 3}" for number in range(rows)]
    started = time.process_time()
    patients = {"train": Patients(), "test": Patients()}
    for number, patient in enumerate(train):
        patients["train"].add(patient, dataset, number)
    for number in range(1000):
        patients["test"].add(f"Q{number}", dataset, number)
    check_leakage(patients)
    return time.process_time() - started


def work(method: str, path: Path, repeats: int) -> dict[str, Any]:
    """Return seconds of one call, memory that it took in bytes, and its result.

    They are wall time, because videos are decoded in another process. Memory is that of this process.
    """
    METHODS["seek" if method in ("seek", "decode") else "index"](path)  # imports packages
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    with resident_memory() as peak:
        for _ in range(repeats):
            result = METHODS[method](path)
    seconds = (time.perf_counter() - started) / repeats
    texts = [image.tobytes().hex() if isinstance(image, Image.Image) else image for image in result]
    return {"seconds": seconds, "bytes": peak.bytes - before, "result": json.dumps(texts)}


def line(name: str, path: Path, ours: str, theirs: str, rounds: int, repeats: int) -> str:
    """Return a line of the table; exit if the results of both methods differ."""
    runs: dict[str, list[dict[str, Any]]] = {ours: [], theirs: []}
    for _ in range(rounds):
        for method, results in runs.items():
            arguments = [f"--method={method}", f"--path={path}", f"--repeats={repeats}"]
            results.append(in_fresh_process(__file__, arguments, 1))
    if len({run["result"] for results in runs.values() for run in results}) != 1:
        sys.exit(f"no ratio: the results of {ours} and {theirs} differ")
    seconds = {method: [run["seconds"] for run in results] for method, results in runs.items()}
    memory = {method: median(run["bytes"] for run in results) / 1e6 for method, results in runs.items()}
    cells = [name]
    for method in (theirs, ours):
        values = [1000 * value for value in seconds[method]]
        cells += [f"{median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})", f"{memory[method]:,.0f}"]
    return f"| {' | '.join(cells)} | **{median(seconds[theirs]) / median(seconds[ours]):.1f}** |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--method", choices=list(METHODS), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.method:
        options.result.write_text(json.dumps(work(options.method, options.path, options.repeats)))
        return
    print("| | before: ms | MB | after: ms | MB | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "rows.jsonl"
        write_rows(rows, options.rows)
        label = f"{options.rows:,} rows of JSON: all as dicts, index"
        print(line(label, rows, "index", "load", options.rounds, 1), flush=True)
        patients = [patients_seconds(rows, options.rows) for _ in range(options.rounds)]
        for codec in CODECS:
            video = Path(name) / f"{codec}.avi"
            write_video(video, codec)
            label = f"two of {LENGTH} frames, {codec} in AVI: all decoded, found by seeking"
            print(line(label, video, "seek", "decode", options.rounds, 20), flush=True)
    print(f"\npatients of {options.rows:,} rows in two splits: {median(patients):.2f} s of CPU")
    print(f"{options.rounds} rounds; {machine(1)}")


if __name__ == "__main__":
    main()
