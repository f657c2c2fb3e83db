"""From scores to decisions and figures with intervals. Nothing here imports Keras or draws."""
