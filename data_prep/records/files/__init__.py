"""How files of records are stored: archives, delimited text and the limits on what is read."""
