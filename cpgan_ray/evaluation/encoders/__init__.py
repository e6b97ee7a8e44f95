"""Encoders that come as files, checked and run so that a hostile one can do no harm."""
