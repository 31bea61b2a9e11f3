"""Find the individual animal in a photo: enrol, query, reindex."""
