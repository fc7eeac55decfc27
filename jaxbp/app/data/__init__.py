"""The data sets that a config can name. Each is a struct with its fields and a `load`.

`load()` returns a `Dataset`: a training part and a held-out part as arrays in memory, inputs in float32
(or integers for tokens). Anything wrong with a file or its values is an `InputError` that says where.
"""

from jaxbp.app.data.dataset import Data, Dataset
from jaxbp.app.data.folders import Images
from jaxbp.app.data.images import Cifar, Digits, Mnist
from jaxbp.app.data.own import File
from jaxbp.app.data.tables import BreastCancer, Diabetes, Notes
from jaxbp.app.data.text import Text

DATA: dict[str, type[Data]] = {
    "digits": Digits,
    "mnist": Mnist,
    "cifar": Cifar,
    "breast_cancer": BreastCancer,
    "diabetes": Diabetes,
    "notes": Notes,
    "file": File,
    "images": Images,
    "text": Text,
}

__all__ = ["DATA", "Data", "Dataset"]
