"""Evaluation of real pictures: CLIP-T, CLIP-I, DINO and face similarity, as a table, JSON and a picture."""
