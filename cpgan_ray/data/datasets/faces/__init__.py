"""Procedural faces: the embedded data set, drawn by our own code in the official CelebA layout.

A person (`Identity`) has a fixed geometry and fixed colours; each picture (`Shot`) has its own pose, light, background, clothes and
expression. Both have their own random streams, so a picture depends only on (seed, identity, picture). `write_faces` writes a
complete data set:

    FOLDER/img_align_celeba/000001.jpg ...    FOLDER/list_attr_celeba.txt
    FOLDER/identity_CelebA.txt                FOLDER/list_eval_partition.txt

Coordinates are in pixels of CelebA (a frame of 178 x 218) with the origin between the eyes: u to the right, v downwards. Flat
shapes are painted on a canvas several times larger than the picture, together with the material of each pixel. The canvas is then
reduced, and the picture is lit: a relief of the head receives the light, and each material reflects it in its own way. The modules,
from the lowest level up: `people`, `geometry`, `drawing`, `light`, `files`."""

from cpgan_ray.data.datasets.faces.files import write_faces

__all__ = ["write_faces"]
