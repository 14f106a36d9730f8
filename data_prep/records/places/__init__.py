"""What the place of a record means: a site with a footprint."""
