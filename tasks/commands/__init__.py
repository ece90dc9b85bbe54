"""What `python -m tasks` can do besides stages: check, choose, export, report, track."""
