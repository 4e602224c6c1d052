"""Digests of weights: fingerprints, the same in any precision from half on, and one of every bit."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

WORKERS = 4  # hashing and conversion leave Python's lock
LENGTH = 16


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """16 hex digits of the one-dimensional tensors: what format version 1 called a checkpoint's hash."""
    digest = hashlib.sha256()
    for key in sorted(key for key, tensor in tensors.items() if tensor.ndim == 1):
        digest.update(key.encode())
        digest.update(tensors[key].to(torch.float16).numpy().tobytes())
    return digest.hexdigest()[:LENGTH]


def whole_fingerprint(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float16) -> str:
    """16 hex digits of all tensors, their names and shapes, as they are in a 16-bit `dtype`, and of what is beyond its
    range as it is in float32. A full-size checkpoint takes about a second."""
    keys = sorted(tensors)
    with ThreadPoolExecutor(WORKERS) as pool:
        digests = list(pool.map(lambda key: _digest(key, tensors[key], dtype), keys))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:LENGTH]


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """64 hex digits of all names, types, shapes and bits."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest(key: str, tensor: Tensor, dtype: torch.dtype) -> bytes:
    digest = hashlib.sha256(f"{key} {list(tensor.shape)} ".encode())
    short = tensor.to("cpu", dtype).contiguous()
    digest.update(short.view(torch.int16).numpy().data)
    if not tensor.is_floating_point() or torch.finfo(tensor.dtype).max > torch.finfo(dtype).max:
        low, high = short.aminmax()
        if low.isinf() or high.isinf():
            digest.update(tensor.cpu()[short.isinf()].float().numpy().data)
    return digest.digest()
