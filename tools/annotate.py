"""Annotates pictures for training: python tools/annotate.py --pictures FOLDER --words "dog, cat" --output FOLDER

On several GPUs or machines: accelerate launch tools/annotate.py ... Run the same command again to go on after a kill.
Models are folders of transformers' files in models/mmdiff_annotation of ComfyUI, or wherever --models says: a detector
(Grounding DINO), a segmenter (SAM or SAM 2) and, for captions, a captioner (Florence-2 or BLIP-2). Nothing is
downloaded. A .txt beside a picture is its caption; without one and without a captioner it is "a photo of a dog".
Without --words, Florence-2 takes them from the captions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from mmdiff_model.host import find_comfyui  # noqa: E402

FOLDER = "mmdiff_annotation"
SECONDS = 5.0
FINISHED, FAILED, STOPPED = 0, 1, 3


def main() -> int:
    """The exit status: 0 when every picture was looked at, 1 for an error, 3 where Ctrl+C has stopped it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of pictures, at any depth")
    parser.add_argument("--output", type=Path, required=True, help="the folder for the records")
    parser.add_argument("--words", default="", help='class words, such as "dog, cat"')
    parser.add_argument("--models", type=Path, nargs="+", help="model folders, or folders that hold them")
    parser.add_argument(
        "--size", type=positive, default=1024, help="pixels of the stored pictures' shorter side at most"
    )
    parser.add_argument("--batch", type=positive, default=8, help="pictures in one pass of a model")
    parser.add_argument("--shards", type=positive, metavar="N", help=".tar shards of N records instead of files")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names may be no text
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return annotate(options)
    except KeyboardInterrupt:
        print("\nstopped. The same command goes on.", file=sys.stderr)
        return STOPPED
    except torch.OutOfMemoryError:
        print(f"\nerror: the GPU's memory is full. Choose a --batch below {options.batch}.", file=sys.stderr)
    except BlockingIOError:
        problem = (
            f"another process is writing to {options.output}. Wait for it, or share the work by accelerate launch."
        )
        print(f"\nerror: {problem}", file=sys.stderr)
    except (ValueError, FileNotFoundError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
    except OSError as error:
        print(f"\nerror: {error}. What is written stays; the same command goes on.", file=sys.stderr)
    return FAILED


def annotate(options: argparse.Namespace) -> int:
    """Annotates this process's share. Raises ValueError, OSError."""
    from mmdiff_model.annotation.annotator import Annotator
    from mmdiff_model.annotation.earlier import changed
    from mmdiff_model.annotation.journal import Journal
    from mmdiff_model.annotation.listing import SHEET, list_pictures
    from mmdiff_model.annotation.pictures import RETRIED, record_name
    from mmdiff_model.annotation.share import Share, lock_share
    from mmdiff_model.annotation.sheet import draw_sheet
    from mmdiff_model.annotation.words import parse_words
    from mmdiff_model.annotation.writers import FolderWriter, ShardWriter, names_in

    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    files = list_pictures(options.pictures, options.output, print if rank == 0 else quiet)
    words = parse_words(options.words)
    places = options.models or [find_comfyui() / "models" / FOLDER]
    give_back = lock_share(options.output, rank, ranks)
    writer = FolderWriter(options.output)
    if options.shards:
        writer = ShardWriter(options.output, options.shards, rank, ranks)
    journal = Journal(options.output, settings_of(options, words, places), rank, str(options.pictures.resolve()))
    done = names_in(options.output)
    passed = {file for file, reason in journal.passed_over(done).items() if not reason.startswith(RETRIED)}
    again = without_shards(options.output, changed(options.pictures, files[rank::ranks], journal, done), done)
    own = [
        file
        for file in files[rank::ranks]
        if file in again or (record_name(file) not in done and file.as_posix() not in passed)
    ]
    print(f"{len(files)} pictures, {len(own)} of them left for process {rank + 1} of {ranks}", flush=True)
    share = None
    if own:
        device = find_device()
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        annotator = Annotator.load(places, words, lambda model: stay(model, device), dtype, "--models")
        share = Share(annotator, options.pictures, own, options.size, options.batch)
        progress = Progress(len(own))
        try:
            share.run(writer, journal, progress.after)
        finally:
            writer.close()
        progress.end()
        if rank == 0 and share.shown:
            draw_sheet(*zip(*share.shown, strict=True)).save(options.output / SHEET)
    give_back()
    found = summary(options, names_in(options.output), journal, share, words)
    if rank == 0:
        tell_gone(options, set(files), names_in(options.output), journal)
    return FINISHED if found or ranks > 1 else FAILED  # what fails, ends the other processes


def without_shards(output: Path, changed: set[Path], done: set[str]) -> set[Path]:
    """The changed pictures without those whose records lie in shards and stay. Says both."""
    from mmdiff_model.annotation.pictures import record_name

    names = {file: record_name(file) for file in changed}
    kept = {file for file in changed if names[file] in done and not (output / f"{names[file]}.json").is_file()}
    if kept:
        print(
            f"warning: {len(kept)} pictures have changed since their records were written into shards, such as "
            f"{min(kept)}. Their records stay: delete the .tar files to have all of them annotated again."
        )
    if changed - kept:
        print(f"{len(changed - kept)} pictures or captions have changed since, and are annotated again")
    return changed - kept


def quiet(line: str) -> None:
    """Another process has said it."""


def summary(options: argparse.Namespace, records: set[str], journal, share, words: tuple[str, ...]) -> bool:
    """Says what is in the output folder, and whether there is anything."""
    for word in words if share else ():
        if not share.words[word.lower()]:
            print(f"warning: --words: none of these {len(share.files)} pictures gave a record of '{word}'")
    for reason, count in Counter(journal.passed_over(records).values()).most_common():
        print(f"passed over: {count} x {reason}")
    print(f"{len(records)} records in {options.output}. What became of each picture is in {journal.path.name}.")
    if not records:
        print(
            "error: no picture gave a record. Look at the captions in the table, and choose --words that stand in them."
        )
    return bool(records)


def tell_gone(options: argparse.Namespace, files: set[Path], records: set[str], journal) -> None:
    """Says of which pictures that are no longer listed there are records, and how to train without them."""
    from mmdiff_model.annotation.pictures import record_name

    known = (Path(name) for name, row in journal.last().items() if journal.is_own(row))
    gone = {file for file in known if file not in files and record_name(file) in records}
    filed = {file for file in gone if (options.output / f"{record_name(file)}.json").is_file()}
    remedies = "delete their .json files", "delete the .tar files, and have all pictures annotated again,"
    for found, remedy in zip((filed, gone - filed), remedies, strict=True):
        if found:
            print(
                f"{len(found)} records are of pictures that are not in {options.pictures}, such as {min(found)}. They "
                f"stay: {remedy} to train without them."
            )


class Progress:
    """Prints how far it is, how fast, and how long it will take."""

    def __init__(self, total: int):
        self.total, self.done, self.good = total, 0, 0
        self.start = self.said = time.monotonic()

    def after(self, file: Path, result) -> None:
        from mmdiff_model.annotation.words import Rejected

        self.done += 1
        if isinstance(result, Rejected):
            print(f"passed over: {file}: {result}", flush=True)
        else:
            self.good += 1
        if time.monotonic() - self.said > SECONDS:
            self.said = time.monotonic()
            left = (self.said - self.start) / self.done * (self.total - self.done)
            print(f"{self.line()}, {clock(left)} left", flush=True)

    def line(self) -> str:
        speed = self.done / max(time.monotonic() - self.start, 1e-9)
        return f"{self.done}/{self.total} pictures, {self.good} records, {speed:.2f} pictures/s"

    def end(self) -> None:
        print(f"{self.line()}, {clock(time.monotonic() - self.start)} in all", flush=True)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def settings_of(options: argparse.Namespace, words: tuple[str, ...], places: list[Path]) -> str:
    """What a picture's outcome depends on, in a few letters."""
    from mmdiff_model.annotation.folders import find_models

    models = {role: folder.name for role, folder in find_models(places, "--models").items()}
    return hashlib.sha256(json.dumps([words, models, options.size], sort_keys=True).encode()).hexdigest()[:8]


def find_device() -> torch.device:
    """This process's GPU, of whatever make, or the CPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    number = int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count()
    return torch.device(kind, number)


def stay(model: torch.nn.Module, device: torch.device):
    """Brings a model to a device for good."""
    model.to(device)
    return lambda: device


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
