"""The game in one process: losses, defender, adversaries, players and training loop. Imports neither Ray nor MLflow."""
