"""Knowledge about graphs: layers, cuts, rewrites and searches. It knows no files and no network."""
