"""Foundation models: transformers as trunks, given the numbers that they were trained with."""
