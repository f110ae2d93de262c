"""What the networks make of a volume, computed when it is asked for."""
