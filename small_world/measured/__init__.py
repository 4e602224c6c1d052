"""The evaluation: cases, those who paint them, the network that reads the pictures, and what counts as right."""
