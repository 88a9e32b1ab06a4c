"""Configurations with wrong values in every field, and files that are none."""

import math

from bn_vgg.run_dir import flatten
from configs import default

# As they stand behind `--config.FIELD=`.
TEXTS = [
    "", " ", "abc", "nan", "inf", "-inf", "-1", "0", "0.5", "1e300", "1e-300", str(2**31),
    str(2**70), "9" * 5000, "None", "True", "false", "{'a': {'b': 1}}", "{}", "[]", "[1, 2]",
    "(0,)", "(1.5,)", "(True,)", "(99999999999,)", "\u2603", "\u0661", "a\nb", "x" * 50_000,
    "'quoted", "{" * 300, "-" * 9000 + "1", "1+1", "0x10", "\udcff", "..", "../../evil", "1j",
]  # fmt: skip
# As a file's own code may set them; types are not looked at there.
VALUES = [
    "", "abc", math.nan, math.inf, -math.inf, -1, 0, -0.0, 0.5, 1.0, 1e300, 1e-300, 2**31, 2**70,
    10**5000, None, True, False, {}, {"a": {"b": 1}}, [], [1, 2], (0,), (1, -1), ("a",), [2**70],
    [[1]], [1] * 500, "\u2603", "a\nb", "x" * 50_000, "..", "../evil", "a/b", b"bytes", 1j, {1, 2},
    object(), len, range(3), "\udcff", "nan",
]  # fmt: skip
KWARGS = [
    ("group", {"num_groups": value})
    for value in ("x", -1, 0, 1.5, 2**70, math.nan, None, [], {}, True, 7)
] + [
    ("batch_renorm", {"r_max": "x"}), ("batch_renorm", {"warmup_updates": {}}),
    ("ghost", {"ghost_size": 0}), ("ghost", {"ghost_size": "x"}), ("ghost", {"ghost_size": 2.5}),
    ("ghost", {"ghost_size": 2**70}), ("full", {"use_scale": {"a": []}}), ("full", {5: 5}),
    ("layer", {"reduction_axes": "x"}), ("layer", {"reduction_axes": [9]}), ("none", {"": ""}),
    ("layer", {"scale_init": "x"}), ("instance", {"epsilon": 1}), ("full", {"name": "x"}),
    ("full", {"parent": None}), ("filter_response", {"eps": math.inf}), ("full", {"a": object()}),
]  # fmt: skip
NORMS = [
    "nowhere:Norm", "builtins:len", "builtins:dict", "builtins:print", "sys:exit", "os:getcwd",
    ":", "a:", ":b", "...:x", "math:pi", "flax.linen:Dense", "flax.linen:Module", "json:loads",
    "x:y:z", "flax.linen:\u2603", "a\nb:c", "collections:OrderedDict",
    "tests.rubbish_configs:TEXTS",
]  # fmt: skip

_BASE = """\
from configs import default
from ml_collections import ConfigDict, FrozenConfigDict, config_dict
def get_config():
    config = default.get_config("demo")
"""
# Complete files.
FILES = {
    "raises": b"raise ValueError('first\\nsecond')",
    "exits": b"import sys; sys.exit(3)",
    "exits inside": b"def get_config(): raise SystemExit",
    "os error": b"def get_config(): open('/no/where')",
    "no such import": b"import no.such.package",
    "recursion": b"def get_config(): return get_config()",
    "nothing": b"def get_config(): pass",
    "number": b"def get_config(): return 5",
    "dict": b"def get_config(): return {'seed': 1}",
    "class": b"class get_config: pass",
    "no get_config": b"x = 1",
    "not callable": b"get_config = 5",
    "signature": b"def get_config(a, b): pass",
    "syntax": b"def (",
    "text": b"Dear Sir or Madam",
    "all bytes": bytes(range(256)),
    "not UTF-8": b"x = '\xff'",
    "bom": "\ufeffx = (".encode(),
    "empty": b"",
    "large": b"(" * 100_000,
    "empty config": b"from ml_collections import ConfigDict as get_config",
    "placeholder": (_BASE + "    config.seed = config_dict.placeholder(int)\n").encode(),
    "required": (
        _BASE + "    with config.ignore_type():\n"
        "        config.seed = config_dict.required_placeholder(int)\n    return config"
    ).encode(),
    "frozen": (_BASE + "    return FrozenConfigDict(config)").encode(),
    "plain dict": (_BASE + "    return config.to_dict()").encode(),
    "holds itself": (
        _BASE + "    config.model.norm_kwargs.me = config\n    return config"
    ).encode(),
    "a field more": (_BASE + "    config.data.more = 1\n    return config").encode(),
    "a group more": (_BASE + "    config.more = ConfigDict({'x': 1})\n    return config").encode(),
    "a field less": (_BASE + "    del config.data['source']\n    return config").encode(),
    "no group": (
        _BASE + "    del config['model']\n    config.model = 5\n    return config"
    ).encode(),
}


def fields() -> list[str]:
    """Of the default configuration, so that a new one is covered too."""
    return list(flatten(default.get_config().to_dict()))
