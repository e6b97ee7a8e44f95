"""Procedural faces: the embedded data set, drawn by our own code in the official CelebA layout.

A person (`Identity`) has a fixed geometry and fixed colours; each picture (`Shot`) has its own pose, light, background, clothes and
expression. Both are drawn from random streams of their own, so a picture depends on (seed, identity, picture) only. `write_faces`
writes a whole set:

    FOLDER/img_align_celeba/000001.jpg ...    FOLDER/list_attr_celeba.txt
    FOLDER/identity_CelebA.txt                FOLDER/list_eval_partition.txt

Geometry is in the pixels of CelebA (a frame of 178 x 218) with the origin between the eyes: u to the right, v downwards. Flat
shapes are painted on a canvas of several times the picture's size, together with the material of each pixel; after the reduction,
light falls on a relief of the head and each material reflects it in its own way. From the ground up: `people`, `geometry`,
`drawing`, `light`, `files`.
"""

from cpgan_ray.data.datasets.faces.files import write_faces

__all__ = ["write_faces"]
