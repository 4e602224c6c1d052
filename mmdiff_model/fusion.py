"""Text fusion: CLS augments the class word's token embedding (paper section 3, released mmdiff/model.py)."""

import torch
from torch import Tensor, nn


class CLSHead(nn.Module):
    """CLS -> one vector for each text encoder (released CLIPEmbedsProjHead)."""

    def __init__(self, cls_dim: int, hidden_dim: int, text_dims: tuple[int, int], operations, dtype=None, device=None):
        super().__init__()
        self.layernorm = operations.LayerNorm(cls_dim, dtype=dtype, device=device)
        self.fc = operations.Linear(cls_dim, hidden_dim, dtype=dtype, device=device)
        self.proj_1 = operations.Linear(hidden_dim, text_dims[0], dtype=dtype, device=device)
        self.proj_2 = operations.Linear(hidden_dim, text_dims[1], dtype=dtype, device=device)

    def forward(self, cls: Tensor) -> tuple[Tensor, Tensor]:
        """cls (b, cls_dim) -> (b, 768) for CLIP-L and (b, 1280) for CLIP-G in SDXL."""
        hidden = nn.functional.gelu(self.fc(self.layernorm(cls)))
        return self.proj_1(hidden), self.proj_2(hidden)


class FusionMLP(nn.Module):
    """Class word and subject, concatenated, -> the fused token embedding. No residual (released MLP)."""

    def __init__(self, dim: int, operations, dtype=None, device=None):
        super().__init__()
        self.layernorm = operations.LayerNorm(dim * 2, dtype=dtype, device=device)
        self.fc1 = operations.Linear(dim * 2, dim, dtype=dtype, device=device)
        self.fc2 = operations.Linear(dim, dim, dtype=dtype, device=device)

    def forward(self, word: Tensor, subject: Tensor) -> Tensor:
        """word, subject (b, dim) -> (b, dim), which takes the word's place before position embeddings are added."""
        fused = self.layernorm(torch.cat((word, subject), dim=-1))
        return self.fc2(nn.functional.gelu(self.fc1(fused)))
