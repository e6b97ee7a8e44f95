"""jobs/serve.py: `checks` refuses what cannot be served, `shelf` keeps the bundles and keys, `job` runs the service."""
