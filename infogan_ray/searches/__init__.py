"""Searches without Ray: recipe, ASHA, search directory, leaderboard, selection rules."""
