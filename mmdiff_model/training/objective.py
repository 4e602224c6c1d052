"""MM-Diff's training objective: noise prediction with both conditions, and the attention-map constraint.

The UNet runs through ComfyUI's own `apply_model`, its cross-attentions through the patch that sampling installs, text
encoders and vision encoder through the host's own modules.
"""

import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import EPS
from comfy.sd import CLIP
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ..adapter import PORTRAIT
from ..sampling.attention import STEP, MultimodalCrossAttention
from ..sampling.projection import BlockKey, Projection, block_key
from ..text import ENCODERS
from .attention import training_step
from .constraint import MASKED, NONE, AttentionConstraint, Constraint
from .dataset import TIMESTEPS, Batch
from .encoders import allow_gradients, attend_as_torch, attend_by_products, embed_token, encode_pixels, encode_rows
from .lora import attach
from .plan import STRICT, Amount, Plan
from .trainable import IMAGE_BRANCH, TEXT_FUSION, Trainable

PIXELS_PER_LATENT = 8


@dataclass(frozen=True, config=STRICT)
class Losses:
    """constraint: `balance`, `masked` or `none`, with its weight beside the noise loss.

    snr_limit, velocity_limit: what each noise level counts in the noise loss; 0 turns either off. The first is
    min(1, limit / SNR), min-SNR: little noise, which hides details alone, counts least. The second is
    min(1 + 1 / SNR, limit), as where velocity is predicted: much noise, which hides the layout, counts most.
    """

    constraint: Constraint = MASKED
    constraint_weight: Amount = 0.1
    snr_limit: Amount = 0.0
    velocity_limit: Amount = 0.0


