"""Seconds of a step's cross-attentions alone: all that a subject adds to a step, without the UNet around them."""

from collections.abc import Callable, Sequence

from random_models import TOKENS

from .turns import Setting, plural, timed

# SDXL's transformer blocks: (kind, number of the UNet's block, blocks in it, width, latents per pixel and side)
BLOCKS = [
    *[("input", number, 2, 640, 2) for number in (4, 5)],
    *[("input", number, 10, 1280, 4) for number in (7, 8)],
    ("middle", 0, 10, 1280, 4),
    *[("output", number, 10, 1280, 4) for number in (0, 1, 2)],
    *[("output", number, 2, 640, 2) for number in (3, 4, 5)],
]
TEXT_TOKENS = 77


def make_attentions(size: int, dtype) -> list[Setting]:
    """The host's 70 attentions to the text, and the same with subjects: their K and V given, as in every step."""
    import comfy.model_management
    import torch
    from comfy.ldm.modules.attention import optimized_attention

    from mmdiff_model.sampling.attention import STEP, MultimodalCrossAttention
    from mmdiff_model.sampling.conditionings import Conditioning
    from mmdiff_model.sampling.routing import AUTO, MASKS, OFF, make
    from mmdiff_model.sampling.routing.auto import reading_blocks
    from mmdiff_model.sampling.rows import Call, Row
    from mmdiff_model.sampling.step import Step

    device = comfy.model_management.get_torch_device()
    calls = []
    for kind, number, count, width, scale in BLOCKS:
        side = size // scale
        for index in range(count):
            q = torch.randn(2, side * side, width, dtype=dtype, device=device)
            k, v = torch.randn(2, 2, TEXT_TOKENS, width, dtype=dtype, device=device)
            options = {"n_heads": width // 64, "activations_shape": [2, width, side, side], "attn_precision": None}
            calls.append(((kind, number, index), q, k, v, options))
    widths = {block: q.shape[-1] for block, q, *_ in calls}

    def host() -> None:
        for _, q, k, v, options in calls:
            optimized_attention(q, k, v, options["n_heads"], attn_precision=None, transformer_options=options)

    def with_subjects(photos: Sequence[int], mode: str) -> Callable[[], None]:
        columns = torch.arange(64) * len(photos) // 64
        regions = [(columns == i).float().expand(64, 64) if mode == MASKS else None for i in range(len(photos))]
        routing = make(mode, regions, (size, size), reading_blocks(widths))
        text, everyone = torch.zeros(1, TEXT_TOKENS, 1), tuple(range(len(photos)))
        words = tuple((i, 3 + 4 * i) for i in everyone)
        positive = Conditioning(0, everyone, words, TEXT_TOKENS, None, text)
        negative = Conditioning(1, (), (), TEXT_TOKENS, None, text)
        lengths = tuple(TOKENS * count for count in photos)
        tokens = {width: torch.randn(2, 1, sum(lengths), width, dtype=dtype, device=device) for width in (640, 1280)}
        patches = [MultimodalCrossAttention(block, tuple(tokens[width])) for block, width in widths.items()]

        def work() -> None:
            call = Call((Row(positive, 0), Row(negative, 0)), (0, 1), (size, size))
            step = Step(call, frozenset(everyone), lengths, (size, size), routing, (positive, negative))
            step = step.prepare(device)
            for patch, (_, q, k, v, options) in zip(patches, calls, strict=True):
                patch(q, k, v, {**options, STEP: step})

        return work

    settings = [timed("the host's, to the text", host)]
    for photos in ([1], [12]):
        settings.append(timed(f"1 subject of {plural(photos[0], 'photo')}", with_subjects(photos, OFF)))
    for mode in (OFF, MASKS, AUTO):
        settings.append(timed(f"2 subjects, routing {mode}", with_subjects([1, 1], mode)))
    return settings
