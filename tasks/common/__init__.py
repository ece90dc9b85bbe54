"""What every stage needs: its place in dvc.yaml, its parameters, tables on disk, progress on screen."""
