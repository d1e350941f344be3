"""Reports of runs and searches as self-contained HTML files."""
