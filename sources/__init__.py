"""What watches: one module per source, imported as `headrace.sources.…`."""
