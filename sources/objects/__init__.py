"""What the sources that follow buckets share; no adapter of its own."""
