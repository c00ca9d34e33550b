"""The decoder and its interchangeable components."""
