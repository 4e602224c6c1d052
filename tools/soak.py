"""A long mix of workflows at one live server: pictures of all kinds, cancelled ones and malformed ones between.

    python tools/soak.py [--jobs 1000] [--seed 0] [--json FILE]

Pictures differ in size, batch, subjects, sampler, scheduler, routing, delay and halves, come in bursts from several
clients, and use the tiny models. A job is answered by pictures, by a sentence, or by word that it was cancelled.
The last line has the figures. The exit status is 1 where a job was lost or answered wrongly (a picture of one colour,
another picture than the first time), where memory left 2% of what it was after the first fifty jobs, as it is or after
everything was freed, or where the plain picture is another at the end than at the start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from in_host import import_host, run_in_host
from soak_memory import Memory, trend
from soak_pictures import digests, look
from soaking import Graphs, Prompt

PICTURE, AGAIN, CANCELLED, MALFORMED = "picture", "again", "cancelled", "malformed"
# glibc then gives freed memory back at once, so that what is measured is what the server holds
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
WARM, MEMORY_SPAN, MEMORY_BOUND = 50, 10, 0.02  # jobs before memory is compared, jobs of a median, its change
SETTLE = 20  # jobs from one freeing to the next, from the fiftieth on: both medians of a thousand jobs follow one
CLIENTS = 4
LOST_SECONDS = 300


@dataclass
class Job:
    """A prompt to post, and what came of it: `answer` is ok, refused, cancelled, lost or wrong. `first` is the job that
    asked for the same pictures."""

    kind: str
    about: str
    prompt: Prompt
    answer: str = ""
    said: str = ""
    pictures: list[str] = field(default_factory=list)
    first: Job | None = None


@dataclass
class Figures:
    """What a soak measured. Memory is the server's, in MiB, around the fiftieth job, at the end, and after each;
    `settled` is what it held after so many jobs when all was freed, from the fiftieth on; after a short soak alone."""

    jobs: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sentences: dict[str, int] = field(default_factory=dict)
    memory_first: float = 0.0
    memory_last: float = 0.0
    plain_is_the_same: bool = False
    memory: list[float] = field(default_factory=list)
    settled: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def memory_change(self) -> float:
        return self.memory_last / self.memory_first - 1

    @property
    def trend(self) -> float:
        """MiB per 100 jobs, of what is held when all is freed."""
        return trend(self.settled)

    @property
    def settled_change(self) -> float:
        """What the trend makes of it from the fiftieth job to the end."""
        (begin, held), (end, _) = self.settled[0], self.settled[-1]
        return self.trend * (end - begin) / 100 / held

    @property
    def passed(self) -> bool:
        steady = max(abs(self.memory_change), abs(self.settled_change)) <= MEMORY_BOUND
        return not self.lost and not self.wrong and self.plain_is_the_same and steady

    def line(self) -> str:
        answers = ", ".join(f"{count} {answer}" for answer, count in sorted(self.answers.items()))
        same = "bit-identical" if self.plain_is_the_same else "CHANGED"
        freed = f"{self.settled[-1][1]:.0f} MiB when all is freed"
        if len(self.settled) > 1:
            freed += f", {self.trend:+.2f} per 100 jobs ({self.settled_change:+.1%})"
        return (
            f"soak: {self.jobs} jobs in {self.seconds:.0f} s ({answers}); {len(self.lost)} lost, {len(self.wrong)} "
            f"wrong; memory {self.memory_first:.0f} -> {self.memory_last:.0f} MiB ({self.memory_change:+.1%}), "
            f"{freed}; plain picture {same}"
        )


def jobs_of(graphs: Graphs, count: int) -> list[list[Job]]:
    """Bursts of jobs, posted at once; a job to be cancelled comes alone, for ComfyUI cancels whatever is at work."""
    bursts: list[list[Job]] = []
    made, painted = 0, []  # pictures that may be asked for once more
    while made < count:
        if graphs.random.random() < 0.15:
            burst = [Job(CANCELLED, "", graphs.picture(steps=12))]
        else:
            burst = []
            for _ in range(min(graphs.random.randint(1, CLIENTS), count - made)):
                if graphs.random.random() < 0.35:
                    burst.append(Job(MALFORMED, *graphs.malformed()))
                elif painted and graphs.random.random() < 0.25:
                    first = painted.pop(graphs.random.randrange(len(painted)))
                    burst.append(Job(AGAIN, "", graphs.again(first.prompt), first=first))
                else:
                    burst.append(Job(PICTURE, "", graphs.picture()))
        painted += [job for job in burst if job.kind == PICTURE]
        bursts.append(burst)
        made += len(burst)
    return bursts


def soak(server, photo: str, jobs: int, seed: int = 0, show: Callable[[str], None] = lambda line: None) -> Figures:
    """Posts so many jobs to a LiveServer that has the tiny models."""
    random = Random(seed)
    graphs = Graphs(photo, random)
    figures, begun = Figures(jobs), time.monotonic()
    memory, measure = figures.memory, Memory(server)
    before = plain_picture(server, graphs, repeats=1)
    with ThreadPoolExecutor(CLIENTS) as clients:
        for burst in jobs_of(graphs, jobs):
            cancel_at = random.randint(1, 14)
            list(clients.map(lambda job, step=cancel_at: run_job(server, job, step), burst))
            server.post("/history", {"clear": True})  # it grows with every prompt, on purpose
            memory += [measure.plain()] * len(burst)
            if jobs >= 2 * WARM and len(memory) >= WARM + SETTLE * len(figures.settled):
                figures.settled.append((len(memory), measure.settled()))
            for job in burst:
                note(figures, job)
                show(f"{len(memory)} {job.kind} {job.about}: {job.answer} {job.said[:100]}")
    if not figures.settled or figures.settled[-1][0] < jobs:
        figures.settled.append((jobs, measure.settled()))
    after = plain_picture(server, graphs, repeats=2)
    figures.plain_is_the_same = before == after
    warm = min(WARM, len(memory) // 2)
    figures.memory_first = statistics.median(memory[warm : warm + MEMORY_SPAN])
    figures.memory_last = statistics.median(memory[-MEMORY_SPAN:])
    figures.seconds = time.monotonic() - begun
    return figures


def run_job(server, job: Job, cancel_at: int) -> None:
    """Fills in what the server answered."""
    from live import PromptError, ServerError

    steps = 0

    def cancel(node_id: str, done: float, of: float) -> None:
        nonlocal steps
        steps += node_id == "sample" and done > 0
        if steps == cancel_at:
            server.post("/interrupt", {})

    try:
        outputs = server.run(job.prompt, cancel if job.kind == CANCELLED else None, LOST_SECONDS)
        files = server.images(outputs, "show")
        job.answer = "wrong"
        job.pictures = look(files, job.prompt["latent"]["inputs"], job.first and job.first.pictures)
        job.answer = "ok"
    except PromptError as error:
        job.answer = "cancelled" if error.kind == "execution_interrupted" else "refused"
        job.said = error.message if job.answer == "refused" else ""
    except (TimeoutError, ServerError, OSError, ValueError) as error:
        job.answer, job.said = job.answer or "lost", f"{type(error).__name__}: {str(error)[:300]}"
    wanted = {PICTURE: ("ok",), AGAIN: ("ok",), CANCELLED: ("cancelled", "ok"), MALFORMED: ("refused",)}[job.kind]
    if job.answer not in ("lost", *wanted):
        job.said, job.answer = f"{job.answer}: {job.said}", "wrong"


def note(figures: Figures, job: Job) -> None:
    figures.answers[job.answer] = figures.answers.get(job.answer, 0) + 1
    if job.answer == "refused":
        said = f"{job.about}: {' '.join(job.said.split())[:160]}"
        figures.sentences[said] = figures.sentences.get(said, 0) + 1
    elif job.answer in ("lost", "wrong"):
        found = figures.lost if job.answer == "lost" else figures.wrong
        found.append(f"{job.kind} {job.about}: {job.said} {json.dumps(job.prompt)[:3000]}")


def plain_picture(server, graphs: Graphs, repeats: int) -> list[str]:
    return digests(server.images(server.run(graphs.plain(repeats)), "show"))


def soak_alone(comfyui: Path, jobs: int, seed: int = 0, show: Callable[[str], None] = lambda line: None) -> Figures:
    """In a server of its own with the tiny models and one photo."""
    import skimage.data
    from PIL import Image

    from live import LiveServer
    from tiny_prompt import write_tiny_models

    with LiveServer(comfyui) as server:
        write_tiny_models(server.models)
        photo = server.folder / "person.png"
        Image.fromarray(skimage.data.astronaut()).save(photo)
        return soak(server, server.upload(photo), jobs, seed, show)


def start_and_soak(jobs: int, seed: int) -> Figures:
    """With what ComfyUI's modules need to be imported here too."""
    comfyui = import_host("--cpu")
    os.environ.update(GIVE_BACK)
    return soak_alone(comfyui, jobs, seed, lambda line: print(line, flush=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    if (status := run_in_host(__file__)) is not None:
        return status
    figures = start_and_soak(arguments.jobs, arguments.seed)
    if arguments.json:
        names = ("memory_change", "trend", "settled_change", "passed")
        measured = asdict(figures) | {name: getattr(figures, name) for name in names}
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    print(figures.line())
    return 0 if figures.passed else 1


if __name__ == "__main__":
    sys.exit(main())
