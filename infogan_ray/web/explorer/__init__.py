"""The page that shows what each code does."""
