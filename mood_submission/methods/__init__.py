"""Scoring methods: each is one object in one file, and `table` knows them by name."""
