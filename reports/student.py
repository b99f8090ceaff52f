"""Quantiles of Student's t."""


def student_quantile(probability: float, freedom: float) -> float:
    """What a value of so many degrees of freedom exceeds with one minus this probability."""
    from scipy.special import stdtrit  # a quarter of a second, which most commands need not wait for

    return float(stdtrit(freedom, probability))
