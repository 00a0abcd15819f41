"""What of an encoder was computed from private examples, which no noise covers."""

from genfed.data.dataset import Source
from genfed.data.encoder import Encoder
from genfed.data.features import TableSchema
from genfed.data.images import ImageSource
from genfed.preprocessing.pixel_scale import PixelScale


def describe_fitted(source: Source, encoder: Encoder | None) -> str:
    """Returns what of an encoder was computed from the training examples, and the setting that gives it instead, as a
    line of text. Empty: nothing.
    """
    if isinstance(encoder, TableSchema) and getattr(source, "encoder", None) is None:
        scaled = any((each.shift, each.scale) != (0, 1) for each in encoder.numbers.values())
        if scaled or encoder.categories or not isinstance(source, ImageSource):  # arrays lack no values
            return (
                "the medians, scales and categories of the columns are computed from all training rows; set "
                "data.encoder to the encoder.json of a run on public rows"
            )
    if isinstance(encoder, PixelScale) and encoder.bytes is None and getattr(source, "pixels", None) is None:
        return "the scale of the pixels is computed from all training images; set data.pixels"
    return ""