class Objective:
    """The loss of a batch. Hooks on the base's modules add the LoRAs until `close`.

    The base is the trainer's to change: give it a copy where others use it too. empty: rows of the empty prompt.
    Raises ValueError where the model samples in a way that SDXL does not.
    """

    def __init__(
        self,
        model: ModelPatcher,
        clip: CLIP,
        clip_vision: ClipVisionModel,
        trainable: Trainable,
        losses: Losses,
        empty: dict[str, list[int]],
        plan: Plan,
    ):
        self.model, self.clip, self.clip_vision = model.model, clip, clip_vision
        check_sampling(self.model.model_sampling)
        self.trainable, self.losses, self.empty = trainable, losses, empty
        self.device, self.plan = trainable.background.device, plan
        self.attention = attend_by_products if self.device.type == "cpu" else attend_as_torch
        for module in (self.model.diffusion_model, clip.cond_stage_model, clip_vision.model):
            module.requires_grad_(False)
        self.projections = [
            Projection(
                block_key(module),
                module,
                *(trainable.unet_lora[f"{attention}.to_{side}"].pair for side in "kv"),
                *(trainable.image_lora[f"{attention}.to_{side}"].pair for side in "kv"),
            )
            for attention, module in trainable.cross_attentions.items()
        ]
        self.open()

    def open(self) -> None:
        """Attaches the LoRAs to the base."""
        text = self.clip.cond_stage_model
        self.hooks = [
            *allow_gradients(text),
            *allow_gradients(self.clip_vision.model),
            *attach(self.trainable.unet_lora, self.model, self.trainable.unet_keys),
            *attach(self.trainable.text_lora, text, self.trainable.text_keys),
        ]

    def close(self) -> None:
        """Leaves the base as it was."""
        for hook in self.hooks:
            hook.remove()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with its gradient, and its parts without. The base and the adapter run in the plan's precision."""
        batch = batch.to(self.device)
        seen = batch.present & ~batch.drop_image[:, None]
        told = batch.present & ~batch.drop_text[:, None]
        acting = seen if IMAGE_BRANCH in self.trainable.parts else torch.zeros_like(seen)
        constraint = None
        if self.losses.constraint != NONE:
            constraint = AttentionConstraint(
                self.losses.constraint, batch.masks, batch.positions[ENCODERS[0]], text=told, image=acting
            )
        sigma = self.model.model_sampling.sigmas.to(batch.latents)[batch.timesteps]
        with self.plan.autocast(self.device):
            cls, tokens = self.encode_subjects(batch)
            context, pooled = self.encode_text(batch, cls, seen & told)
            denoised = self.denoise(batch, sigma, context, pooled, tokens, acting, constraint)
        error = (batch.latents - denoised.float()) / sigma.view(-1, 1, 1, 1)
        loss = self.noise_loss(error, sigma, batch)
        figures = {"noise": loss.detach()}
        if constraint is not None:
            maps = constraint.total()
            loss = loss + self.losses.constraint_weight * sum(maps.values())
            figures |= {f"{kind}_map": value.detach() for kind, value in maps.items()}
        return loss, figures

    def encode_subjects(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """CLS (b, s, cls_dim) by the tuned encoder and subject tokens (b, s, n, context_dim)."""
        photos, crops = (pictures.flatten(0, 1).movedim(-1, 1) for pictures in (batch.photos, batch.crops))
        cls = encode_pixels(self.clip_vision, photos, self.trainable.tuned_vision)[1]
        with torch.no_grad():
            patches = encode_pixels(self.clip_vision, crops)[0]
        identity = batch.identity.flatten(0, 1) if self.trainable.variant == PORTRAIT else cls
        tokens = self.trainable.adapter.subject_tokens(identity, patches)
        return cls.unflatten(0, batch.present.shape), tokens.unflatten(0, batch.present.shape)

    def encode_text(self, batch: Batch, cls: Tensor, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Context and pooled of the captions; the class words of the subjects in `fused` (b, s) are augmented."""
        rows = {
            key: [
                list(self.empty[key] if dropped else row)
                for row, dropped in zip(batch.rows[key], batch.drop_text.tolist(), strict=True)
            ]
            for key in ENCODERS
        }
        places = fused.nonzero().tolist() if TEXT_FUSION in self.trainable.parts else []
        if places:
            at = {key: [(row, int(batch.positions[key][row, subject])) for row, subject in places] for key in ENCODERS}
            words = tuple(
                torch.stack([embed_token(self.clip, key, rows[key][row][place], cls.device) for row, place in at[key]])
                for key in ENCODERS
            )
            for key, vectors in zip(ENCODERS, self.trainable.adapter.fuse(words, cls[fused]), strict=True):
                for (row, place), vector in zip(at[key], vectors, strict=True):
                    rows[key][row][place] = vector
        return encode_rows(self.clip, rows)

    def denoise(
        self,
        batch: Batch,
        sigma: Tensor,
        context: Tensor,
        pooled: Tensor,
        tokens: Tensor,
        acting: Tensor,
        constraint: AttentionConstraint | None,
    ) -> Tensor:
        """The UNet's denoised latents (b, 4, h, w); the subjects in `acting` (b, s) are in the image branch."""
        size = tuple(batch.latents.shape[2:])
        options = {
            "patches_replace": {"attn2": self.image_branch(tokens)},
            STEP: training_step(acting, tokens.shape[2], size, constraint),
            "optimized_attention_override": self.attention,
        }
        if self.losses.constraint == MASKED:
            background = self.trainable.background[None, None]
            constraint.background = {p.block: self.project(p, background)[0] for p in self.projections}
        height, width = (PIXELS_PER_LATENT * side for side in size)
        sizes = self.model.encode_adm(pooled_output=pooled, height=height, width=width, device=batch.latents.device)
        noisy = self.model.model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1), batch.noise, batch.latents)
        return self.model.apply_model(
            noisy, sigma, c_crossattn=context, y=sizes.to(batch.latents), transformer_options=options
        )

    def image_branch(self, tokens: Tensor) -> dict[BlockKey, MultimodalCrossAttention]:
        """The patches that sampling installs, with every example's own subject tokens (b, s, n, context_dim)."""
        return {p.block: MultimodalCrossAttention(p.block, self.project(p, tokens), None) for p in self.projections}

    def project(self, projection: Projection, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (b, s, n, context_dim) -> image K and V (b, s n, width)."""
        attention = comfy.utils.get_attr(self.model, projection.module)
        flat = tokens.flatten(0, 2)
        ones = torch.ones(len(flat), device=flat.device)
        k, v = projection.project(attention, flat, ones, self.model.get_dtype_inference())
        return tuple(side[0].unflatten(0, (len(tokens), -1)) for side in (k, v))

    def noise_loss(self, error: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the noise (b, 4, h, w), in the masks alone where `subjects_only`."""
        covered = batch.masks.sum(dim=1, keepdim=True).clamp(max=1)
        weights = torch.where(batch.subjects_only.view(-1, 1, 1, 1), covered, torch.ones_like(covered))
        loss = (error.square().mean(dim=1, keepdim=True) * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))
        if self.losses.snr_limit:
            loss = loss * (self.losses.snr_limit * sigma**2).clamp(max=1)
        if self.losses.velocity_limit:
            loss = loss * (1 + sigma**2).clamp(max=self.losses.velocity_limit)
        return loss.mean()


def check_sampling(sampling: nn.Module) -> None:
    """Raises ValueError unless there are SDXL's thousand noise levels, added as SDXL adds them."""
    if not isinstance(sampling, EPS) or len(sampling.sigmas) != TIMESTEPS:
        kinds = ", ".join(kind.__name__ for kind in type(sampling).__bases__)
        raise ValueError(
            f"model: it samples in another way than SDXL ({kinds}). Connect it without ModelSampling nodes, or with "
            "ModelSamplingDiscrete as eps or v_prediction."
        )
