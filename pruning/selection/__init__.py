"""How many neurons each layer keeps, and which: retention, adaptive rates, budgets."""
