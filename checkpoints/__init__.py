"""Small trained models of the zoo, one ``save_pretrained`` folder each; a tag of the registry names each folder."""

if __name__ != "hybridzoo.checkpoints":
    raise ModuleNotFoundError("import this package as hybridzoo.checkpoints (the repository's checkpoints/ is mapped)")
