"""Scores become decisions, and decisions figures with intervals. Nothing here knows a network or draws."""
