"""Training MM-Diff: what is trained, on which examples, against which losses, and the loop around it."""
