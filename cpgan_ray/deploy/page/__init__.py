"""The page of the demonstration: a picture becomes a code in the browser, Bob answers from the code, Eve tries to get it back.

`files` puts everything together that the service serves; `faces` draws the pictures that are offered; `runtime` gets
onnxruntime-web, which runs the models; `description` has what the page states about each bundle. `static/` has the page itself.

    python -m cpgan_ray.deploy.page      # gets onnxruntime-web beforehand, for a service without a network
"""

from cpgan_ray.deploy.page.files import HEADERS, PageFile, page_files

__all__ = ["HEADERS", "PageFile", "page_files"]
