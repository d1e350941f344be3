"""The page that shows what each code does: of one model, or of all runs and searches in a storage folder."""
