"""The explorer, the reports, and the requests and responses of the web service. No Ray."""
