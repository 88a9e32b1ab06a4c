"""What pyproject.toml says of other packages."""

from tests.check_dependencies import name, requirements


def test_every_package_has_a_lowest_version():
    """One without is any, down to its very first: `tests.check_dependencies lowest` tries it."""
    bounded = {name(each) for each in requirements() if ">=" in each}
    assert {name(each) for each in requirements()} - bounded == {"bn-vgg"}
