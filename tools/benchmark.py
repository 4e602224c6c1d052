"""What MM-Diff costs: SDXL's UNet, its text encoders and CLIP ViT-L/14 at full size with random weights.

    python tools/benchmark.py [--rounds 8] [--steps 2] [--size 32] [--dtype fp32] [--only TABLE]
                              [--json FILE]

Settings take turns in every round, so that drift of the machine meets all alike. Ratios are to the first row of the
table in the same round, as median and range; `quietest` compares the fastest round of each. On a CPU the latent is
32 x 32, with CUDA 128 x 128 (a 1024 x 1024 picture). Batch 2 (cfg 5). 12 GB of memory, 20 GB in fp32, which a CPU
without bf16 instructions needs to show ratios that mean something. On a CPU set OMP_WAIT_POLICY=PASSIVE, or another
program at the same time slows both.

Steps share one loaded model with the LoRAs merged, which leaves the plain step what it was and its memory comparable:
ComfyUI keeps the originals of LoRA-patched weights in RAM, here as with any LoRA. Attentions are all that subjects add
to a step, without the UNet, whose noise hides it: in ten times as many rounds. An edit is timed from the execution
of the edited node to the end of the first step. Encoders are timed beside plain passes of the same models.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarking.attentions import make_attentions
from benchmarking.edits import make_edits
from benchmarking.encoders import make_encoders
from benchmarking.steps import make_steps
from benchmarking.turns import take_turns
from in_host import import_host, run_in_host
from random_models import random_adapter, random_checkpoint, random_sdxl, random_text, random_vision

TABLES = ("steps", "attentions", "edits", "encoders")
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    args = parse_arguments()
    if (status := run_in_host(__file__)) is not None:
        return status
    start_host(args.dtype)
    import torch

    cuda = torch.cuda.is_available()
    size = args.size or (128 if cuda else 32)
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    tables, dtype = {}, {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    if args.only in (None, "steps", "edits"):
        base, checkpoint = random_sdxl(dtype), random_checkpoint()
        if args.only != "edits":
            tables["steps"] = take_turns(make_steps(base, checkpoint, size, args.steps), args.rounds)
        if args.only != "steps":
            tables["edits"] = take_turns(make_edits(base, checkpoint, size), args.rounds)
    if args.only in (None, "attentions"):
        tables["attentions"] = take_turns(make_attentions(size, dtype), 10 * args.rounds)
    if args.only in (None, "encoders"):
        vision = random_vision()
        encoders = make_encoders(vision, random_text(dtype), random_adapter(vision))
        tables |= {name: take_turns(settings, args.rounds) for name, settings in encoders.items()}
    print(
        f"\nSDXL, {args.dtype}, batch 2, latent {size} x {size}, {device}; {args.rounds} rounds of {args.steps} steps"
    )
    for name, rows in tables.items():
        print(f"\n| {name} | seconds | ratio, median (range) | quietest | memory |\n|---|---|---|---|---|")
        for row in rows:
            print(
                "| {name} | {seconds:.3f} | {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}) | {quietest:.3f} "
                "| {memory:.3f} |".format(**row)
            )
    if args.json:
        figures = {
            "device": device,
            "dtype": args.dtype,
            "size": size,
            "rounds": args.rounds,
            "steps": args.steps,
            **tables,
        }
        args.json.write_text(json.dumps(figures, indent=1))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="sampling steps per round and setting")
    parser.add_argument("--size", type=int, help="side of the latent")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the weights (default: bf16)")
    parser.add_argument("--only", choices=TABLES, help="one of the tables")
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser.parse_args()


def start_host(dtype: str) -> None:
    """ComfyUI and the pack on sys.path."""
    sys.path.insert(0, str(ROOT))
    import torch

    device = [] if torch.cuda.is_available() else ["--cpu"]
    import_host(f"--{dtype}-unet", f"--{dtype}-text-enc", "--disable-dynamic-vram", *device)


if __name__ == "__main__":
    sys.exit(main())
