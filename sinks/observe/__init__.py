"""Reading a model while it runs: its sites, what each reports, and the statistics computed from it."""

from sinks.observe.by_document import by_document
from sinks.observe.reader import Reader
from sinks.observe.records import AttentionRecord, ClipRecord, NormRecord, Record, UpdateRecord
from sinks.observe.sites import Site, sites_of

__all__ = [
    "AttentionRecord",
    "ClipRecord",
    "NormRecord",
    "Reader",
    "Record",
    "Site",
    "UpdateRecord",
    "by_document",
    "sites_of",
]
