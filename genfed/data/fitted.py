"""What of a data set was computed from private examples, which no noise covers."""

import torch

from genfed.core.task import Data
from genfed.data.dataset import Dataset, Source
from genfed.data.features import TableSchema
from genfed.preprocessing.channel_scale import ChannelScale
from genfed.preprocessing.pixel_scale import BYTES, UNIT, PixelScale


def describe_fitted(source: Source, dataset: Dataset) -> str:
    """Returns what of the encoding of the examples was computed from all training examples, and the setting that gives
    it instead, as a line of text. Empty: nothing. It follows from the settings: whether something is computed must not
    depend on an example either.
    """
    own = getattr(source, "encoder", None) is None
    if isinstance(dataset.encoder, ChannelScale) and own:
        return (
            "the mean and the deviation of each channel are computed from all training windows; set data.encoder to "
            "the encoder.json of a run on public windows"
        )
    if isinstance(dataset.encoder, TableSchema) and own:
        return (  # without scaling too: a digest of the medians leaves a site
            "the medians, scales and categories of the columns are computed from all training rows; set data.encoder "
            "to the encoder.json of a run on public rows"
        )
    return dataset.fitted


def describe_fitted_without(source: Source, dataset: Dataset, kept: Data) -> str:
    """Returns what `describe_fitted` does, if it could be something else without some of the training examples. Empty:
    the others give the same.

    Args:
        source: The data source.
        dataset: Its data set.
        kept: The training examples without those.
    """
    fitted = describe_fitted(source, dataset)
    return "" if fitted and _is_common(dataset.encoder, kept) else fitted


def _is_common(encoder: object, kept: Data) -> bool:
    """Returns whether these images alone are read on the same scale, as they are stored."""
    if not isinstance(encoder, PixelScale) or encoder.bytes != BYTES:
        return False
    if encoder.numbers == UNIT:  # any part of floats from 0 to 1, or of bits, is on that scale
        return True
    # Bytes up to 1 could be a mask, and floats up to 127 of another scale.
    return encoder.numbers == BYTES and kept.x.dtype == torch.uint8 and bool((kept.x > 128).any())
