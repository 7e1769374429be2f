"""What a service tells of itself by HTTP: figures, metrics, and a page for people."""
