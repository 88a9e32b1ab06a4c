"""An 8-layer VGG with pluggable normalization; `bn_vgg.api` is the Python API."""

__version__ = "0.1.0"

_API = ("get_config", "train", "load", "make_model", "init_state", "make_train_step")


def __getattr__(name: str):
    # Imported on first use, because JAX takes seconds to import.
    if name in _API:
        from bn_vgg import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
