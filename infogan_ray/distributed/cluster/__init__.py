"""The Ray cluster: connection, resources, doctor, data preparation."""
