"""What the tools that try the service share: a bundle that needs no training, pictures, and `jobs/serve.py` as a process."""
