"""What MM-Diff costs: SDXL's UNet, its text encoders and CLIP ViT-L/14 at full size with random bf16 weights.

    python tools/benchmark.py [--rounds 8] [--steps 2] [--size 32] [--only steps|edits|encoders] [--json FILE]

Settings take turns in every round, so that drift of the machine meets all alike. Ratios are to the first row of the
table in the same round, as median and range; `quietest` compares the fastest round of each. On a CPU the latent is
32 x 32, with CUDA 128 x 128 (a 1024 x 1024 picture). Batch 2 (cfg 5). 12 GB of memory; on a CPU set
OMP_WAIT_POLICY=PASSIVE, or another program at the same time slows both.

Steps share one loaded model with the LoRAs merged, which leaves the plain step what it was and its memory comparable:
ComfyUI keeps the originals of LoRA-patched weights in RAM, here as with any LoRA. An edit is timed from the execution
of the edited node to the end of the first step. Encoders are timed beside plain passes of the same models.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import setup_host
from random_models import TOKENS, random_adapter, random_checkpoint, random_sdxl, random_text, random_vision

HOST = "MMDIFF_BENCHMARK_HOST"
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Setting:
    """One row of a table: what is measured, giving seconds and peak memory in MB, and what came of it."""

    name: str
    measure: Callable[[], tuple[float, float]]
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


def main() -> int:
    args = parse_arguments()
    if HOST not in os.environ:
        host = setup_host.prepare()
        return subprocess.run(
            [host.python, __file__, *sys.argv[1:]], env={**os.environ, HOST: str(host.comfyui)}
        ).returncode
    import_host()
    import torch

    cuda = torch.cuda.is_available()
    size = args.size or (128 if cuda else 32)
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    tables = {}
    if args.only in (None, "steps", "edits"):
        base, checkpoint = random_sdxl(), random_checkpoint()
        if args.only != "edits":
            tables["steps"] = take_turns(make_steps(base, checkpoint, size, args.steps), args.rounds)
        if args.only != "steps":
            tables["edits"] = take_turns(make_edits(base, checkpoint, size), args.rounds)
    if args.only in (None, "encoders"):
        tables |= {name: take_turns(settings, args.rounds) for name, settings in make_encoders().items()}
    print(f"\nSDXL, bf16, batch 2, latent {size} x {size}, {device}; {args.rounds} rounds of {args.steps} steps")
    for name, rows in tables.items():
        print(f"\n| {name} | seconds | ratio, median (range) | quietest | memory |\n|---|---|---|---|---|")
        for row in rows:
            print(
                "| {name} | {seconds:.3f} | {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}) | {quietest:.3f} "
                "| {memory:.3f} |".format(**row)
            )
    if args.json:
        figures = {"device": device, "size": size, "rounds": args.rounds, "steps": args.steps, **tables}
        args.json.write_text(json.dumps(figures, indent=1))
    return 0


def take_turns(settings: list[Setting], rounds: int) -> list[dict]:
    """Every setting once to warm up, then in turns -> rows of a table."""
    for setting in settings:
        setting.measure()
    for number in range(rounds):
        for setting in settings:
            seconds, megabytes = setting.measure()
            setting.seconds.append(seconds)
            setting.megabytes.append(megabytes)
        line = ", ".join(f"{setting.name} {setting.seconds[-1]:.2f} s" for setting in settings)
        print(f"round {number + 1} of {rounds}: {line}", flush=True)
    return table(settings)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="sampling steps per round and setting")
    parser.add_argument("--size", type=int, help="side of the latent")
    parser.add_argument("--only", choices=("steps", "edits", "encoders"), help="one of the three tables")
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser.parse_args()


def import_host() -> None:
    """ComfyUI and the pack on sys.path; ComfyUI reads its own command line on import."""
    sys.path[:0] = [os.environ[HOST], str(ROOT)]
    import torch

    sys.argv = [sys.argv[0], "--bf16-unet", "--disable-dynamic-vram"] + ([] if torch.cuda.is_available() else ["--cpu"])
    import comfy.options

    comfy.options.enable_args_parsing()


def make_subject(photos: int, region=None):
    import torch

    from mmdiff_model.subject import Subject

    return Subject(torch.randn(768), torch.randn(photos, TOKENS, 2048), "portrait", "benchmark", region=region)


def make_conditioning(subjects: int) -> list:
    import torch

    from mmdiff_model.text import CLASS_WORDS

    words = tuple((i, 3 + 4 * i) for i in range(subjects))
    return [[torch.randn(1, 77, 2048), {"pooled_output": torch.randn(1, 1280), CLASS_WORDS: words}]]


def make_steps(base, checkpoint, size: int, steps: int) -> list[Setting]:
    """Plain; a patch that does nothing; a subject with 1, 4 and 12 photos; 1, 2 and 4 subjects in each routing."""
    import torch
    from comfy.ldm.modules.attention import optimized_attention
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    from mmdiff_model.lora import add_lora, unet_patches
    from mmdiff_model.sampling import apply_subjects
    from mmdiff_model.sampling.projection import image_projections, project_tokens
    from mmdiff_model.sampling.routing import AUTO, MASKS, OFF

    plain = base.clone()
    add_lora(plain, unet_patches(base, checkpoint.unet_lora), checkpoint.lora_digest)
    projections = image_projections(base.model, checkpoint.unet_lora)

    def setting(name: str, model, subjects: int = 1) -> Setting:
        conditioning = make_conditioning(subjects)
        return Setting(name, lambda: step_time(model, conditioning, size, steps))

    def with_subjects(subjects: list, routing: str = OFF):
        return apply_subjects(base, checkpoint, subjects, routing=routing)

    def nothing(q, k, v, options: dict):
        return optimized_attention(
            q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
        )

    def project_each_step(executor, *call, **options):
        project_tokens(executor.class_obj, projections, torch.randn(4 * TOKENS, 2048), torch.ones(4 * TOKENS))
        return executor(*call, **options)

    patched = plain.clone()
    for projection in projections:
        patched.set_model_attn2_replace(nothing, *projection.block)
    anew = with_subjects([make_subject(4)])
    add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "benchmark", project_each_step, anew.model_options, is_model_options=True
    )
    settings = [setting("plain", plain), setting("a patch that does nothing", patched)]
    settings += [
        setting(f"1 subject of {plural(photos, 'photo')}", with_subjects([make_subject(photos)]))
        for photos in (1, 4, 12)
    ]
    settings.append(setting("1 subject of 4 photos, K and V in each step", anew))
    for routing in (OFF, MASKS, AUTO):
        for count in (1, 2, 4):
            columns = torch.arange(64) * count // 64
            regions = [(columns == i).float().expand(64, 64) if routing == MASKS else None for i in range(count)]
            subjects = [make_subject(1, region) for region in regions]
            settings.append(
                setting(f"{plural(count, 'subject')}, routing {routing}", with_subjects(subjects, routing), count)
            )
    return settings


def make_edits(base, checkpoint, size: int) -> list[Setting]:
    """The first step after an edit: a LoRA of the same rank in a cached node, our node, a LoRA that is edited too."""
    from mmdiff_model.lora import unet_patches
    from mmdiff_model.sampling import apply_subjects

    patches = unet_patches(base, checkpoint.unet_lora)
    cached, subject = base.clone(), make_subject(1)
    cached.add_patches(patches)

    def lora_again():
        model = base.clone()
        model.add_patches(patches)
        return model

    def edit(name: str, make_model: Callable, unedited: Callable | None = None) -> Setting:
        def measure() -> tuple[float, float]:
            first_step(unedited() if unedited else make_model(), make_conditioning(1), size)
            with PeakMemory() as memory:
                start = time.perf_counter()
                end = first_step(make_model(), make_conditioning(1), size)
            return end - start, memory.peak

        return Setting(name, measure)

    ours = [lambda scale=scale: apply_subjects(base, checkpoint, [subject], scale) for scale in (0.8, 0.7)]
    return [
        edit("prompt edit, a LoRA of rank 64 in a cached node", lambda: cached),
        edit("prompt edit, Apply MM-Diff", ours[0]),
        edit("fuse_scale edit, Apply MM-Diff", ours[1], ours[0]),
        edit("strength edit, a LoRA of rank 64", lora_again),
    ]


def make_encoders() -> dict[str, list[Setting]]:
    """Two plain CLIP vision passes and two plain text encodings beside a subject and a prompt pair of ours."""
    import torch

    from mmdiff_model.subject import Face, encode_subject
    from mmdiff_model.text import encode_text

    vision, clip = random_vision(), random_text()
    checkpoint, photo = random_adapter(vision), torch.rand(512, 512, 3)
    face = Face(torch.nn.functional.normalize(torch.randn(512), dim=0), torch.rand(224, 224, 3))
    prompt, negative = "a man<|subj|> on the beach", "lowres, bad anatomy"

    def timed(name: str, work: Callable[[], object]) -> Setting:
        def measure() -> tuple[float, float]:
            with PeakMemory() as memory, torch.inference_mode():
                start = time.perf_counter()
                work()
                seconds = time.perf_counter() - start
            return seconds, memory.peak

        return Setting(name, measure)

    def plain_vision(photos: int) -> None:
        for _ in range(2):
            vision.encode_image(photo.expand(photos, -1, -1, -1))

    def plain_text() -> None:
        for text in (prompt.replace("<|subj|>", ""), negative):
            clip.encode_from_tokens_scheduled(clip.tokenize(text))

    subject, tables = make_subject(1), {}
    for photos in (1, 4):
        tables[f"a subject of {plural(photos, 'photo')}"] = [
            timed("two plain CLIP vision passes", lambda photos=photos: plain_vision(photos)),
            timed(
                "encode a subject",
                lambda photos=photos: encode_subject(checkpoint, vision, [photo] * photos, [face] * photos),
            ),
        ]
    tables["a prompt pair"] = [
        timed("two plain text encodings", plain_text),
        timed("encode a prompt pair", lambda: encode_text(clip, checkpoint, [subject], prompt, negative)),
    ]
    return tables


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"


def step_time(model, conditioning: list, size: int, steps: int) -> tuple[float, float]:
    """Median seconds of a step, without the set-up before the first, and the run's peak memory in MB."""
    clock = StepClock()
    model.set_model_unet_function_wrapper(clock)
    with PeakMemory() as memory:
        sample(model, conditioning, size, steps)
    return statistics.median(clock.seconds), memory.peak


