"""The decoder and its interchangeable parts."""
