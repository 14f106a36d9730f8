"""Extract, transform and load: the only code that writes a data set."""
