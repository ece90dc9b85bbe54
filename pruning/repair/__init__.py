"""What is left makes up for what is gone: readers refitted in closed form, features distilled from the dense model."""
