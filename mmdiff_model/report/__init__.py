"""What MM-Diff did in a graph, for a person to read: gathered from a model, its latest sampling and its pictures."""
