"""The table of KV-cache techniques: Thrifty's registry and kvpress side by side on the same questions."""
