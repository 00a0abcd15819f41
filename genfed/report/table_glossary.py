"""What the measures of a synthetic table mean: for the definitions on its page."""

from genfed.report.glossary import MetricDescription

_UNIT, _PERCENT = "0 to 1", "0 to 100"
TABLE_METRICS = (
    MetricDescription(
        "TSTR, TRTR",
        "A classifier learns from synthetic rows (TSTR) or from real training rows (TRTR), and is tested on real test "
        "rows. AUC: chance that it ranks a row of a class above a row of another one; 0.5 is guessing. F1 and balanced "
        "accuracy also count where classes are rare.",
        _UNIT,
        "higher",
    ),
    MetricDescription(
        "pair trends",
        "How alike the relation of two columns is in both tables, a mean over all pairs. Two numbers: 100 % less half "
        "the difference of their correlations. Other pairs: 100 % less half the sum of the differences of all joint "
        "shares, with numbers in 10 bins. Few rows lower it.",
        _PERCENT,
        "higher",
    ),
    MetricDescription(
        "C2ST",
        "AUC of gradient boosting that has to tell synthetic rows from as many real test rows. 0.5: it cannot; 1: it "
        "always can.",
        _UNIT,
        "lower",
    ),
    MetricDescription(
        "shape",
        "How alike one column is in both tables. Columns without any relation to each other have a high shape, so it "
        "says little alone.",
        _PERCENT,
        "higher",
    ),
    MetricDescription(
        "nearer to training",
        "Share of synthetic rows whose nearest training row is nearer than their nearest held-out row (DCR share); "
        "brackets: 95 % interval. 50 %: training rows are no nearer than others.",
        _PERCENT,
        "–",
    ),
    MetricDescription(
        "nearest over second nearest",
        "Median of the distance to the nearest training row over that to the second nearest (NNDR). Near 0: the rows "
        "sit on single training rows. Compare it with that of held-out rows.",
        _UNIT,
        "–",
    ),
    MetricDescription(
        "shortfall of a site",
        "Pair trends of as many rows drawn from all sites, less those of the site's own rows: how much worse this site "
        "is served than a random group of its size.",
        "-100 to 100",
        "lower",
    ),
    MetricDescription(
        "gaps between groups",
        "Largest less smallest rate over the groups: of positive rows that are found (true positives), of other rows "
        "that are taken for positive (false positives), and of all rows that are taken for positive (demographic "
        "parity).",
        _PERCENT,
        "lower",
    ),
)
