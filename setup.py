"""Maps recipes/, eval/ and checkpoints/ below the package; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

MAPPED = {"hybridzoo.recipes": "recipes", "hybridzoo.eval": "eval", "hybridzoo.checkpoints": "checkpoints"}
SUFFIXES = ["yaml", "md", "html", "jinja", "css", "js", "json", "txt", "gz", "bz2", "xz", "safetensors"]


def mapped_packages() -> list[str]:
    names = list(MAPPED)
    for package, folder in MAPPED.items():
        # YAML-only and weight folders are namespace packages: find_packages would drop them with a warning.
        found = find_namespace_packages(folder, exclude=["results", "results.*", "*.__pycache__"])
        names += [f"{package}.{sub}" for sub in found]
    return names


setup(
    packages=find_packages(include=["hybridzoo", "hybridzoo.*"]) + mapped_packages(),
    package_dir={"": ".", **MAPPED},
    package_data={"": ["py.typed", "SHA256SUMS", *(f"*.{suffix}" for suffix in SUFFIXES)]},
    exclude_package_data={"": ["results/*"]},
)
