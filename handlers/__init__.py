"""How your code is called: one module per contract, imported as `headrace.handlers.…`."""
