"""What tools/fuzz.py tries: one file for each kind of input, with what is right about it."""
