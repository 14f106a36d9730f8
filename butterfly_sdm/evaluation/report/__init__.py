"""The report on runs: what is said, and the page it is said on."""
