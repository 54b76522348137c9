"""The evaluation harness: tasks, metrics, result files and the leaderboard. Import it as ``hybridzoo.eval``."""

if __name__ != "hybridzoo.eval":  # the repository root on sys.path would load the same modules twice
    raise ModuleNotFoundError("import this package as hybridzoo.eval (the repository's eval/ folder is mapped there)")
