"""Networks as functions, and one table of architectures with what each can do."""
