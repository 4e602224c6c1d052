"""MM-Diff (arXiv 2403.15059) for ComfyUI: the method, one part of the paper's figure per file. Knows torch and comfy,
no node.
"""
