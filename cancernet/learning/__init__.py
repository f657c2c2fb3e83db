"""Networks: built, fed, trained, explained, and asked for scores. What a score means for a patient is judging's."""
