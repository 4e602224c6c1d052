"""DreamBench's figures as papers print them, beside which an own run can be read."""

from collections.abc import Sequence
from dataclasses import dataclass

from .report import markdown

WARNING = (
    "Published rows come from other evaluators. The same method differs by 0.03 to 0.08 between them: only rows of one "
    "evaluator's run can be compared. The row of the references shows how far this one is from DreamBooth's."
)
DREAMBOOTH, SUBJECT_DIFFUSION = "DreamBooth", "Subject-Diffusion"
LAMBDA_ECLIPSE, DIPTYCH = "lambda-ECLIPSE", "Diptych Prompting"
METRICS = ("DINO", "CLIP-I", "CLIP-T")


@dataclass(frozen=True)
class Row:
    """`source` is the paper that prints the row."""

    method: str
    values: tuple[float | None, float | None, float | None]  # as METRICS
    source: str


ONE_SUBJECT = (
    Row("real photos", (0.774, 0.885, None), DREAMBOOTH),
    Row("DreamBooth, Imagen", (0.696, 0.812, 0.306), DREAMBOOTH),
    Row("DreamBooth, Stable Diffusion", (0.668, 0.803, 0.305), DREAMBOOTH),
    Row("Textual Inversion", (0.569, 0.780, 0.255), DREAMBOOTH),
    Row("Custom Diffusion", (0.643, 0.790, 0.305), SUBJECT_DIFFUSION),
    Row("BLIP-Diffusion, zero-shot", (0.594, 0.779, 0.300), SUBJECT_DIFFUSION),
    Row("BLIP-Diffusion, zero-shot", (0.603, 0.793, 0.291), LAMBDA_ECLIPSE),
    Row("ELITE", (0.621, 0.771, 0.293), SUBJECT_DIFFUSION),
    Row("IP-Adapter", (0.667, 0.813, 0.289), SUBJECT_DIFFUSION),
    Row("IP-Adapter, SD 1.5", (0.629, 0.827, 0.264), LAMBDA_ECLIPSE),
    Row("IP-Adapter, SDXL", (0.613, 0.810, 0.292), LAMBDA_ECLIPSE),
    Row("Kosmos-G", (0.694, 0.847, 0.287), DIPTYCH),
    Row("Kosmos-G", (0.618, 0.822, 0.250), LAMBDA_ECLIPSE),
    Row("Subject-Diffusion", (0.711, 0.787, 0.293), SUBJECT_DIFFUSION),
    Row("lambda-ECLIPSE", (0.613, 0.783, 0.307), LAMBDA_ECLIPSE),
    Row("MS-Diffusion, SDXL", (0.671, 0.792, 0.321), DIPTYCH),
    Row("Diptych Prompting, FLUX", (0.689, 0.758, 0.344), DIPTYCH),
)
TWO_SUBJECTS = (
    Row("DreamBooth", (0.430, 0.695, 0.308), SUBJECT_DIFFUSION),
    Row("Custom Diffusion", (0.464, 0.698, 0.300), SUBJECT_DIFFUSION),
    Row("Subject-Diffusion", (0.506, 0.696, 0.310), SUBJECT_DIFFUSION),
)
PUBLISHED = {1: ONE_SUBJECT, 2: TWO_SUBJECTS}


def published_table(subjects: int, own: Sequence[Row]) -> str:
    """The published rows of DreamBench with so many subjects below one's own, and the warning."""
    rows = [
        [row.method, *("-" if value is None else f"{value:.3f}" for value in row.values), row.source]
        for row in (*own, *PUBLISHED[subjects])
    ]
    return f"{markdown([f'DreamBench, {subjects} subject(s)', *METRICS, 'source'], rows)}\n\n{WARNING}"
