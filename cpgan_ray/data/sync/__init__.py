"""How a node gets the prepared store: it prepares the store itself, or fetches it from a shared cache."""
