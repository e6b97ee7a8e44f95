"""Readers for file formats of data sets that no library reads safely."""
