"""What of a data set was computed from private examples, which no noise covers."""

from genfed.data.dataset import Dataset, Source
from genfed.data.features import TableSchema


def describe_fitted(source: Source, dataset: Dataset) -> str:
    """Returns what of the encoding of the examples was computed from all training examples, and the setting that gives
    it instead, as a line of text. Empty: nothing. It follows from the settings: whether something is computed must not
    depend on an example either.
    """
    if isinstance(dataset.encoder, TableSchema) and getattr(source, "encoder", None) is None:
        return (  # without scaling too: a digest of the medians leaves a site
            "the medians, scales and categories of the columns are computed from all training rows; set data.encoder "
            "to the encoder.json of a run on public rows"
        )
    return dataset.fitted
