"""What the Slicer module does without Slicer. Nothing here imports slicer, qt or mood_submission."""
