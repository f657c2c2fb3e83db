"""From scores to decisions and metrics with intervals. Nothing here imports Keras or plots."""
