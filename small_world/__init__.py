"""A small world of drawn characters, and a shrunken SDXL family trained in it from nothing.

    python -m small_world.drive --folder FOLDER      # codec, vision encoder, then base model; run again to continue

The world (looks, heads, drawing, poses, backgrounds, captions, scenes, records) needs numpy and Pillow alone. The
models (models, vocabulary, transformers) are ComfyUI's own classes at small sizes, trained by train_*.py.
"""
