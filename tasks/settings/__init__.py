"""What params.yaml may say: types, bounds and what contradicts what. It only refuses, so no result depends on it."""
