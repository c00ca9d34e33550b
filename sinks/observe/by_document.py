"""Sites of rows of several documents, across which attention runs: each document is read on its own."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from torch import nn

from sinks.errors import UserError, require
from sinks.models.decoder import Decoder
from sinks.observe.documents import Documents
from sinks.observe.sites import Listener, Site


class Rows(Protocol):
    """Knows the documents of the rows that a model is run on.

    Args:
        documents: of the current rows.
    """

    @property
    def documents(self) -> Documents: ...

    def open(self, site: str) -> None:
        """Follow the rows from now on, for a site."""

    def close(self, site: str) -> None:
        """Follow them no more for a site."""


class DocumentSite:
    """A site whose records are split into documents: token 0 is then that of a document.

    Args:
        site: that reports whole rows.
        rows: of the same model.
    """

    def __init__(self, site: Site, rows: Rows) -> None:
        self.name, self.kind = site.name, site.kind
        self.may_skip = getattr(site, "may_skip", False)
        self._site, self._rows = site, rows

    def listen(self, listener: Listener | None, fields: Collection[str] = ()) -> None:
        if listener is None:
            self._site.listen(None)
            self._rows.close(self.name)
            return
        self._rows.open(self.name)

        def split(record: Any) -> None:
            for part in record.of_documents(self._rows.documents):
                listener(part)

        self._site.listen(split, {*fields, "lse"})


def check_document_start(document_start: int) -> int:
    """The id of the token that begins a document, as the option `document_start` gives it.

    Raises:
        UserError: if it is negative.
    """
    remedy = "give the id of the token that begins each document"
    return require("document_start", document_start, at_least=0, remedy=remedy)


class _DecoderRows:
    """The rows of the suite's own decoder."""

    def __init__(self, decoder: Decoder, document_start: int) -> None:
        self._report, self._start = decoder.report, check_document_start(document_start)
        self._open: set[str] = set()
        self._documents: Documents | None = None

    @property
    def documents(self) -> Documents:
        assert self._documents is not None, "the decoder reports before its blocks run"
        return self._documents

    def open(self, site: str) -> None:
        self._open.add(site)
        self._report.listener = self._take

    def close(self, site: str) -> None:
        self._open.discard(site)
        if not self._open:
            self._report.listener = self._documents = None

    def _take(self, tensors: dict[str, Any]) -> None:
        self._documents = Documents(tensors["tokens"] == self._start)


def by_document(sites: Sequence[Site], model: nn.Module, document_start: int) -> list[Site]:
    """The sites of the suite's own decoder, which then report each document of a row on its own.

        reader = Reader(by_document(sites_of(model), model, document_start=BOS_ID))

    docs/statistics.md says what each statistic then is, and which are absent.

    Args:
        sites: of the model.
        model: that holds the decoder.
        document_start: id of the first token of every document. The first token of a row begins one too.

    Raises:
        UserError: if the id is negative, or the model does not hold one decoder of the suite.
    """
    decoders = [module for module in model.modules() if isinstance(module, Decoder)]
    if len(decoders) != 1:
        raise UserError(
            f"document_start is {document_start}, but {type(model).__name__} holds {len(decoders)} decoders of the "
            "suite, and one must show its token ids: leave document_start out"
        )
    rows = _DecoderRows(decoders[0], document_start)
    return [DocumentSite(site, rows) for site in sites]
