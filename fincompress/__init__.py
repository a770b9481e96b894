__version__ = "0.2.0"


def __getattr__(name):
    "`Classifier` and `score`, imported when first asked for: other uses need no such libraries."
    if name == "Classifier":
        from .app.use.classifier import Classifier
        return Classifier
    if name == "score":
        from .app.scale.score import score
        return score
    raise AttributeError(f"module 'fincompress' has no attribute {name!r}")
