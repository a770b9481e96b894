__version__ = "0.2.0"


def __getattr__(name):
    "`Classifier`, imported when it is first asked for: the command and the notebooks do without its libraries."
    if name == "Classifier":
        from .app.use.classifier import Classifier
        return Classifier
    raise AttributeError(f"module 'fincompress' has no attribute {name!r}")
