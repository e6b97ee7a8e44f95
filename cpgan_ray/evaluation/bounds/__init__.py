"""Bounds on every attacker: what no attack on the codes can exceed, however strong. Each is printed only where it holds."""
