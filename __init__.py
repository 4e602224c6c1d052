import logging

from .mmdiff_model.host import shortcoming

try:
    from comfyui_version import __version__ as comfyui_version
except ImportError:
    comfyui_version = None

WEB_DIRECTORY = "./web"

if problem := shortcoming(comfyui_version):
    logging.error(problem)
    NODE_CLASS_MAPPINGS = {}
    __all__ = ["NODE_CLASS_MAPPINGS"]
else:
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
