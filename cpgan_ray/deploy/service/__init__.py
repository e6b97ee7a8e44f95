"""Bob: the service that answers from codes with the utility head of a bundle, as replicas of Ray Serve.

`application` is the service as an ASGI application, without Ray: `keys`, `rate`, `content` and `served` are its parts, `metrics`
counts. `server` puts it on a port that all replicas of a machine share. `replica` is the deployment of Ray Serve, `launch` starts
and reloads it. docs/serving.md describes the service.
"""
