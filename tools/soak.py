"""A long mix of workflows at one live server: pictures of all kinds, cancelled ones and malformed ones between.

    python tools/soak.py [--jobs 1000] [--seed 0] [--json FILE]

Pictures differ in size, batch, subjects, sampler, scheduler, routing, delay and halves, come in bursts from several
clients, and use the tiny models. A job is answered by pictures, by a sentence, or by word that it was cancelled.
The last line has the figures. The exit status is 1 where a job was lost or answered wrongly, where memory left 2% of
what it was after the first fifty jobs, or where the plain picture is another at the end than at the start.
"""

import argparse
import copy
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import setup_host

HOST = "MMDIFF_SOAK_HOST"
PICTURE, CANCELLED, MALFORMED = "picture", "cancelled", "malformed"
SIZES = (64, 72, 96, 128, 200)
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "lcm", "ddim", "uni_pc", "lms")
SCHEDULERS = ("normal", "karras", "exponential", "sgm_uniform", "ddim_uniform", "beta")
WORDS = ("man", "woman", "dog", "glassblower", "boy", "caf\u00e9 owner", "(robot:1.2)", "king")
PLACES = ("in the rain", "on a beach, (soft light: 1.1)", "s, laughing", " at work, " + "very detailed, " * 20)
CLS_FROM = ("first photo (as released)", "mean of all photos")
# glibc then gives freed memory back at once, so that what is measured is what the server holds
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
WARM, MEMORY_SPAN, MEMORY_BOUND = 50, 10, 0.02  # jobs before memory is compared, jobs of a median, its change
CLIENTS = 4
LOST_SECONDS = 300

Prompt = dict[str, dict]


@dataclass
class Job:
    """A prompt to post, and what came of it: `answer` is ok, refused, cancelled, lost or wrong."""

    kind: str
    about: str
    prompt: Prompt
    answer: str = ""
    said: str = ""


@dataclass
class Figures:
    """What a soak measured; memory is the server's, in MiB, around the fiftieth job and at the end."""

    jobs: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    sentences: dict[str, int] = field(default_factory=dict)
    memory_first: float = 0.0
    memory_last: float = 0.0
    plain_is_the_same: bool = False
    seconds: float = 0.0

    @property
    def memory_change(self) -> float:
        return self.memory_last / self.memory_first - 1

    @property
    def passed(self) -> bool:
        steady = abs(self.memory_change) <= MEMORY_BOUND
        return not self.lost and not self.wrong and self.plain_is_the_same and steady

    def line(self) -> str:
        answers = ", ".join(f"{count} {answer}" for answer, count in sorted(self.answers.items()))
        same = "bit-identical" if self.plain_is_the_same else "CHANGED"
        return (
            f"soak: {self.jobs} jobs in {self.seconds:.0f} s ({answers}); {len(self.lost)} lost, {len(self.wrong)} "
            f"wrong; memory {self.memory_first:.0f} -> {self.memory_last:.0f} MiB ({self.memory_change:+.1%}); plain "
            f"picture {same}"
        )


