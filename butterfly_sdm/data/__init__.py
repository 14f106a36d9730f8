"""Read a data set: named bands, windows, sites, splits, batches."""
