"""A report to look at: a page of pictures, plots and findings, with a viewer, that asks nothing of the network."""
