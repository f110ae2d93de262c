"""A folder of files through the predictor: time budget, report."""
