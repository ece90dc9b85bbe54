"""Pictures of neurons, signals and results: figures of matplotlib's, which is imported when one is drawn."""
