"""Text as numbered tokens, and the windows that models read it in."""
