"""A manager and its workers under mixed clients for minutes or hours: every answer right, nothing that grows."""
