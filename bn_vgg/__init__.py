"""An 8-layer VGG with pluggable normalization: see `bn_vgg.api` for what a notebook uses."""

__version__ = "0.1.0"

_API = ("get_config", "train", "load", "make_model", "init_state", "make_train_step")


def __getattr__(name: str):
    # JAX takes seconds to import: only when one of these is used.
    if name in _API:
        from bn_vgg import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
