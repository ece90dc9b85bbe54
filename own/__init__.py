"""Models of your own: `model.source: own.<module>:<function>` in params.yaml puts one through the pipeline."""
