"""Images on disk become patches with class, patient, place and split. No network and no figure lives here."""
