"""The pictures: who is in them, where and how, drawn by code from seeds. Needs numpy and Pillow alone."""
