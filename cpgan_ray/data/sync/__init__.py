"""How a node gets the prepared store: prepared here, taken from a shared cache, or fetched from remote files."""
