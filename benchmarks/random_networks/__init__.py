"""Networks that are drawn at random, as users write them, to find what is pruned wrongly or refused for nothing."""

from benchmarks.random_networks import dense_blocks, moving_blocks, recurrent_blocks

__all__ = ["dense_blocks", "moving_blocks", "recurrent_blocks"]
