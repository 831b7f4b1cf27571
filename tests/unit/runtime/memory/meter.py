"""
Measures the live memory of tensors without a device: tensors on "meta" have only shapes.
"""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """
    Counts the bytes of all storages created inside it, until they are freed.

    Attributes:
        live, peak: The bytes now, and the most so far.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {id_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id_of(leaf) not in inputs | self._sizes.keys():
                storage = leaf.untyped_storage()
                self._sizes[id_of(leaf)] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, id_of(leaf))
        return result

    def _forget(self, id):
        self.live -= self._sizes.pop(id)


def id_of(tensor):
    return tensor.untyped_storage()._cdata
