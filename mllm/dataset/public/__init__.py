"""Public medical datasets, in the folders and with the files and columns that are published."""
