"""The page of analyzed models: its numbers, its figures, and what it does with what is missing or hostile."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sinks.cli import main
from sinks.errors import UserError
from sinks.record import RunFolder, Statistics
from sinks.report.analysis import read_analysis
from sinks.report.model_causes import tables
from sinks.report.model_page import write_model_page
from sinks.report.model_words import what_stands_out

LAYERS, HEADS, WIDTH = 4, 3, 16
NORMS = [f"blocks.{i}.{part}.norm" for i in range(LAYERS) for part in ("attention", "feed_forward")] + ["head.norm"]
SITES = {
    "residual": [f"{name}.input" for name in NORMS],
    "norm": NORMS,
    "attention": [f"blocks.{i}.attention" for i in range(LAYERS)],
    "update": [f"blocks.{i}.{part}.update" for i in range(LAYERS) for part in ("attention", "feed_forward")],
}
# Elements that have no end tag.
VOID = {"meta", "br", "hr", "img", "link", "input"}


def arrays() -> dict[str, np.ndarray]:
    mass = np.full((LAYERS, HEADS), 0.1)
    mass[2, 1] = 0.8761
    mean_abs = np.ones((len(NORMS), WIDTH))
    mean_abs[2:, 5] = 40.0
    gain = np.ones((len(NORMS), WIDTH))
    gain[:, 5] = 0.25
    return {
        "attention/first_token_mass": mass,
        "attention/value_norm_ratio": np.full((LAYERS, HEADS), 0.3),
        "attention/effective_weight": 1 - 0.9 * mass,
        "attention/lost_first": 0.7 * mass,
        "attention/lost_other": 0.2 * mass,
        "residual/mean_abs": mean_abs,
        "residual/sink_score": mean_abs.max(1),
        "residual/sink_consistency": np.where(mean_abs.max(1) > 1, 0.9, 0.1),
        "residual/max_abs": np.stack([np.linspace(1, 4321, len(NORMS)), np.linspace(1, 50, len(NORMS))], 1),
        "norm/gain": gain,
        "update/ratio": np.full(2 * LAYERS, 0.5),
        "update/ratio_first_token": np.full(2 * LAYERS, 77.0),
        "update/cosine": np.full(2 * LAYERS, -0.125),
    }


DETECTION = {
    "epsilon": 0.3,
    "rows": 2,
    "sinks": {
        "with_sink": 0.5, "with_first": 0.4, "strongest_first": 0.7, "strongest_other": 0.3, "count": 12,
        "positions": [{"position": 0, "count": 9}, {"position": 5, "count": 3}],
        "tokens": [{"id": 7, "token": "</script><b>", "count": 12}],
        "layers": [{"site": f"blocks.{i}.attention", "keys": 2, "begins": int(i == 1), "ends": int(i == 3),
                    "with_sink": 0.5, "with_first": 0.4, "strongest_first": 0.7} for i in range(LAYERS)],
    },
    "massive": [{"site": "blocks.2.attention.norm", "count": 2, "max_massive": 2222.0, "max_rest": 3.0,
                 "top": [{"position": 5, "id": 7, "token": "\n", "count": 2, "max_abs": 2222.0}]}],
    "overlap": {"both": 1, "sinks": 2, "massive": 1, "jaccard": 0.5},
    "sample": {"site": "blocks.2.attention.norm", "dimensions": [1, 5], "tokens": ["a", "\n", "<i>"],
               "values": [[1.0, 500.0], [0.5, 40.0], [0.25, 41.0]]},
}  # fmt: skip


def write(path: Path, name: str = "tiny", bos: int | None = None, without: tuple[str, ...] = ()) -> Path:
    """A synthetic analysis; `without` names arrays, and entries of what was detected."""
    folder = RunFolder(path)
    kept = {n: a[None].astype(np.float32) for n, a in arrays().items() if n not in without}
    folder.write_provenance({"command": ["/x/sinks/__main__.py", "analyze", name], "commit": "a" * 40, "versions": {}})
    folder.append_statistics("analysis", Statistics(np.array([0]), kept, SITES))
    folder.append_metrics([{"step": 0, "analysis/attention/first_token_mass": 0.16125, "analysis/loss": 2.5}])
    folder.write_analysis({
        "model": {"name": name, "layers": LAYERS, "heads": HEADS, "width": WIDTH, "parameters": 12345},
        "text": {"source": "some.txt", "rows": 2, "tokens_per_row": 12, "bos": bos, "loss": 2.5},
        "detection": {k: v for k, v in DETECTION.items() if k not in without},
    })  # fmt: skip
    folder.finish({"loss": 2.5})
    return path


class Page(HTMLParser):
    """Fails on elements that do not close in order; keeps text, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.opened, self.tags, self.values = "", list[str](), list[str](), list[str]()
        self.feed(text)
        self.close()
        assert self.opened == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value or "" for _, value in attrs]
        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path, *folders: Path) -> tuple[Page, str]:
    write_model_page(folders, path / "model.html")
    text = (path / "model.html").read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_is_html_and_has_the_numbers(tmp_path: Path) -> None:
    found, text = page(tmp_path, write(tmp_path / "run", bos=1))
    for said in (
        "tiny (4 layers, 3 heads, 16 channels, 12,345 parameters), on 2 rows of 12 tokens of some.txt, BOS 1",
        "head 1 of layer 2 the most, 0.88",
        "dimension 5 from layer 1 to 4",
        "norms before attention suppress it (gain 0.25 of the median)",
        "The largest |h| is 4,321 at token 0 (layer 4) and 50 elsewhere",
        "Jaccard index of 0.5",
        "most sink keys begin in layer 1, and the most common other position is 5 (25\u00a0% of all sinks)",
        "layer 2, head 1: 0.8761",
        "massive tokens, not token 0, layer 2: 2,222",
        "attention, token 0, layer 3: 77",
        "token 1 \\n, dimension 5: 40",
        "sinks analyze tiny",
    ):
        assert said in found.text, said
    assert found.tags.count("svg") >= 7
    assert "nan" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, flags=re.DOTALL)
    assert len(text) < 200_000


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    found, text = page(tmp_path, write(tmp_path / "run"))
    assert not re.search(r"https?:|//\w|@import|url\(", text)
    assert not {"link", "img", "iframe", "object", "embed"} & {*found.tags}
    assert "src=" not in text


