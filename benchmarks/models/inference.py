"""An ONNX file as a `Run` in onnxruntime on the CPU."""

from pathlib import Path

from .records import Feed, Run


def onnxruntime_run(path: Path | str, threads: int = 2) -> Run:
    """Load `path` at onnxruntime's default optimization level; the callable gives outputs by name, in graph order."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feed) -> dict:
        return dict(zip(names, session.run(None, dict(feed)), strict=True))

    return run
