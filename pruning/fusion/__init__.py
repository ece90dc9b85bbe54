"""Many signals into one importance: their weights, how they are learnt, and calibration across layers."""
