"""A base as GGUF loaders build it: packed weights under a tensor class that shows their real shape.

The protocol is ComfyUI-GGUF's: `state_dict` is a fake of packed shapes on the meta device, patches hang on the tensor
and are applied whenever a layer unpacks its weight.
"""

import comfy.lora
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor, nn

BLOCK = 32


class PackedTensor(Tensor):
    """int8 rows of a matrix with a float scale for every 32 values, both in one row of bytes."""

    def __new__(cls, data: Tensor, real_shape: torch.Size, patches=()):
        tensor = super().__new__(cls, data)
        tensor.real_shape, tensor.patches = real_shape, list(patches)
        return tensor

    @property
    def shape(self) -> torch.Size:
        return getattr(self, "real_shape", self.size())

    def to(self, *args, **kwargs) -> "PackedTensor":
        moved = super().to(*args, **kwargs)
        moved.real_shape, moved.patches = self.real_shape, list(self.patches)
        return moved

    def detach(self) -> "PackedTensor":
        return self

    def unpack(self, dtype: torch.dtype) -> Tensor:
        data = torch.Tensor(self.data).to(torch.uint8) if self.dtype != torch.uint8 else self.data.as_subclass(Tensor)
        blocks = data.reshape(-1, BLOCK + 4)
        scale = blocks[:, :4].contiguous().view(torch.float32)
        return (blocks[:, 4:].contiguous().view(torch.int8) * scale).reshape(self.real_shape).to(dtype)


def pack(weight: Tensor) -> PackedTensor:
    blocks = weight.reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    values = (blocks / scale).round().to(torch.int8)
    data = torch.cat([scale.view(torch.uint8), values.view(torch.uint8)], dim=1)
    return PackedTensor(data.reshape(len(weight), -1), weight.shape)


class PackedOps(comfy.ops.manual_cast):
    class Linear(comfy.ops.manual_cast.Linear):
        comfy_cast_weights = True

        def _load_from_state_dict(self, state_dict, prefix, *args):
            for name in ("weight", "bias"):
                if (value := state_dict.get(prefix + name)) is not None:
                    setattr(self, name, nn.Parameter(value, requires_grad=False))

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            for name, value in (("weight", self.weight), ("bias", self.bias)):
                if value is not None:
                    destination[prefix + name] = torch.empty(value.size(), device="meta")

        def forward_comfy_cast_weights(self, x: Tensor) -> Tensor:
            weight = self.weight
            if isinstance(weight, PackedTensor):
                patches = weight.patches
                weight = weight.unpack(x.dtype)
                for group, key in patches:
                    weight = comfy.lora.calculate_weight(group, weight, key)
            return nn.functional.linear(x, weight, self.bias)


class PackedPatcher(comfy.model_patcher.ModelPatcher):
    """Hangs patches on packed weights; the rest is merged as usual."""

    def patch_weight_to_device(self, key, device_to=None, inplace_update=False, **options):
        weight = comfy.utils.get_attr(self.model, key)
        if not isinstance(weight, PackedTensor):
            return super().patch_weight_to_device(key, device_to, inplace_update, **options)
        if key in self.patches:
            patched = weight.to(device_to)
            patched.patches = [(self.patches[key], key)]
            comfy.utils.set_attr_param(self.model, key, patched)

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            for parameter in self.model.parameters():
                if isinstance(parameter, PackedTensor):
                    parameter.patches = []
        return super().unpatch_model(device_to, unpatch_weights)


def make_packed_model(full: comfy.model_patcher.ModelPatcher) -> PackedPatcher:
    """The same UNet with the matrices of its transformers packed."""
    sizes = full.model.model_config.unet_config
    config = comfy.supported_models.SDXL(sizes)
    config.unet_config = dict(sizes)
    config.custom_operations = PackedOps()
    model = comfy.model_base.SDXL(config, device="cpu")
    model.embedder = full.model.embedder
    weights = {
        key: pack(weight) if weight.ndim == 2 and "transformer_blocks" in key else weight
        for key, weight in full.model.diffusion_model.state_dict().items()
    }
    model.diffusion_model.load_state_dict(weights, strict=False)
    return PackedPatcher(model, full.load_device, full.offload_device)
