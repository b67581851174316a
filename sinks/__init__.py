"""Where events go: one module per sink, imported as `headrace.sinks.…`."""
