"""What is said and shown, and can change no result: no stage depends on it."""
