"""What every room may use and no room owns: atomic files, resumable work, settings."""
