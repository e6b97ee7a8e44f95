"""Compressive Privacy GANs on Ray: codes that keep a task solvable and defeat reconstruction, judged by fresh attacks."""
