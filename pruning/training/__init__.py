"""Training and fine-tuning: the loop, its schedule, a teacher beside the labels, pruning while training."""
