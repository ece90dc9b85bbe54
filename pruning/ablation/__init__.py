"""Measured removal: what the loss does when neurons are really taken out, one by one or together."""
