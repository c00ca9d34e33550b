"""Definitions of sink statistics: pure functions first, torchmetrics on top."""
