"""Settings that take turns, and what they cost in seconds and memory: steps, edits and encoders."""
