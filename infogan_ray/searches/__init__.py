"""The parts of a search that do not need Ray: recipe, ASHA, search directory, leaderboard, selection rules."""
