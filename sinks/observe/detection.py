"""Sinks found by detection instead of by position: which keys and tokens they are, and where they begin and end.

A key is a sink of a head if its mean received mass alpha_k, over queries i >= k, exceeds 0.3 (Gu et al.,
arXiv:2410.10781). Keys of the first half of a row count: the last ones are seen by a few queries only. Nothing here
holds more than a few numbers per key and layer on the host.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinks.observe import AttentionRecord, NormRecord, Record
from sinks.stats import functional

EPSILON = functional.SINK_THRESHOLDS[0]
TOP = 10
SAMPLE_TOKENS, SAMPLE_CHANNELS = 32, 24

Decode = Callable[[int], str]


@dataclass
class _Layer:
    """Of one attention sublayer: counts over its heads and the rows.

    Args:
        pairs: (head, row) pairs; defined: those with finite masses.
        strongest_first: defined pairs whose strongest key is position 0.
        with_sink: pairs with at least one sink; with_first: those of which position 0 is one.
        keys, begins, ends: keys of rows that are a sink of some head here; here first, and here last.
    """

    pairs: int = 0
    defined: int = 0
    strongest_first: int = 0
    with_sink: int = 0
    with_first: int = 0
    keys: int = 0
    begins: int = 0
    ends: int = 0


@dataclass
class _Stream:
    """Of one place of the residual stream: its massive tokens.

    Args:
        tokens: (position, token id) -> number of tokens.
        largest: (position, token id) -> largest |h|.
        max_massive, max_rest: largest |h| of the massive tokens but token 0, and of the tokens that are neither.
    """

    tokens: Counter[tuple[int, int]] = field(default_factory=Counter)
    largest: dict[tuple[int, int], float] = field(default_factory=dict)
    max_massive: float | None = None
    max_rest: float | None = None


def received_mass(key_mass: Tensor) -> Tensor:
    """alpha of the keys of the first half of a row [..., T // 2] float32, of the mass that keys receive [..., T]."""
    length = key_mass.shape[-1]
    seen = torch.arange(length, 0, -1, device=key_mass.device)
    return (key_mass.float() / seen)[..., : length // 2]


class Detection:
    """Gathers, from the records of a reader, which keys are sinks and which tokens are massive.

        detection = Detection()
        reader = Reader(sites, listener=detection.take)
        with reader.reading():
            for tokens in batches:
                detection.start_batch(tokens)
                model(tokens)
        found = detection.results(decode)

    An attention without key masses has no sinks here, and a model without any has no entry "sinks".
    """

    def __init__(self) -> None:
        self._rows = 0
        self._layers: dict[str, _Layer] = {}
        self._streams: dict[str, _Stream] = {}
        self._positions: Counter[int] = Counter()
        self._sink_tokens: Counter[int] = Counter()
        self._overlap = Counter({"both": 0, "sinks": 0, "massive": 0})
        self._sample: dict[str, Any] | None = None
        self._sample_score, self._sample_ids = 0.0, list[int]()
        self._tokens: Tensor | None = None
        self._sinks: dict[str, Tensor] = {}  # of the batch: layer -> [B, T // 2] bool
        self._massive: Tensor | None = None  # of the batch: [B, T] bool

    def start_batch(self, tokens: Tensor) -> None:
        """Ids [B, T] of the rows whose records come next."""
        self._end_batch()
        self._tokens = tokens.cpu()
        self._rows += len(tokens)

    def take(self, site: str, record: Record) -> None:
        """The record of a site, of the rows of the last `start_batch`."""
        assert self._tokens is not None, "start_batch comes first"
        if isinstance(record, AttentionRecord) and record.key_mass is not None:
            self._take_masses(site, record.key_mass)
        elif isinstance(record, NormRecord):
            self._take_stream(site, record)

    def _take_masses(self, site: str, key_mass: Tensor) -> None:
        alpha = received_mass(key_mass)  # [B, H, T / 2]
        if not alpha.shape[-1]:
            return
        sinks, defined = alpha > EPSILON, alpha.isfinite().all(-1)
        heads = sinks.sum(1).cpu()  # [B, T / 2]: of how many heads each key is a sink
        layer = self._layers.setdefault(site, _Layer())
        layer.pairs += defined.numel()
        layer.defined += int(defined.sum())
        layer.strongest_first += int((defined & (alpha.argmax(-1) == 0)).sum())
        layer.with_sink += int(sinks.any(-1).sum())
        layer.with_first += int(sinks[..., 0].sum())
        layer.keys += int((heads > 0).sum())
        self._sinks[site] = heads > 0
        _add(self._positions, torch.arange(heads.shape[1]).expand_as(heads), heads)
        assert self._tokens is not None
        _add(self._sink_tokens, self._tokens[:, : heads.shape[1]], heads)

    def _take_stream(self, site: str, record: NormRecord) -> None:
        assert self._tokens is not None
        peak = record.largest[..., 0]  # [B, T]
        massive = functional.massive_tokens(peak, record.sample_median).cpu()
        peak = peak.cpu()
        stream = self._streams.setdefault(site, _Stream())
        for row, position in massive.nonzero().tolist():
            token, size = (position, int(self._tokens[row, position])), float(peak[row, position])
            stream.tokens[token] += 1
            stream.largest[token] = max(stream.largest.get(token, 0.0), size)
        later = peak.isfinite()
        later[:, 0] = False
        stream.max_massive = _largest(stream.max_massive, peak[massive & later])
        stream.max_rest = _largest(stream.max_rest, peak[~massive & later])
        self._massive = massive if self._massive is None else self._massive | massive
        if self._rows == len(self._tokens) and len(self._streams) > 1:  # the first site reads the bare embedding
            self._keep_sample(site, record)

    def _keep_sample(self, site: str, record: NormRecord) -> None:
        """Keep |h| of the first row at the site with the strongest residual sink, where it is largest."""
        h = record.input[:1]
        mean_abs = functional.mean_abs(h)
        score = float(mean_abs.max() / mean_abs.median())
        if not score > self._sample_score:
            return
        self._sample_score = score
        shown = h[0, :SAMPLE_TOKENS].float().abs().cpu()
        count = min(SAMPLE_CHANNELS // 2, shown.shape[1])
        chosen = {*shown[0].topk(count).indices.tolist(), *mean_abs.cpu().topk(count).indices.tolist()}
        channels = sorted(chosen)
        assert self._tokens is not None
        self._sample_ids = self._tokens[0, : len(shown)].tolist()
        self._sample = {"site": site, "dimensions": channels, "values": shown[:, channels].tolist()}

    def _end_batch(self) -> None:
        """Follow each key through the layers, once all of them have been read."""
        if self._sinks:
            seen = torch.stack(list(self._sinks.values()))  # [layers, B, T / 2]
            begins = seen & (seen.cumsum(0) == 1)
            ends = seen & (seen.flip(0).cumsum(0).flip(0) == 1)
            for site, first, last in zip(self._sinks, begins, ends, strict=True):
                self._layers[site].begins += int(first.sum())
                self._layers[site].ends += int(last.sum())
            if self._massive is not None:
                sink, massive = seen.any(0), self._massive[:, : seen.shape[-1]]
                self._overlap.update(
                    {"both": int((sink & massive).sum()), "sinks": int(sink.sum()), "massive": int(massive.sum())}
                )
        self._sinks, self._massive = {}, None

    def results(self, decode: Decode) -> dict[str, Any]:
        """What was found, as JSON; stored as "detection" of analysis.json.

        Args:
            decode: token id -> its text.

        Returns:
            epsilon, rows: threshold of alpha, and number of rows.
            sinks: fractions over (layer, head, row): `with_sink`, `strongest_first` and `strongest_other` (position of
                the strongest key); `count` of (layer, head, row, key) that are a sink, and of these the ten most
                common `positions` and `tokens`;
                `layers`: per attention site the fractions, and the keys that are a sink of some head there: how many,
                for how many it is the first such layer (`begins`), and the last (`ends`).
            massive: per norm site the number of massive tokens, the ten most common by position and token, and the
                largest |h| of massive tokens but token 0 and of the rest.
            overlap: keys of rows, first half, that are a sink anywhere, massive anywhere, both; their Jaccard index.
            sample: |h| [tokens, dimensions] of the first row at the strongest residual sink's site.
        """
        self._end_batch()
        found: dict[str, Any] = {"epsilon": EPSILON, "rows": self._rows}
        if self._layers:
            found["sinks"] = self._found_sinks(decode)
        if self._streams:
            found["massive"] = [_described(site, stream, decode) for site, stream in self._streams.items()]
        if self._layers and self._streams:
            either = self._overlap["sinks"] + self._overlap["massive"] - self._overlap["both"]
            found["overlap"] = dict(self._overlap) | ({"jaccard": self._overlap["both"] / either} if either else {})
        if self._sample is not None:
            found["sample"] = self._sample | {"tokens": [decode(i) for i in self._sample_ids]}
        return found

    def _found_sinks(self, decode: Decode) -> dict[str, Any]:
        names = _Layer.__dataclass_fields__
        whole = _Layer(**{name: sum(getattr(layer, name) for layer in self._layers.values()) for name in names})
        return _fractions(whole) | {
            "count": self._positions.total(),
            "positions": [{"position": p, "count": n} for p, n in self._positions.most_common(TOP)],
            "tokens": [{"id": i, "token": decode(i), "count": n} for i, n in self._sink_tokens.most_common(TOP)],
            "layers": [
                {"site": site, "keys": layer.keys, "begins": layer.begins, "ends": layer.ends} | _fractions(layer)
                for site, layer in self._layers.items()
            ],
        }


def _fractions(layer: _Layer) -> dict[str, float]:
    found = {"with_sink": layer.with_sink / layer.pairs, "with_first": layer.with_first / layer.pairs}
    if layer.defined:
        first = layer.strongest_first / layer.defined
        found |= {"strongest_first": first, "strongest_other": 1 - first}
    return found


def _described(site: str, stream: _Stream, decode: Decode) -> dict[str, Any]:
    top = [
        {"position": p, "id": i, "token": decode(i), "count": n, "max_abs": stream.largest[p, i]}
        for (p, i), n in stream.tokens.most_common(TOP)
    ]
    sizes = {"max_massive": stream.max_massive, "max_rest": stream.max_rest}
    known = {name: size for name, size in sizes.items() if size is not None}
    return {"site": site, "count": stream.tokens.total(), "top": top} | known


def _add(counter: Counter[int], keys: Tensor, counts: Tensor) -> None:
    """Add counts [B, K] of the keys [B, K] that have any."""
    distinct, places = keys[counts > 0].unique(return_inverse=True)
    sums = torch.zeros(len(distinct), dtype=counts.dtype).index_add(0, places, counts[counts > 0])
    counter.update(dict(zip(distinct.tolist(), sums.tolist(), strict=True)))


def _largest(size: float | None, peaks: Tensor) -> float | None:
    known = [*([] if size is None else [size]), *([float(peaks.max())] if len(peaks) else [])]
    return max(known, default=None)
