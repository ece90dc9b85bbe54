"""One module for each stage of dvc.yaml, named as the stage: load, call the library, save."""
