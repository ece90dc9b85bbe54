"""The stages of experiment/dvc.yaml, what they share, and what MLflow is told of their results."""
