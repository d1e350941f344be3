"""Reports: one HTML file of a search that needs nothing else, no network, no server. No Ray here."""
