"""Training recipes, one YAML a file: ``recipes/<family>/<name>.yaml``. ``hybridzoo recipes list`` shows them."""

if __name__ != "hybridzoo.recipes":
    raise ModuleNotFoundError("import this package as hybridzoo.recipes (the repository's recipes/ is mapped there)")
