"""Networks of the reference implementation, layer by layer."""