class Graphs:
    """Prompts in the API's format, from random numbers; `photo` is an uploaded picture with a face."""

    def __init__(self, photo: str, random: Random):
        self.photo, self.random = photo, random

    def models(self) -> Prompt:
        return {
            "tiny": node("MMDiffTinyModels", seed=20),
            "mmdiff": node("MMDiffLoader", checkpoint="tiny", text_encoder_2_lora=False),
            "faces": node("MMDiffFaceAnalysisLoader", pack="buffalo_l", provider="CPU"),
            "photo": node("LoadImage", image=self.photo),
        }

    def painted(self, graph: Prompt, model: list, positive: list, negative: list, **sampling) -> Prompt:
        """The graph with a sampler and a preview at its end."""
        return graph | {
            "sample": node("KSampler", model=model, positive=positive, negative=negative, **sampling),
            "decode": node("VAEDecode", samples=["sample", 0], vae=["tiny", 2]),
            "show": node("PreviewImage", images=["decode", 0]),
        }

    def plain(self, repeats: int) -> Prompt:
        """The base model's picture; other repeats of one latent are new to ComfyUI's cache and paint the same."""
        graph = self.models() | {
            "text": node("CLIPTextEncode", clip=["tiny", 1], text="a man on the beach"),
            "latent": node("EmptyLatentImage", width=128, height=96, batch_size=1),
        }
        last = "latent"
        for number in range(repeats):
            graph[f"repeat_{number}"] = node("RepeatLatentBatch", samples=[last, 0], amount=1)
            last = f"repeat_{number}"
        sampling = {"seed": 5, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        return self.painted(graph, ["tiny", 0], ["text", 0], ["text", 0], latent_image=[last, 0], **sampling)

    def picture(self, steps: int | None = None) -> Prompt:
        """One to three subjects, with regions, mixes and halves as it comes."""
        random, graph = self.random, self.models()
        routing = random.choice(("off", "off", "masks", "auto"))
        count = random.randint(1, 3)
        for number in range(1, count + 1):
            self.subject(graph, number, region=routing == "masks" or random.random() < 0.2)
        start = round(random.choice((0.0, 0.0, random.uniform(0, 0.6))), 3)
        inputs = {
            "mmdiff": ["mmdiff", 0],
            **{f"subjects.subject_{number}": [f"subject_{number}", 0] for number in range(1, count + 1)},
            "start_percent": start,
            "end_percent": round(random.uniform(start, 1), 3),
        }
        text = {"positive": self.words(count), "negative": random.choice(("", "blurry, (bad: 1.3) hands"))}
        text["negative_fusion"] = random.choice(("as released", "clean"))
        strength = {"fuse_scale": round(random.uniform(0, 1.5), 2), "routing": routing}
        if random.random() < 0.25:
            graph["model"] = node("MMDiffApplyModel", model=["tiny", 0], **inputs, **strength)
            graph["text"] = node("MMDiffTextEncode", clip=["tiny", 1], **inputs, **text)
            links = ["model", 0], ["text", 0], ["text", 1]
        else:
            step = random.choice((0, 0, 0, 1, 2, 9))
            both = {"model": ["tiny", 0], "clip": ["tiny", 1], "start_merge_step": step}
            graph["apply"] = node("MMDiffApply", **both, **inputs, **text, **strength)
            links = ["apply", 0], ["apply", 1], ["apply", 2]
        size = {"width": random.choice(SIZES), "height": random.choice(SIZES), "batch_size": random.randint(1, 2)}
        graph["latent"] = node("EmptyLatentImage", **size)
        return self.painted(
            graph,
            *links,
            latent_image=["latent", 0],
            seed=random.randrange(2**32),
            steps=steps or random.randint(1, 5),
            cfg=random.choice((1.0, 4.0, 7.5)),
            sampler_name=random.choice(SAMPLERS),
            scheduler=random.choice(SCHEDULERS),
            denoise=random.choice((1.0, 1.0, 0.6)),
        )

    def subject(self, graph: Prompt, number: int, region: bool) -> None:
        """Adds `subject_<number>`: encoded, sometimes mixed with itself, with a region where it is wanted."""
        random, name = self.random, f"subject_{number}"
        encoding = {"face": "largest", "face_index": 1, "cls_from": random.choice(CLS_FROM)}
        sources = {"mmdiff": ["mmdiff", 0], "clip_vision": ["tiny", 3], "images": ["photo", 0]}
        graph[f"encode_{number}"] = node("MMDiffEncodeSubject", **sources, face_analysis=["faces", 0], **encoding)
        last = [f"encode_{number}", 0]
        if random.random() < 0.2:
            mixed = {"subjects.subject_1": last, "subjects.subject_2": last}
            mode = random.choice(("all tokens (as released)", "weighted mean", "spherical"))
            graph[f"mix_{number}"] = node("MMDiffMixSubjects", **mixed, mode=mode, weights="1, 0.5")
            last = [f"mix_{number}", 0]
        mask = {}
        if region:
            graph[f"mask_{number}"] = node("SolidMask", value=round(random.random(), 2), width=32, height=32)
            mask = {"mask": [f"mask_{number}", 0]}
        when = {"start_percent": 0.0, "end_percent": 1.0, "strength": round(random.uniform(0, 2), 2)}
        graph[name] = node("MMDiffSubjectRegion", subject=last, name=f"name{number}", **when, **mask)

    def words(self, count: int) -> str:
        """A prompt that calls every subject once, plainly, by number or by name."""
        random = self.random
        triggers = [random.choice((f"<|subj:{i}|>", f"<|subj:name{i}|>")) for i in range(1, count + 1)]
        if random.random() < 0.5:
            triggers = ["<|subj|>"] * count
        words = [f"a {random.choice(WORDS)}{trigger}" for trigger in triggers]
        return " and ".join(words) + random.choice(PLACES)

    def malformed(self) -> tuple[str, Prompt]:
        """A picture's graph with one thing wrong, and what it is."""
        about = self.random.choice(list(DAMAGES))
        graph = self.picture()
        while "apply" not in graph:
            graph = self.picture()
        DAMAGES[about](graph)
        return about, graph


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def set_to(node_id: str, /, **inputs) -> Callable[[Prompt], None]:
    return lambda graph: graph[node_id]["inputs"].update(inputs)


def without(name: str, key: str) -> Callable[[Prompt], None]:
    return lambda graph: graph[name]["inputs"].pop(key)


def add_words(graph: Prompt, words: str) -> None:
    graph["apply"]["inputs"]["positive"] += words


def linked_words(graph: Prompt) -> None:
    graph["words"] = node("PrimitiveString", value="a man without one")
    graph["apply"]["inputs"]["positive"] = ["words", 0]


def applied_twice(graph: Prompt) -> None:
    graph["again"] = copy.deepcopy(graph["apply"])
    graph["again"]["inputs"]["model"] = ["apply", 0]
    graph["sample"]["inputs"]["model"] = ["again", 0]


DAMAGES: dict[str, Callable[[Prompt], None]] = {
    "no trigger": set_to("apply", positive="a man"),
    "no word": set_to("apply", positive="<|subj|> a man"),
    "more triggers": lambda graph: add_words(graph, ", a man<|subj|>" * 4),
    "mistyped trigger": lambda graph: add_words(graph, ", a man<|SUBJ|>"),
    "number out of range": lambda graph: add_words(graph, ", a man<|subj:7|>"),
    "name unknown": lambda graph: add_words(graph, ", a man<|subj:nobody|>"),
    "start mark": lambda graph: add_words(graph, " <|startoftext|>"),
    "half an emoji": set_to("apply", positive="a man \ud83d"),
    "half an emoji, linked trigger": set_to("apply", positive="a man<|subj:1|> \ud83d", negative="\ud83d"),
    "parentheses": set_to("apply", positive="(" * 3000 + "a man<|subj|>" + ")" * 3000),
    "linked without trigger": linked_words,
    "start after end": set_to("apply", start_percent=0.9, end_percent=0.1),
    "percent of 7": set_to("apply", end_percent=7.0),
    "NaN percent": set_to("apply", start_percent=float("nan")),
    "NaN scale": set_to("apply", fuse_scale=float("nan")),
    "infinite scale": set_to("apply", fuse_scale=float("inf")),
    "NaN strength": set_to("subject_1", strength=float("nan")),
    "unknown routing": set_to("apply", routing="everywhere"),
    "text for a number": set_to("apply", fuse_scale="much"),
    "name with a bar": set_to("subject_1", name="a|b"),
    "no subject": lambda graph: [graph["apply"]["inputs"].pop(f"subjects.subject_{i}", None) for i in (1, 2, 3)],
    "no model": without("apply", "model"),
    "no prompt": without("apply", "positive"),
    "wrong socket": set_to("apply", model=["tiny", 1]),
    "link to nothing": set_to("apply", model=["nowhere", 0]),
    "slot that is not there": set_to("apply", model=["tiny", 9]),
    "unknown node": lambda graph: graph.update(apply=node("MMDiffNoSuchNode")),
    "cycle": set_to("subject_1", subject=["subject_1", 0]),
    "applied twice": applied_twice,
    "gone checkpoint": set_to("mmdiff", checkpoint="gone"),
    "gone photo": set_to("photo", image="gone.png"),
    "no face analysis": without("encode_1", "face_analysis"),
    "ninth face": set_to("encode_1", face="left to right", face_index=9),
}


def jobs_of(graphs: Graphs, count: int) -> list[list[Job]]:
    """Bursts of jobs, posted at once; a job to be cancelled comes alone, for ComfyUI cancels whatever is at work."""
    bursts, made = [], 0
    while made < count:
        if graphs.random.random() < 0.15:
            burst = [Job(CANCELLED, "", graphs.picture(steps=12))]
        else:
            burst = []
            for _ in range(min(graphs.random.randint(1, CLIENTS), count - made)):
                if graphs.random.random() < 0.35:
                    burst.append(Job(MALFORMED, *graphs.malformed()))
                else:
                    burst.append(Job(PICTURE, "", graphs.picture()))
        bursts.append(burst)
        made += len(burst)
    return bursts


def soak(server, photo: str, jobs: int, seed: int = 0, show: Callable[[str], None] = lambda line: None) -> Figures:
    """Posts so many jobs to a LiveServer that has the tiny models."""
    import psutil

    process = psutil.Process(server.process.pid)
    random = Random(seed)
    graphs = Graphs(photo, random)
    figures, memory, begun = Figures(jobs), [], time.monotonic()
    before = plain_picture(server, graphs, repeats=1)
    with ThreadPoolExecutor(CLIENTS) as clients:
        for burst in jobs_of(graphs, jobs):
            cancel_at = random.randint(1, 14)
            list(clients.map(lambda job, step=cancel_at: run_job(server, job, step), burst))
            server.post("/history", {"clear": True})  # it grows with every prompt, on purpose
            memory += [process.memory_info().rss / 2**20] * len(burst)
            for job in burst:
                note(figures, job)
                show(f"{len(memory)} {job.kind} {job.about}: {job.answer} {job.said[:100]}")
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
        job.answer = "ok" if server.images(outputs) else "wrong"
    except PromptError as error:
        job.answer = "cancelled" if error.kind == "execution_interrupted" else "refused"
        job.said = error.message if job.answer == "refused" else ""
    except (TimeoutError, ServerError, OSError, ValueError) as error:
        job.answer, job.said = "lost", f"{type(error).__name__}: {str(error)[:300]}"
    wanted = {PICTURE: ("ok",), CANCELLED: ("cancelled", "ok"), MALFORMED: ("refused",)}[job.kind]
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


def plain_picture(server, graphs: Graphs, repeats: int) -> list[tuple]:
    from PIL import Image

    pictures = [Image.open(io.BytesIO(file)) for file in server.images(server.run(graphs.plain(repeats)), "show")]
    return [(picture.size, picture.tobytes()) for picture in pictures]


def start_and_soak(jobs: int, seed: int) -> Figures:
    """A server of its own with the tiny models and one photo."""
    comfyui = Path(os.environ[HOST])
    sys.path.insert(0, str(comfyui))
    sys.argv = [sys.argv[0], "--cpu"]  # ComfyUI reads the command line on import
    import comfy.options

    comfy.options.enable_args_parsing()
    import skimage.data
    from PIL import Image

    from live import LiveServer
    from tiny_prompt import write_tiny_models

    os.environ.update(GIVE_BACK)
    with LiveServer(comfyui) as server:
        write_tiny_models(server.models)
        photo = server.folder / "person.png"
        Image.fromarray(skimage.data.astronaut()).save(photo)
        return soak(server, server.upload(photo), jobs, seed, lambda line: print(line, flush=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    if HOST not in os.environ:
        host = setup_host.prepare()
        environment = {**os.environ, HOST: str(host.comfyui)}
        return subprocess.run([host.python, __file__, *sys.argv[1:]], env=environment).returncode
    figures = start_and_soak(arguments.jobs, arguments.seed)
    if arguments.json:
        measured = {**asdict(figures), "memory_change": figures.memory_change, "passed": figures.passed}
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")
    print(figures.line())
    return 0 if figures.passed else 1


if __name__ == "__main__":
    sys.exit(main())
