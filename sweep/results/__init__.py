"""What a study came to: leaderboard, summary, recipe, CSV; `python -m sweep.results` prints it."""
