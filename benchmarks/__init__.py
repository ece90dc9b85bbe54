"""Speed as a ratio measured in one run; each module is a command, `python -m benchmarks.<name>`."""
