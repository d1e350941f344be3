"""What people look at: explorer, reports, request and answer schemas. No Ray."""
