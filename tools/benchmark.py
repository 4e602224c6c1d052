"""What MM-Diff costs per sampling step: a full-size SDXL UNet with random bf16 weights, plain and with subjects.

    python tools/benchmark.py [--rounds 8] [--steps 2] [--size 32] [--json FILE]

Settings take turns in every round, so that drift of the machine meets all alike; ratios are to `plain` of the same
round, as median and range. On a CPU the latent is 32 x 32, with CUDA 128 x 128 (a 1024 x 1024 picture). Batch 2 (cfg
5). All settings share one loaded model with the LoRAs merged, which leaves the plain step what it was and its memory
comparable: ComfyUI keeps the originals of LoRA-patched weights in RAM, here as with any LoRA.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import setup_host

HOST = "MMDIFF_BENCHMARK_HOST"
ROOT = Path(__file__).resolve().parent.parent
WIDTHS = [640] * 4 + [1280] * 50 + [640] * 6 + [1280] * 10
RANK, TOKENS = 64, 4


@dataclass
class Setting:
    """One row of the table: a model, and what was measured with it."""

    name: str
    model: object
    conditioning: list
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
    base = random_sdxl()
    settings = make_settings(base)
    for setting in settings:
        run(setting, size, 1)
    for number in range(args.rounds):
        for setting in settings:
            seconds, megabytes = run(setting, size, args.steps)
            setting.seconds.append(seconds)
            setting.megabytes.append(megabytes)
        print(
            f"round {number + 1} of {args.rounds}: " + ", ".join(f"{s.name} {s.seconds[-1]:.2f} s" for s in settings),
            flush=True,
        )
    report = table(settings)
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"\nSDXL UNet, bf16, batch 2, latent {size} x {size}, {device}; {args.rounds} rounds of {args.steps} steps\n")
    for row in report:
        print(
            "| {name} | {seconds:.3f} s | {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}) | {memory:.3f} |".format(
                **row
            )
        )
    if args.json:
        args.json.write_text(
            json.dumps(
                {"device": device, "size": size, "rounds": args.rounds, "steps": args.steps, "rows": report}, indent=1
            )
        )
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="sampling steps per round and setting")
    parser.add_argument("--size", type=int, help="side of the latent")
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser.parse_args()


def import_host() -> None:
    """ComfyUI and the pack on sys.path; ComfyUI reads its own command line on import."""
    sys.path[:0] = [os.environ[HOST], str(ROOT)]
    import torch

    sys.argv = [sys.argv[0], "--bf16-unet", "--disable-dynamic-vram"] + ([] if torch.cuda.is_available() else ["--cpu"])
    import comfy.options

    comfy.options.enable_args_parsing()


def random_sdxl():
    """A ModelPatcher of SDXL's real size with small random weights."""
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    from mmdiff_model.training.memory import UNET

    config = comfy.supported_models.SDXL({**UNET, "dtype": torch.bfloat16})
    torch.manual_seed(0)
    model = comfy.model_base.SDXL(config, device="cpu")
    for parameter in model.diffusion_model.parameters():
        parameter.data.normal_(std=0.02)
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), torch.device("cpu"))


def random_checkpoint():
    """A checkpoint of the released sizes with random LoRAs; sampling needs nothing else of it."""
    import torch

    from mmdiff_model.checkpoint import Checkpoint
    from mmdiff_model.lora import attention_names

    lora = {}
    for name, width in zip(attention_names(WIDTHS), WIDTHS, strict=True):
        for attention, source, image in (("attn1", width, ()), ("attn2", 2048, ("to_k_lora_image", "to_v_lora_image"))):
            for key in ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora", *image):
                inputs = width if key in ("to_q_lora", "to_out_lora") else source
                lora[f"{name}.{attention}.processor.{key}.down.weight"] = (
                    torch.randn(RANK, inputs, dtype=torch.bfloat16) / inputs**0.5
                )
                lora[f"{name}.{attention}.processor.{key}.up.weight"] = (
                    torch.randn(width, RANK, dtype=torch.bfloat16) * 0.01
                )
    return Checkpoint("benchmark", "portrait", None, "benchmark", None, {}, {}, lora)


