"""DynamicVRAM, ComfyUI's default on NVIDIA, in a test process without a GPU: MMDIFF_DYNAMIC_VRAM=1 pytest ...

Layers are built without weights and models get the host's own patcher for it. What that patcher leaves to the graphics
card, casting a layer's weight with its patches, the layer's weight functions do here.
"""

import comfy_aimdo.control

comfy_aimdo.control.init()  # before the host looks for its library

import comfy.memory_management  # noqa: E402
import comfy.model_patcher  # noqa: E402


class DynamicOnCpu(comfy.model_patcher.ModelPatcherDynamic):
    def __new__(cls, *_, **__):  # the host makes an ordinary patcher for a CPU
        return object.__new__(cls)

    def load(self, *args, **options) -> None:
        super().load(*args, **options)
        for module in self.model.modules():
            for name in ("weight", "bias"):
                if patch := getattr(module, f"{name}_lowvram_function", None):
                    getattr(module, f"{name}_function").append(patch)

    def partially_unload(self, *_, **__) -> int:
        return self.restore_loaded_backups()


# what ComfyUI's main.py does where it finds a GPU
comfy.model_patcher.CoreModelPatcher = DynamicOnCpu
comfy.memory_management.aimdo_enabled = True
