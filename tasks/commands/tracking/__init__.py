"""What MLflow is told: of results from files alone, of failed stages from what they said; and which model is best."""
