"""Networks: built, fed with images, trained, asked for scores and explained.

What a score means for a patient is found out in `cancernet.judging`.
"""
