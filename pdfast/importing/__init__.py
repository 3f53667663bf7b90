"""Import of other libraries' models: one module a library."""
