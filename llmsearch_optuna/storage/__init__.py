"""A study in its database: records, leases, locks, artifacts, and errors in words."""
