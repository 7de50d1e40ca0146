"""The HTTP side: Files, Batches and Models; intake of input files; output files."""
