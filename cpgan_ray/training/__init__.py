"""The game in one process: losses, the defender, its adversaries, the players and the loop. No Ray, no MLflow."""
