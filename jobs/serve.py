"""Serve bundles: Bob answers clients that send only codes. Replicas of Ray Serve on this machine share one port.

    python jobs/serve.py BUNDLE                                 # on this machine only; a key is made and printed
    CPGAN_API_KEY=KEY python jobs/serve.py BUNDLE               # with this key; several are separated by commas
    python jobs/serve.py BUNDLE OTHER_BUNDLE                    # a message names its bundle
    python jobs/serve.py models:/NAME@champion --replicas 4
    python jobs/serve.py BUNDLE --host 0.0.0.0 --keys-file keys.txt --tls-cert cert.pem --tls-key key.pem
    kill -USR1 PROCESS                                          # read bundles and keys again, without a lost request

As soon as the service answers, it prints a JSON object: url, page, key (only one that it has made), digests, replicas, process. It
runs until SIGINT or SIGTERM. docs/serving.md describes the requests, keys, limits and metrics.
"""

import json
import sys
from pathlib import Path

from cpgan_ray import cli


def fetch(name: str) -> Path:
    from cpgan_ray.tracking import fetch_bundle

    return fetch_bundle(name)


def main() -> None:
    job = cli.parse_serve(sys.argv[1:], description=__doc__ or "")
    from cpgan_ray.pipelines.serve.job import serve_bundles

    serve_bundles(job, fetch=fetch, ready=lambda summary: print(json.dumps(summary), flush=True))


if __name__ == "__main__":
    cli.run(main)
