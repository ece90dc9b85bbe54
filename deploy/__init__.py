"""Stores and servers beside the pipeline, started from packages: PostgreSQL, S3, MLflow, Prefect, and its workers."""
