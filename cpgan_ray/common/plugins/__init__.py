"""Parts that a name in a configuration selects: networks, adversaries, attacks, mechanisms, readers of data.

A name is one of four (names.py): a built-in part, a part that an installed package has registered as an entry point, an object of
an installed module (`package.module:name`), or an object of a Python file (`file.py:name`). `Parts` (parts.py) resolves all of them
for one kind of part; the package's own parts are its entries. Code is imported only when a name that selects it is resolved
(loading.py).

A job resolves its names once, before it writes anything, and from then on uses *pinned* names: they end in `@` and a digest of the
file. Every process checks the digest where it loads the file. shipping.py collects the files for the nodes of a cluster. Errors of
such code become one line with file and line (errors.py).
"""

from cpgan_ray.common.plugins.errors import own_code, part_error
from cpgan_ray.common.plugins.names import PART, PART_WORDS, absolute_name, is_code, label, parse
from cpgan_ray.common.plugins.parts import Parts

__all__ = ["PART", "PART_WORDS", "Parts", "absolute_name", "is_code", "label", "own_code", "parse", "part_error"]
