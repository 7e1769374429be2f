"""What a service shows by HTTP: figures, metrics, and a status page."""
