"""The experiment's files: options, inputs, cells that are computed once, costs, the report, and what MLflow is told."""
