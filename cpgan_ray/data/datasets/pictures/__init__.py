"""Your own pictures, from any of three layouts to a prepared store.

    a folder for each class      cat/*.jpg  dog/old/*.jpg; below folders named after splits too: train/cat/*.jpg  test/cat/*.jpg
    a table                      labels.csv with a column of paths, and the files anywhere in the folder
    Parquet with the pictures    train-00000-of-00002.parquet ..., with a column of bytes, as Hugging Face stores data sets

`layout` decides which of them a folder has and lists its files; `folders`, `tables` and `parquet` read each layout into a
`Listing`; `labels`, `identities` and `splits` read its columns; `draft` makes the store.
"""

from cpgan_ray.data.datasets.pictures.draft import draft, required_files, settings

__all__ = ["draft", "required_files", "settings"]
