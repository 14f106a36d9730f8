"""Networks: stem, backbone, heads, training and ensembles."""
