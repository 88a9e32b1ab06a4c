"""Metrics that are accumulated over batches, in the manner of clu.metrics."""

from clu import metrics


def _averages(*names: str) -> type[metrics.Collection]:
    return metrics.Collection.create(**{name: metrics.Average.from_output(name) for name in names})


# Means over training steps, with dropout; `finite` is the share of finite steps.
TrainMetrics = _averages("loss", "error_rate", "gradient_norm", "finite")
# Means over evaluated examples, without padding, of five-crop evaluation.
EvalMetrics = _averages("loss", "error_rate")
# Error rates on central crops, with running, precise and batch statistics.
ComparedMetrics = _averages("error_rate_running", "error_rate_precise", "error_rate_batch")


def gather_metrics(collection, axis_name: str | None, **outputs):
    """Returns the metrics of `outputs`, (N,) each, over all devices; `mask` is 0 for padding."""
    if axis_name is None:
        return collection.single_from_model_output(**outputs)
    return collection.gather_from_model_output(axis_name=axis_name, **outputs)
