"""Everything that measures and is not shipped: kernels, training steps, and the report of a GPU."""
