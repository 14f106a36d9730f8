"""butterfly_sdm: predict which species live where from satellite images, and map it."""