def test_what_a_model_is_called_is_text(tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    found, _text = page(tmp_path, write(tmp_path / "a", hostile), write(tmp_path / "b", hostile, bos=3))
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert hostile in found.text
    assert "'</script><b>'" in found.text  # a token
    assert "b" not in found.tags
    assert "i" not in found.tags


def test_tokens_that_look_like_numbers_are_shown_as_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    content = RunFolder(folder).analysis()
    content["detection"]["sinks"]["tokens"][0]["token"] = "nan"
    content["detection"]["sample"]["tokens"][0] = "inf"
    RunFolder(folder).write_analysis(content)
    found, _ = page(tmp_path, folder)
    assert "'nan'" in found.text
    assert "token 0 inf, dimension 5: 500" in found.text


FIGURES = {
    "first-token-mass": ("attention/first_token_mass",),
    "largest-values": ("residual/max_abs",),
    "by-dimension-and-token": ("sample",),
    "gains": ("norm/gain",),
    "updates": ("update/ratio", "update/ratio_first_token"),
    "update-directions": ("update/cosine",),
    "value-norms": ("attention/value_norm_ratio",),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_numbers_is_left_out(name: str, tmp_path: Path) -> None:
    _, text = page(tmp_path, write(tmp_path / "run", without=FIGURES[name]))
    assert {n for n in FIGURES if f'id="{n}"' in text} == {*FIGURES} - {name}
    assert "the analysis has no numbers for it" in text


def test_nothing_detected_is_no_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", without=(*arrays(), *DETECTION))
    RunFolder(folder).append_statistics("analysis", Statistics(np.array([0]), {}, SITES))
    found, _ = page(tmp_path, folder)
    assert what_stands_out(read_analysis(folder)) == []
    assert "svg" not in found.tags


def test_several_analyses_stand_side_by_side_on_the_same_axes(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", bos=3)
    found, text = page(tmp_path, a, b)
    assert found.text.count("tiny, no BOS") >= 8
    assert found.text.count("tiny, BOS 3") >= 8
    charts = re.findall(r'<svg role="img" aria-label="Values of the first token".*?</svg>', text)
    assert len(charts) == 2
    assert charts[0] == charts[1]


def test_a_broken_folder_gets_a_line_and_the_rest_is_shown(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    damaged = write(tmp_path / "damaged")
    (damaged / "analysis.json").write_text(json.dumps({"model": {"name": "x"}}))
    found, _ = page(tmp_path, write(tmp_path / "run"), tmp_path / "empty", damaged)
    assert "empty holds no finished analysis" in found.text
    assert "damaged (no text.source)" in found.text
    assert "head 1 of layer 2" in found.text


def test_no_readable_folder_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished analysis: run `sinks analyze`"):
        write_model_page([tmp_path / "none"], tmp_path / "model.html")
    assert not list(tmp_path.iterdir())


def sentences(tmp_path: Path, **changed: Any) -> str:
    folder = write(tmp_path / "run", without=tuple(changed))
    kept = {n: a[None].astype(np.float32) for n, a in (arrays() | changed).items()}
    RunFolder(folder).append_statistics("analysis", Statistics(np.array([1]), kept, SITES))
    return " ".join(what_stands_out(read_analysis(folder)))


def test_the_sentences_follow_the_numbers(tmp_path: Path) -> None:
    flat = np.ones((len(NORMS), WIDTH))
    weak = {"residual/mean_abs": flat, "residual/sink_score": np.full(len(NORMS), 3.5)}
    text = sentences(tmp_path / "a", **weak)
    assert "There is no residual sink" in text
    assert "suppress" not in text
    assert "a head uses 0.85 of its attention (the effective weight); 0.12 is lost at token 0, 0.03 is lost" in text
    assert "8\u00a0% of the heads use less than half" in text
    gain = np.ones((len(NORMS), WIDTH))
    gain[:, 5] = 8.0
    assert "norms before feed-forward amplify it (gain 8 of the median)" in sentences(
        tmp_path / "b", **{"norm/gain": gain}
    )


def change(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.125, "high": mean + 0.125}


def write_causes(folder: Path, model: str = "tiny") -> None:
    """A probe of all norms and one by one, and a quantization, as the commands write them."""
    edits: dict[str, Any] = {f"{NORMS[0]}|none": None, "blocks|ordinary|mean|sink": {"change": change(9.0)}}
    for place, site in enumerate(NORMS[1:], 1):
        edits[f"{site}|ordinary|direct|sink"] = {"change": change(place / 4)}
        edits[f"{site}|ordinary|direct|0"] = {"change": change(0.0)}
        edits[f"{site}|ordinary|mean|sink"] = {"change": change(-1.0 if place == 2 else 0.5)}
    effects = {name: change(0.1 * i) for i, name in enumerate(("bias", "contributes", "constant scale", "rescales"))}
    roles = {"blocks|ordinary": {"effects": effects, "named": ["rescales", "contributes"]}}
    sites = {site: {"score": 12.5, "dimensions": {"sink": [5]}} for site in NORMS}
    common = {"model": model, "text": "some.txt", "rows": [2, 13]}
    probe = common | {"residual": {"sites": sites, "edits": edits, "roles": roles}}
    quantized = common | {
        "scheme": "int4", "transform": "smooth", "quantized": {"change": change(3.25)},
        "first_token_kept": None, "sink_tokens": {"kept": {"change": change(1.625)}},
        "kinds_alone": {"attention.in": {"change": change(0.75)}},
    }  # fmt: skip
    for kind, content in (("probes", probe), ("quantization", quantized)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{model}.json").write_text(json.dumps(content))


def test_what_was_probed_and_quantized_beside_the_analyses_is_shown_once(tmp_path: Path) -> None:
    one, other = write(tmp_path / "tiny/a"), write(tmp_path / "tiny/b", bos=3)
    write_causes(tmp_path / "tiny")
    write_causes(tmp_path / "tiny", model="another")  # in a folder of the same name
    found, text = page(tmp_path, one, other, write(tmp_path / "third/c", "third"))
    for said in (
        "Residual side, norms: blocks, tokens: ordinary",
        "12.50",
        "+9.000 [+8.875, +9.125]",
        "+0.300 [+0.175, +0.425]",
        "rescales, contributes",
        "What the loss owes to each site: residual side, ordinary tokens",
        "Change of loss, one place at a time: residual side, ordinary tokens, 2 rows of some.txt",
        "-1.000 [-1.125, -0.875]",
        "int4, smooth (2 rows)",
        "+3.250 [+3.125, +3.375]",
        "+1.625 [+1.500, +1.750]",
        "attention.in alone",
    ):
        assert found.text.count(said) == 1, said
    assert text.count('id="residual-ordinary-by-site"') == 1
    chart = re.search(r'<svg role="img" aria-label="What the loss owes.*?</svg>', text, flags=re.DOTALL)
    assert chart is not None
    assert chart[0].count('class="mark s0"') == len(NORMS) - 1  # direct
    assert chart[0].count('class="mark s1"') == len(NORMS) - 2  # mean, of which one is below zero


def test_over_places_the_denominator_is_compared_with_the_direct_path(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny/a")
    write_causes(tmp_path / "tiny")
    file = tmp_path / "tiny/probes/tiny.json"
    content = json.loads(file.read_text())
    means = {"direct": [0.5, 0.1, -0.2], "denominator": [0.25, 0.35, 0.1]}
    for edit, values in means.items():
        for site, mean in zip(NORMS[1:4], values, strict=True):
            content["residual"]["edits"][f"{site}|all|{edit}|sink"] = {"change": change(mean)}
    file.write_text(json.dumps(content))
    over = "Over these places: residual side, all"
    (found,) = (table for name, table in tables(read_analysis(folder)) if name.startswith(over))
    assert found.rows == [
        ["direct", "3", "+0.100", "+0.500"],
        ["denominator", "3", "+0.250", "+0.350"],
        ["denominator at least direct", "2 of 3", "", ""],
        ["denominator / direct, where that is above 0", "2", "2.0", ""],  # of 0.5 and 3.5
    ]


def test_a_damaged_probe_of_a_model_is_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny/a")
    write_causes(tmp_path / "tiny")
    (tmp_path / "tiny/probes/tiny.json").write_text("{")
    with pytest.raises(UserError, match=r"tiny.json is damaged: delete it, and measure again"):
        write_model_page([folder], tmp_path / "model.html")
    assert not (tmp_path / "model.html").exists()


def test_a_report_of_analyses_is_their_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (write(tmp_path / "tiny/a"), write(tmp_path / "tiny/b", bos=3)):
        RunFolder(folder).write_config("model: tiny\n")
    write_causes(tmp_path / "tiny")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"page: {tmp_path / 'model.html'}\n"
    text = (tmp_path / "model.html").read_text()
    assert "tiny, BOS 3" in text
    assert "rescales, contributes" in text
