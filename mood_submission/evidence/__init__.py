"""What the networks make of a volume, computed when it is asked for. Nothing here knows of scoring methods."""
