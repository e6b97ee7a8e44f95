"""Tools for developers; runs do not use them."""
