"""What pyproject.toml says of other packages."""

import re
import tomllib

from tests.conftest import ROOT


def test_every_package_has_a_lowest_version():
    """One without is any, down to its very first, which nobody has tried."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = sum(project["optional-dependencies"].values(), project["dependencies"])
    bounded = {re.match(r"[\w-]+", each)[0] for each in required if ">=" in each}
    assert {re.match(r"[\w-]+", each)[0] for each in required} - bounded == {"bn-vgg"}
