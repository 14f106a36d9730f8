"""What table models see of a site: numbers, in groups, transformed and compared."""
