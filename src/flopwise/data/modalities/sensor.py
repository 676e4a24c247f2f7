"""Sensors: series of several channels, each scaled by what the training part shows and cut into bins.

Values of one step follow each other, channel by channel, step by step. Uniform bins divide the training
part's range of a channel, lowest to highest, into equal widths; what lies outside falls into the outermost
bin. Quantile bins hold equally many values of the training part. Ids with `channel: offset`: bin b of channel
c is c * bins + b; with `channel: token`: bins, shared by all channels, each behind the token of its channel.
Then the token for a missing value, if there is one, and classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from flopwise.data.modalities.base import Item, LabelOptions, Recorded, checked_ids, filled, label_ids
from flopwise.errors import FlopwiseError, one_line
from flopwise.launch.basics import Count

VALUE_BYTES = 4
"""Raw values are counted as 32-bit floats."""


class SensorOptions(LabelOptions):
    """Options of the modality."""

    channels: Annotated[int, Field(ge=1, le=1024)] = 1
    bins: Annotated[int, Field(ge=2, le=65_000)] = 64
    binning: Literal["uniform", "quantile"] = "uniform"
    channel: Literal["offset", "token"] = "offset"
    """How a token says which channel it is of."""
    steps: Count | None = None
    """Length of a document; none: one per recording. A rest of half the length is one, too."""
    missing: Literal["error", "token"] = "error"
    """What is done about a value that is not there."""
    id_column: str | None = None
    """Of a table that holds several recordings."""
    time_column: str | None = None
    class_column: str | None = None
    columns: list[str] | None = Field(default=None, max_length=1024)
    """The channels of a table; none named: all other columns."""
    edges: list[list[float]] | None = Field(default=None, repr=False)
    """Learned, [channels, bins + 1]."""
    centres: list[list[float]] | None = Field(default=None, repr=False)
    """Learned, [channels, bins]: what a bin stands for."""

    @model_validator(mode="after")
    def _columns_are_channels(self) -> SensorOptions:
        if self.columns is not None and len(self.columns) != self.channels:
            raise ValueError(f"{len(self.columns)} columns are named, channels is {self.channels}")
        return self

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges and centres as arrays.

        Raises:
            FlopwiseError: nothing was learned yet, or something else.
        """
        if self.edges is None or self.centres is None:
            raise FlopwiseError("options have no edges yet: decode with the options that `open` returned")
        wanted = [self.bins + 1] * self.channels, [self.bins] * self.channels
        if ([len(row) for row in self.edges], [len(row) for row in self.centres]) != wanted:
            raise FlopwiseError(
                f"options.edges must be {self.channels} lists of {self.bins + 1}, centres one less"
            )
        return np.array(self.edges, dtype=np.float64), np.array(self.centres, dtype=np.float64)

    @property
    def n_values(self) -> int:
        """Ids that stand for values."""
        return self.bins * (self.channels if self.channel == "offset" else 1)

    @property
    def gap(self) -> int:
        """The id of a missing value, if there is one."""
        return self.n_values + (self.channels if self.channel == "token" else 0)

    @property
    def first_class(self) -> int:
        """The first id that is a class."""
        return self.gap + (self.missing == "token")


class Sensor(Recorded[SensorOptions]):
    """Series as tokens."""

    name = "sensor"
    kind = SensorOptions

    def vocab_size(self, options: dict[str, Any], corpus: str | None = None) -> int:
        """Bins, channel tokens, the token for nothing, classes."""
        return _vocab_size(self.parse(options, corpus))

    def prepare(self, item: Item, options: SensorOptions) -> list[Item]:
        """The recording, cut into documents."""
        steps, channels = item.data.shape
        who = f"modality sensor: {one_line(item.id, 200)}"
        if channels != options.channels:
            raise FlopwiseError(
                f"{who} has {channels} channels, options.channels is {options.channels}; set it"
            )
        if not steps:
            raise FlopwiseError(f"{who} has no rows")
        bad = ~np.isfinite(item.data) if options.missing == "error" else np.isinf(item.data)
        if bad.any():
            row, channel = (int(i[0]) for i in np.nonzero(bad))
            raise FlopwiseError(
                f"{who} has {item.data[row, channel]} in row {row + 1}, channel {channel + 1}; correct it, "
                "or set options.missing: token for values that are not there"
            )
        if options.steps is None:
            return [item]
        starts = range(0, max(1, steps - (options.steps + 1) // 2 + 1), options.steps)
        return [
            replace(
                item,
                id=f"{item.id}#{i}",
                data=item.data[at : at + options.steps],
                group=item.group or item.id,
                place=i,
            )
            for i, at in enumerate(starts)
        ]

    def fit(self, pieces: Sequence[Item], options: SensorOptions, seed: int) -> SensorOptions:
        """Edges and centres of the bins of each channel."""
        if options.edges is not None and options.centres is not None:
            return options
        values = np.concatenate([piece.data for piece in pieces])
        learned = [_bins(column[np.isfinite(column)], options, c) for c, column in enumerate(values.T)]
        return options.model_copy(
            update={"edges": [e.tolist() for e, _ in learned], "centres": [m.tolist() for _, m in learned]}
        )

    def encode(self, piece: Item, options: SensorOptions) -> np.ndarray:
        """Class, then values (each behind its channel's token, if channels have tokens)."""
        edges, _ = options.tables
        codes = np.stack(
            [
                np.searchsorted(e[1:-1], column, side="right")
                for e, column in zip(edges, piece.data.T, strict=True)
            ],
            axis=1,
        )
        if options.channel == "offset":
            codes += options.bins * np.arange(options.channels)
        codes[np.isnan(piece.data)] = options.gap
        if options.channel == "token":
            names = np.broadcast_to(options.n_values + np.arange(options.channels), codes.shape)
            codes = np.stack([names, codes], axis=2)
        return np.concatenate(
            [label_ids(piece, options, options.first_class), codes.reshape(-1).astype(np.int64)]
        )

    def decode(self, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        """Values float64 [steps, channels], each its bin's centre, NaN where nothing stood.

        A value's channel is the one whose turn it is, whatever a model wrote.
        """
        o = self.parse(options)
        values = checked_ids(ids, _vocab_size(o), self.name)
        values = values[(values < o.n_values) | ((values == o.gap) & (o.missing == "token"))]
        steps = -(-len(values) // o.channels)
        codes = filled(values, steps * o.channels).reshape(steps, o.channels)
        _, centres = o.tables
        out = np.take_along_axis(centres.T, codes % o.bins, axis=0)
        out[codes == o.gap] = np.nan
        return out

    def raw_bytes(self, piece: Item) -> int:
        """32 bits per value."""
        return VALUE_BYTES * int(piece.data.size)


def _bins(values: np.ndarray, options: SensorOptions, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges [bins + 1] and centres [bins] of a channel's bins, from its values in the training part."""
    if not len(values):
        raise FlopwiseError(f"modality sensor: channel {channel + 1} has no values in the training part")
    if options.binning == "uniform":
        edges = np.linspace(values.min(), values.max(), options.bins + 1)
        return edges, (edges[1:] + edges[:-1]) / 2
    edges = np.quantile(values, np.linspace(0, 1, options.bins + 1))
    codes = np.searchsorted(edges[1:-1], values, side="right")
    count = np.bincount(codes, minlength=options.bins)
    means = np.bincount(codes, values, minlength=options.bins) / np.maximum(count, 1)
    return edges, np.where(count > 0, means, (edges[1:] + edges[:-1]) / 2)


def _vocab_size(options: SensorOptions) -> int:
    return options.first_class + options.classes * options.label


MODALITY = Sensor()
