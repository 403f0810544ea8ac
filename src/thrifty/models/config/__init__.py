"""A model's configuration: its fields, families, and how Hugging Face's files spell them."""