def first_step(model, conditioning: list, size: int) -> float:
    """When the first step is done."""
    ends = []
    sample(model, conditioning, size, 1, lambda *_: ends.append(time.perf_counter()))
    return ends[0]


def sample(model, conditioning: list, size: int, steps: int, callback: Callable | None = None) -> None:
    import comfy.samplers
    import torch

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(5.0)
    noise, sampler = torch.randn(1, 4, size, size), comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        guider.sample(
            noise,
            torch.zeros_like(noise),
            sampler,
            torch.linspace(10, 1, steps + 1),
            callback=callback,
            disable_pbar=True,
            seed=0,
        )


class StepClock:
    """model_function_wrapper: seconds of each model call, up to the end of the device's work."""

    def __init__(self):
        self.seconds = []

    def __call__(self, apply_model, call: dict):
        import torch

        wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        wait()
        start = time.perf_counter()
        out = apply_model(call["input"], call["timestep"], **call["c"])
        wait()
        self.seconds.append(time.perf_counter() - start)
        return out


class PeakMemory:
    """Peak device memory in MB; on a CPU the process's resident set, sampled every 5 ms."""

    def __enter__(self) -> "PeakMemory":
        import torch

        self.peak, self.cuda, self.running = 0.0, torch.cuda.is_available(), True
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self.thread = threading.Thread(target=self.watch, daemon=True)
            self.thread.start()
        return self

    def watch(self) -> None:
        import psutil

        process = psutil.Process()
        while self.running:
            self.peak = max(self.peak, process.memory_info().rss / 2**20)
            time.sleep(0.005)

    def __exit__(self, *_) -> None:
        import torch

        self.running = False
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            self.thread.join()


def table(settings: list[Setting]) -> list[dict]:
    """Rows: median seconds, ratio to the first row by round (median, lowest, highest) and of the fastest rounds, and of
    peak memory."""
    plain = settings[0]
    rows = []
    for setting in settings:
        ratios = [ours / theirs for ours, theirs in zip(setting.seconds, plain.seconds, strict=True)]
        memory = statistics.median(
            ours / theirs for ours, theirs in zip(setting.megabytes, plain.megabytes, strict=True)
        )
        rows.append(
            {
                "name": setting.name,
                "seconds": statistics.median(setting.seconds),
                "quietest": min(setting.seconds) / min(plain.seconds),
                "ratio": (statistics.median(ratios), min(ratios), max(ratios)),
                "memory": memory,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
