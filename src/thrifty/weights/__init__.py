"""Weight compression: one file a technique in `techniques/`; `technique` owns the mechanics."""
