"""What a scoring method is: one object that says what it needs, and makes a volume's scores of its evidence."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..about import About, ModelError
from ..evidence.evidence import Evidence


class Method:
    """A way to make scores of a volume's evidence. Subclasses say what they need; `table.register` makes one known.

    name: what the command line, model files and tables call it.
    scores: by task ("sample", "pixel"), what the method's score is, in half a sentence for the command line's help. A method
        has no score of other tasks.
    reads_restorations: the tasks whose scores look at restorations where some were drawn. `predict` draws none for the sample
        task; `compare` scores with and without them.
    needs_restorations: whether its pixel scores need at least one restoration of each slice.
    needs_detector: whether it needs a model with a detector.

    >>> class Unlikely(Method):
    ...     name = "unlikely"
    ...     scores = {"sample": "the mean NLL, of 10 nats"}
    ...
    ...     def sample(self, evidence):
    ...         return min(float(evidence.nll.mean()) / 10, 1.0)
    >>> Unlikely().pixel(None)
    Traceback (most recent call last):
    ...
    NotImplementedError: unlikely: this method has no pixel score
    """

    name: str
    scores: Mapping[str, str] = {}
    reads_restorations: tuple[str, ...] = ()
    needs_restorations: bool = False
    needs_detector: bool = False

    def check(self, about: About) -> None:
        """Raises ModelError where a model that is described so lacks what the method needs."""
        if self.needs_detector and about.detector is None:
            raise ModelError(
                f"expected a model with a detector for the method {self.name}, found one without; see "
                "mood-submission train detector"
            )

    def fits(self, about: About) -> bool:
        """Whether a model that is described so has all that the method needs."""
        try:
            self.check(about)
        except ModelError:
            return False
        return True

    def restorations(self, about: About) -> int:
        """How many restorations of a slice its pixel scores are made with by default."""
        return about.restorations

    def pixel(self, evidence: Evidence) -> Tensor:
        """The slices' scores, (N, H, H) floating point in 0 .. 1. H is any size. It stands for the slice's whole side."""
        raise NotImplementedError(f"{self.name}: this method has no pixel score")

    def sample(self, evidence: Evidence) -> float:
        """The volume's score, 0 .. 1. It is made without restorations: `predict` draws none for the sample task."""
        raise NotImplementedError(f"{self.name}: this method has no sample score")

    def calibrated(self, about: About, healthy: Sequence[Evidence]) -> About:
        """What the method stores in a model file: the description with what it measures of healthy volumes.

        It is asked of models that have the detector and the restorations that the method needs, but perhaps not yet what the
        method itself stores.

        about: the model's description so far.
        healthy: evidence of each volume, with restorations where the method needs them.
        Returns the description as it is where the method stores nothing. Values without a field of their own go to
        `about.method_settings`, under the method's name.
        """
        return about
