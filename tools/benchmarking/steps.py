"""Seconds of a sampling step, with nothing, one and more subjects."""

from collections.abc import Sequence

from .sampling import make_conditioning, make_subject, step_time
from .turns import Setting, plural


def make_steps(base, checkpoint, size: int, steps: int) -> list[Setting]:
    """Plain; a patch that does nothing; a subject with 1 and 12 photos; 2 and 4 subjects in each routing."""
    import torch
    from comfy.ldm.modules.attention import optimized_attention

    from mmdiff_model.lora import add_lora, unet_patches
    from mmdiff_model.sampling import apply_subjects
    from mmdiff_model.sampling.projection import image_projections
    from mmdiff_model.sampling.routing import AUTO, MASKS, OFF

    def setting(name: str, model, subjects: Sequence = ()) -> Setting:
        conditioning = make_conditioning(subjects)
        return Setting(name, lambda: step_time(model, conditioning, size, steps))

    def with_subjects(name: str, subjects: list, routing: str = OFF) -> Setting:
        return setting(name, apply_subjects(base, checkpoint, subjects, routing=routing), subjects)

    def nothing(q, k, v, options: dict):
        return optimized_attention(
            q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
        )

    plain = base.clone()
    add_lora(plain, unet_patches(base, checkpoint.unet_lora), checkpoint.lora_digest)
    patched = plain.clone()
    for projection in image_projections(base.model, checkpoint.unet_lora):
        patched.set_model_attn2_replace(nothing, *projection.block)
    settings = [setting("plain", plain), setting("a patch that does nothing", patched)]
    for photos in (1, 12):
        settings.append(with_subjects(f"1 subject of {plural(photos, 'photo')}", [make_subject(photos)]))
    for routing in (OFF, MASKS, AUTO):
        for count in (2, 4):
            columns = torch.arange(64) * count // 64
            regions = [(columns == i).float().expand(64, 64) if routing == MASKS else None for i in range(count)]
            subjects = [make_subject(1, region) for region in regions]
            settings.append(with_subjects(f"{count} subjects, routing {routing}", subjects, routing))
    return settings
