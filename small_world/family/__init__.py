"""The models: ComfyUI's own classes at small sizes, and how they are loaded from trained weights."""
