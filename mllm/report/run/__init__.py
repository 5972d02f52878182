"""Report of a run or an evaluation: sections from the files of its folder, and one HTML page."""
