"""Where claims' scores come from: items of tasks, passages of prose, and the clock."""
