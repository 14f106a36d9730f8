"""Methods of other fields that share the contrastive core, each behind one entry point."""
