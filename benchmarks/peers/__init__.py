"""Other packages' attention, one file for each package: what it is held against, and how it is called."""
