"""Report of the data of a config: facts of every row, findings, and one HTML page."""
