"""Parts that two models or more are made of. Each file holds one concept."""
