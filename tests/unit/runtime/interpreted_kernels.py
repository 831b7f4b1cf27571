"""
Triton's interpreter, faster: `triton.language` is patched once a kernel, not once a function.
"""

import functools
import inspect

from triton import language
from triton.runtime import interpreter


def patch_language_once():
    """
    Let the functions that a kernel calls use `triton.language` as the start of the kernel left it.

    Triton 3.7 replaces its members again for each call of such a function, by functions that do
    the same: a third of the time of a kernel in the interpreter.
    """
    run_grid, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched = set()

    @functools.cache
    def languages(fn):
        modules = [value for value in fn.__globals__.values() if inspect.ismodule(value)]
        return {module.__name__ for module in modules if module in (language, language.core)}

    def run_patched(self, *args, **kwargs):
        patched.clear()  # the kernel before has put back all members
        return run_grid(self, *args, **kwargs)

    def patch_if_missing(fn):
        if languages(fn) <= patched:
            return None
        patched.update(languages(fn))
        return patch(fn)

    interpreter.GridExecutor.__call__ = run_patched
    interpreter._patch_lang = patch_if_missing
