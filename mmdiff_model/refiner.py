"""SE-Refiner: subject tokens are enriched from patch embeddings (paper section 3, released mmdiff/model.py)."""

import torch
from einops import rearrange
from torch import Tensor, nn

HEAD_DIM = 256


class SEAttention(nn.Module):
    """Perceiver-style attention: the subject tokens look at the patches and at themselves."""

    def __init__(self, dim: int, operations, dtype=None, device=None):
        super().__init__()
        self.heads = max(1, dim // HEAD_DIM)
        self.norm1 = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.norm2 = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.to_q = operations.Linear(dim, dim, bias=False, dtype=dtype, device=device)
        self.to_kv = operations.Linear(dim, dim * 2, bias=False, dtype=dtype, device=device)
        self.to_out = operations.Linear(dim, dim, bias=False, dtype=dtype, device=device)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """tokens (b, n, dim), patches (b, p, dim) -> (b, n, dim)."""
        patches = self.norm1(patches)
        tokens = self.norm2(tokens)
        q = self.to_q(tokens)
        k, v = self.to_kv(torch.cat((patches, tokens), dim=1)).chunk(2, dim=-1)
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.heads) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class SERefiner(nn.Module):
    """Residual layers of SEAttention and a feed-forward of width 2 * dim, then a projection and a norm."""

    def __init__(self, dim: int, patch_dim: int, depth: int, operations, dtype=None, device=None):
        super().__init__()
        self.proj_in = operations.Linear(patch_dim, dim, dtype=dtype, device=device)
        self.proj_out = operations.Linear(dim, dim, dtype=dtype, device=device)
        self.norm_out = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    SEAttention(dim, operations, dtype=dtype, device=device),
                    nn.Sequential(
                        operations.LayerNorm(dim, dtype=dtype, device=device),
                        operations.Linear(dim, dim * 2, bias=False, dtype=dtype, device=device),
                        nn.GELU(),
                        operations.Linear(dim * 2, dim, bias=False, dtype=dtype, device=device),
                    ),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """tokens (b, n, dim), patches (b, p, patch_dim) -> (b, n, dim)."""
        patches = self.proj_in(patches)
        for attention, feed_forward in self.layers:
            tokens = attention(tokens, patches) + tokens
            tokens = feed_forward(tokens) + tokens
        return self.norm_out(self.proj_out(tokens))


class SubjectTokens(nn.Module):
    """An identity vector (ArcFace in `portrait`, CLS in `subject`) -> a few tokens, plus what the SE-Refiner adds.

    The released FaceEmbedsProjHead; `subject` is the same head on the CLS embedding, as the paper has it.
    """

    def __init__(
        self,
        identity_dim: int,
        hidden_dim: int,
        patch_dim: int,
        dim: int,
        num_tokens: int,
        depth: int,
        operations,
        dtype=None,
        device=None,
    ):
        super().__init__()
        self.num_tokens = num_tokens
        self.proj = nn.Sequential(
            operations.Linear(identity_dim, hidden_dim, dtype=dtype, device=device),
            nn.GELU(),
            operations.Linear(hidden_dim, dim * num_tokens, dtype=dtype, device=device),
        )
        self.layer_norm = operations.LayerNorm(dim, dtype=dtype, device=device)
        self.refiner = SERefiner(dim, patch_dim, depth, operations, dtype=dtype, device=device)

    def forward(self, identity: Tensor, patches: Tensor) -> Tensor:
        """identity (b, identity_dim), patches (b, p, patch_dim) -> (b, num_tokens, dim)."""
        tokens = rearrange(self.proj(identity), "b (n d) -> b n d", n=self.num_tokens)
        tokens = self.layer_norm(tokens)
        return tokens + self.refiner(tokens, patches)
