"""What every part of the package may use, and what uses no other part of it."""