def make_settings(base) -> list[Setting]:
    """Plain; a subject with 1, 4 and 12 photos, K and V kept or projected anew; 1, 2 and 4 subjects in each routing."""
    import torch
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    from mmdiff_model.lora import unet_patches
    from mmdiff_model.sampling.projection import image_projections, project_tokens
    from mmdiff_model.sampling.routing import AUTO, MASKS, OFF
    from mmdiff_model.sampling.run import WRAPPER_KEY, SubjectSampling, count_steps
    from mmdiff_model.schedule import Schedule
    from mmdiff_model.subject import Subject
    from mmdiff_model.text import CLASS_WORDS

    checkpoint = random_checkpoint()
    base = base.clone()
    base.add_patches(unet_patches(base, checkpoint.unet_lora))
    embeddings, pooled = torch.randn(1, 77, 2048), torch.randn(1, 1280)

    def subject(photos: int, region=None) -> Subject:
        return Subject(torch.randn(768), torch.randn(photos, TOKENS, 2048), "portrait", "benchmark", region=region)

    def setting(name: str, sampling, subjects: int) -> Setting:
        model = base.clone()
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, WRAPPER_KEY, sampling)
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, count_steps)
        words = tuple((i, 3 + 4 * i) for i in range(subjects))
        return Setting(name, model, [[embeddings, {"pooled_output": pooled, CLASS_WORDS: words}]])

    def with_subjects(subjects: list[Subject], routing: str = OFF) -> SubjectSampling:
        return SubjectSampling(checkpoint, tuple(subjects), 0.8, Schedule(), routing)

    def project_each_step(executor, *call, **options):
        model = executor.class_obj
        project_tokens(
            model, image_projections(model, checkpoint.unet_lora), torch.randn(4 * TOKENS, 2048), torch.ones(4 * TOKENS)
        )
        return executor(*call, **options)

    def anew(executor, guider, sigmas, extra_args, *call, **options):
        add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, "benchmark", project_each_step, extra_args["model_options"], is_model_options=True
        )
        return with_subjects([subject(4)])(executor, guider, sigmas, extra_args, *call, **options)

    settings = [setting("plain", lambda executor, *call, **options: executor(*call, **options), 0)]
    settings += [
        setting(f"1 subject of {plural(photos, 'photo')}", with_subjects([subject(photos)]), 1) for photos in (1, 4, 12)
    ]
    settings.append(setting("1 subject of 4 photos, K and V in each step", anew, 1))
    for routing in (OFF, MASKS, AUTO):
        for count in (1, 2, 4):
            columns = torch.arange(64) * count // 64
            subjects = [subject(1, (columns == i).float().expand(64, 64)) for i in range(count)]
            settings.append(
                setting(f"{plural(count, 'subject')}, routing {routing}", with_subjects(subjects, routing), count)
            )
    return settings


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"


def run(setting: Setting, size: int, steps: int) -> tuple[float, float]:
    """Median seconds of a step, without the set-up before the first, and the run's peak memory in MB."""
    import comfy.samplers
    import torch

    guider = comfy.samplers.CFGGuider(setting.model)
    guider.set_conds(setting.conditioning, setting.conditioning)
    guider.set_cfg(5.0)
    sigmas = torch.linspace(10, 1, steps + 1)
    noise = torch.randn(1, 4, size, size)
    clock = StepClock()
    setting.model.set_model_unet_function_wrapper(clock)
    with PeakMemory() as memory, torch.inference_mode():
        guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0
        )
    return statistics.median(clock.seconds), memory.peak


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
    """Rows: median step, its ratio to plain by round (median, lowest, highest), ratio of peak memory."""
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
                "ratio": (statistics.median(ratios), min(ratios), max(ratios)),
                "memory": memory,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
