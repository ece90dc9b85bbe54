"""What everything else stands on: neurons and their surgery, hooks, streaming statistics, tables, modes, progress."""
