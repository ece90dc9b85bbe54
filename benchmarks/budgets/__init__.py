"""Pruned models beside small ones that were trained for as long, and beside other ways to be small."""
