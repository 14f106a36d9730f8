"""Methods of other domains, built on the same contrastive core."""
