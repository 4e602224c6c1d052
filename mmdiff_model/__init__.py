"""MM-Diff (arXiv 2403.15059): the method, one part of its figure per file. Knows torch and comfy, no node."""
