"""
Measures what tensors take while they live, without a device: on "meta" there are only shapes.
"""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """
    Counts the bytes of all storages that are made inside, until each is let go of.

    Attributes:
        live, peak: Now, and at most so far.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {id_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and id_of(leaf) not in given | self._sizes.keys():
                storage = leaf.untyped_storage()
                self._sizes[id_of(leaf)] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, id_of(leaf))
        return made

    def _forget(self, id):
        self.live -= self._sizes.pop(id)


def id_of(tensor):
    return tensor.untyped_storage()._cdata
