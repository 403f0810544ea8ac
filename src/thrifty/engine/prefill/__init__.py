"""Computing prompts: by chunks, by slices of layers, and rehearsals of them."""
