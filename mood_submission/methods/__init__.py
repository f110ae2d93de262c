"""Ways of scoring, and what they share."""
