"""Whom, not what: does a code, or what an attack makes of it, show who is on the picture?

`judges` decides whether two pictures show the same person: a face recogniser (`recogniser`), which no attack was fitted with, if
the pictures are aligned faces and the extra `faces` is installed, and Fisher's discriminant otherwise. `identification` ranks the
true picture among all others; `embedding_target` has the attacks that predict the judge's embedding of the picture instead of the
picture; `result` measures both and linkage (../linkage.py).
"""
