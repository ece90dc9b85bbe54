"""The front door: a network measured, pruned, repaired and fine-tuned in a line each, every setting with a default."""
