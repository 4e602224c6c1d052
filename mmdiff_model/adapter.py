"""The trained modules of MM-Diff that run before sampling: CLS head, text fusion and subject tokens.

Parameter names inside each module are the released checkpoint's.
"""

from dataclasses import asdict, dataclass

from torch import Tensor, nn

from .fusion import CLSHead, FusionMLP
from .refiner import SubjectTokens

PORTRAIT, SUBJECT = "portrait", "subject"
TOKENS_GROUP = {PORTRAIT: "face_tokens", SUBJECT: "cls_tokens"}


@dataclass(frozen=True)
class Sizes:
    """Every size of an adapter. Released checkpoint: 768, 768, (768, 1280), 512, 1024, 1024, 2048, 4, 4."""

    cls_dim: int
    cls_hidden: int
    text_dims: tuple[int, int]
    identity_dim: int
    token_hidden: int
    patch_dim: int
    context_dim: int
    num_tokens: int
    depth: int

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], variant: str) -> "Sizes":
        """Read from the shapes of `cls_head.*`, `text_fusion_*` and the variant's token group. Raises KeyError."""
        tokens = TOKENS_GROUP[variant]
        shape = {key: tensor.shape for key, tensor in tensors.items()}
        context_dim = shape[f"{tokens}.layer_norm.weight"][0]
        return cls(
            cls_dim=shape["cls_head.layernorm.weight"][0],
            cls_hidden=shape["cls_head.fc.weight"][0],
            text_dims=(shape["cls_head.proj_1.weight"][0], shape["cls_head.proj_2.weight"][0]),
            identity_dim=shape[f"{tokens}.proj.0.weight"][1],
            token_hidden=shape[f"{tokens}.proj.0.weight"][0],
            patch_dim=shape[f"{tokens}.refiner.proj_in.weight"][1],
            context_dim=context_dim,
            num_tokens=shape[f"{tokens}.proj.2.weight"][0] // context_dim,
            depth=len({key.split(".")[3] for key in tensors if key.startswith(f"{tokens}.refiner.layers.")}),
        )

    def as_dict(self) -> dict:
        return asdict(self)


class Adapter(nn.Module):
    """CLS head, one fusion MLP per text encoder, and the subject tokens of the variant.

    fuses: False where the fusion was not trained, so that class words stay as they are.
    """

    fuses = True

    def __init__(self, sizes: Sizes, variant: str, operations, dtype=None, device=None):
        super().__init__()
        made = {"operations": operations, "dtype": dtype, "device": device}
        self.variant = variant
        self.cls_head = CLSHead(sizes.cls_dim, sizes.cls_hidden, sizes.text_dims, **made)
        self.text_fusion_1 = FusionMLP(sizes.text_dims[0], **made)
        self.text_fusion_2 = FusionMLP(sizes.text_dims[1], **made)
        tokens = SubjectTokens(
            sizes.identity_dim,
            sizes.token_hidden,
            sizes.patch_dim,
            sizes.context_dim,
            sizes.num_tokens,
            sizes.depth,
            **made,
        )
        self.add_module(TOKENS_GROUP[variant], tokens)

    @property
    def subject_tokens(self) -> SubjectTokens:
        return self.get_submodule(TOKENS_GROUP[self.variant])

    def fuse(self, words: tuple[Tensor, Tensor], cls: Tensor) -> tuple[Tensor, Tensor]:
        """Token embeddings (b, 768) and (b, 1280) of the class word and CLS (b, cls_dim) -> the same shapes, fused."""
        if not self.fuses:
            return words
        subject_1, subject_2 = self.cls_head(cls)
        return self.text_fusion_1(words[0], subject_1), self.text_fusion_2(words[1], subject_2)
