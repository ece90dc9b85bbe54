"""What compares choices of neurons: the same measurements, repair and training for each, tables, and a verdict."""
