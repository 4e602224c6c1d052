"""The workflows that tools/soak.py posts: pictures of all kinds in the API's format, and damaged ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random

SIZES = (64, 72, 96, 128, 200)
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "lcm", "ddim", "uni_pc", "lms")
SCHEDULERS = ("normal", "karras", "exponential", "sgm_uniform", "ddim_uniform", "beta")
WORDS = ("man", "woman", "dog", "glassblower", "boy", "caf\u00e9 owner", "(robot:1.2)", "king")
PLACES = ("in the rain", "on a beach, (soft light: 1.1)", "s, laughing", " at work, " + "very detailed, " * 20)
CLS_FROM = ("first photo (as released)", "mean of all photos")

Prompt = dict[str, dict]


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

    def again(self, prompt: Prompt) -> Prompt:
        """A picture's prompt that ComfyUI's cache does not answer, and that paints the same."""
        graph = copy.deepcopy(prompt)
        graph["repeat"] = node("RepeatLatentBatch", samples=["latent", 0], amount=1)
        graph["sample"]["inputs"]["latent_image"] = ["repeat", 0]
        return graph

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
