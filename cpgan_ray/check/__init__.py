"""Checks that a part has the protocol of its kind: `python -m cpgan_ray.check NAME`.

    python -m cpgan_ray.check examples/own_privatizer.py:separable --options '{"width": 24}'
    python -m cpgan_ray.check my_package.nets:build --image-size 64 --k 128
    python -m cpgan_ray.check examples/own_data.py:read --data-dir DIR

NAME is a part of your own (FILE.py:NAME or PACKAGE.MODULE:NAME), a registered name, or a built-in one with --kind. The checks use
small drawn material: shapes, gradients, equal results for equal seeds, export, snapshot and restore. One line is printed for each;
the exit status is 1 if one fails. docs/extending.md explains the protocols.
"""
