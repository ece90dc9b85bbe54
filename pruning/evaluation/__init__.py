"""What a model is worth and what it costs: loss, size, latency, energy, and the comparison of variants."""
