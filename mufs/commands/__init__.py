"""What people type: C{mufs} with its subcommands, and the helper of mount(8)."""
