"""Encoders in files, checked and run so that a hostile file can do no harm."""
