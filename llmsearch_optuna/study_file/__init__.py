"""Study files: their model, their JSON schema, and the template of a new one."""
