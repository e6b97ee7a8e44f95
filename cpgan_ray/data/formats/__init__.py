"""File formats that data sets come in and that no library reads safely."""
