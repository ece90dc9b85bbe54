"""The older interface: its names and arguments, over the library's own functions."""
